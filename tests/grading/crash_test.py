"""Many grades, 30 % faults, a crash in the middle: nothing is paid for twice.

The judge is served by the test, and what it charged for is the truth that the
ledger is held against.
"""

import asyncio
import collections
import contextlib
import json
import pathlib
import signal
import sqlite3
import sys

import pytest

from tests.grading import scripted_judge
from tests.grading.scripted_judge import ScriptedJudge
from tests.llm import scripted

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# All that a second try can mend, and none that takes its whole deadline.
RANDOM_FAULTS = (
  'closed',
  'reset',
  'not_http',
  'half_a_body',
  'status_500',
  'status_502_html',
  'status_503',
  'busy',
  'html_200',
  'truncated_json',
  'no_choices',
  'null_content',
  'no_tag',
  'breaks_off_after_a_score',
  'refusal',
)


async def start(url, path, count):
  """A program that grades; its result goes to a file beside the store."""
  return await asyncio.create_subprocess_exec(
    sys.executable,
    *('-m', 'tests.grading.grade_many'),
    *(url, str(path), str(count), f'{path}.json'),
    cwd=REPOSITORY,
  )


async def grade(url, path, count):
  process = await start(url, path, count)
  assert await process.wait() == 0
  return json.loads(pathlib.Path(f'{path}.json').read_text(encoding='utf-8'))


def read(path):
  """The proofs that have a score on record, and all that was paid for."""
  with contextlib.closing(sqlite3.connect(path)) as database:
    replies = database.execute(
      'SELECT about, text, finish_reason FROM replies'
    ).fetchall()
    unfinished = database.execute(
      'SELECT count(*) FROM calls WHERE outcome = ?', ('open',)
    ).fetchone()[0]
  scored = {about for about, text, _ in replies if 'All is well' in text}
  return scored, collections.Counter(row[0] for row in replies), unfinished


@pytest.mark.parametrize(
  'count',
  [
    pytest.param(150, marks=pytest.mark.timeout(150)),
    pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(300)]),
  ],
)
async def test_a_crash_in_the_middle_costs_only_what_was_in_flight(
  count, tmp_path
):
  served = ScriptedJudge(
    random_faults=RANDOM_FAULTS, fault_rate=0.3, pause_secs=0.01
  )
  path = tmp_path / 'verdicts.sqlite'
  async with scripted.serve(served) as url:
    process = await start(url, path, count)
    while served.paid.total() < count // 2:
      await asyncio.sleep(0.002)
      assert process.returncode is None
    process.send_signal(signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    await asyncio.sleep(0.2)  # The server finishes what it was at.
    scored, stored, unfinished = read(path)
    before, paid_before = served.requests.copy(), served.paid.copy()
    lost = paid_before - stored
    assert 0 < len(scored) < count
    # Everything that was paid for is on record, but what was under way.
    assert not stored - paid_before
    assert lost.total() <= unfinished <= 32

    result = await grade(url, path, count)
    # What had a score was not asked about again.
    assert not set(served.requests - before) & scored
    ledger = result['ledger']
    assert ledger['calls'] == ledger['answered'] + ledger['open'] + sum(
      ledger['failed'].values()
    )
    assert ledger['open'] == unfinished
    assert ledger['answered'] == served.paid.total() - lost.total()
    sent = served.requests.total()
    assert ledger['calls'] - unfinished <= sent <= ledger['calls']
    assert ledger['prompt_tokens'] == 100 * ledger['answered']
    # A reply per proof, and those that could not be read.
    assert read(path)[1].total() == ledger['answered']

    again = await grade(url, path, count)
    assert served.requests.total() == sent
    assert again['grades'] == result['grades']
    assert again['ledger']['calls'] == ledger['calls']
  async with scripted.serve(ScriptedJudge()) as url:
    faultless = await grade(url, tmp_path / 'faultless', count)
  assert faultless['ledger']['calls'] == count
  assert result['grades'] == faultless['grades']
  assert result['grades'] == [[i % 8, 'ok'] for i in range(count)]
  share = 1 - faultless['ledger']['calls'] / ledger['calls']
  assert 0.2 < share < 0.4  # The faults did happen.
  print(
    f'\n{count} grades: {ledger["calls"]} calls, {ledger["answered"]} '
    f'answered, {lost.total()} lost in the crash; {ledger["failed"]}'
  )


def test_the_faults_are_those_that_a_second_try_mends():
  hopeless = {'status_400', 'status_401', 'status_404', 'busy_for_a_day'}
  slow = {'hang', 'slow_drip', 'busy_retry_secs', 'busy_retry_date'}
  left_out = set(scripted_judge.FAULTS) - set(RANDOM_FAULTS)
  assert hopeless | slow <= left_out
