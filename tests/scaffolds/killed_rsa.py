"""A solve that kills itself: python -m tests.scaffolds.killed_rsa DIR CALLS.

Its Llm writes a line to DIR/paid for every call that it answers; instead of
answering one more than CALLS of them, the process is killed. One that is not
writes its solution to DIR/solution.json.
"""

import asyncio
import json
import os
import pathlib
import signal
import sys

from qed import config
from qed.llm.journal import Journal, Journaled
from qed.scaffolds import rsa
from tests.scaffolds import scripted

RSA = config.RsaConfig(
  num_solutions=8,
  num_rounds=3,
  block_size=3,
  selection='knockout',
  solve='Prove: {{problem}}',
  merge='Merge: {{candidates}}',
  select='Select: {{candidates}}',
)


class Dying:
  def __init__(self, folder, num_calls):
    self._paid, self._left = folder / 'paid', num_calls

  async def sample(self, prompt, params, *, n=1):
    await asyncio.sleep(params.seed % 7 / 1000)  # In another order than asked.
    if self._left == 0:
      os.kill(os.getpid(), signal.SIGKILL)
    self._left -= 1
    text = prompt.messages[0].content
    verdict = '<verdict>B</verdict>' if text.startswith('Select') else ''
    with self._paid.open('a') as paid:
      paid.write(f'{params.seed}\n')
    return [scripted.completion(f'{verdict}answer {params.seed}')]


async def main(folder, num_calls):
  with Journal(folder / 'calls.sqlite') as journal:
    llm = Journaled(Dying(folder, num_calls), journal, 'dying')
    setup = scripted.setup(RSA)
    solution = await rsa.solve(scripted.PROBLEM, llm, setup)
  trace = [entry | {'secs': None} for entry in solution.trace]
  content = {'text': solution.text, 'usage': solution.usage, 'trace': trace}
  (folder / 'solution.json').write_text(json.dumps(content))


if __name__ == '__main__':
  asyncio.run(main(pathlib.Path(sys.argv[1]), int(sys.argv[2])))
