"""A program that grades many proofs, to be killed: URL STORE COUNT OUT.

It ends with a file of every proof's score and status, and the ledger.
"""

import asyncio
import dataclasses
import json
import pathlib
import sys

from qed.grading import judge
from qed.grading.verdicts import Verdicts
from tests.grading import scripted_judge
from tests.grading.scripted_judge import problem, proof

# So many that no grade fails for good where 30 % of the calls do.
SETTINGS = scripted_judge.judge_config(
  max_attempts=12,
  max_draws=8,
  deadline_secs=3.0,
  patience_secs=60.0,
  max_concurrency=32,
)


async def grade_all(url, path, count):
  """Scores and statuses of the proofs 0, 1, ..., and the ledger."""
  judge._FIRST_WAIT_SECS = 0.01
  with Verdicts(path) as store:
    async with scripted_judge.client(url, SETTINGS) as http_client:
      grader = judge.Judge(http_client.ask, SETTINGS, store)
      grades = await asyncio.gather(
        *(grader.grade(problem(i), proof(i, i % 8)) for i in range(count))
      )
      ledger = dataclasses.asdict(grader.ledger())
  return {'grades': [[g.score, g.status] for g in grades], 'ledger': ledger}


if __name__ == '__main__':
  url, path, count, out = sys.argv[1:]
  result = asyncio.run(grade_all(url, path, int(count)))
  pathlib.Path(out).write_text(json.dumps(result), encoding='utf-8')
