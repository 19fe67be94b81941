"""What a judge's every outcome becomes, and what is paid for it."""

import asyncio
import dataclasses
import time

import numpy as np
import pytest

from qed.grading import judge, rewards
from qed.grading.verdicts import Verdicts
from qed.types import Completion
from tests.grading import scripted_judge
from tests.grading.scripted_judge import FAULTS, ScriptedJudge, problem, proof
from tests.llm import scripted

pytestmark = pytest.mark.timeout(60)
GRPO_REWARD = scripted_judge.base.grpo().reward.to_dict()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
  monkeypatch.setattr(judge, '_FIRST_WAIT_SECS', 0.01)


class Asked:
  """A judge without a network: gives scripted replies and counts."""

  def __init__(self, *texts, secs=0.0):
    self.texts, self.secs, self.messages = texts, secs, []

  async def __call__(self, messages, **sampling):
    self.messages.append(messages)
    text = self.texts[min(len(self.messages), len(self.texts)) - 1]
    await asyncio.sleep(self.secs)
    return scripted_judge.http.Reply(
      kind='answer',
      text=text,
      finish_reason='stop',
      prompt_tokens=1000,
      completion_tokens=100,
    )


def reward_of(grade):
  empty = np.zeros(3, np.float32)
  completion = Completion(
    token_ids=empty.astype(np.int32),
    logprobs=empty,
    versions=empty.astype(np.int32),
    text='',
    finish_reason='stop',
  )
  return rewards.reward(completion, grade, max_tokens=10, **GRPO_REWARD)


# What the client makes of a fault that happens to the first call only, and of
# one that happens to all: status, calls.
REPEATED = ('ok', 2), ('unreachable', 3)
GIVEN_UP = ('unreachable', 1), ('unreachable', 1)
DECLINED = ('refused', 1), ('refused', 1)
ASKED_AGAIN = ('ok', 2), ('unparseable', 2)
REFUSED = ('ok', 2), ('refused', 2)
OUTCOMES = {
  'closed': REPEATED,
  'reset': REPEATED,
  'not_http': REPEATED,
  'hang': REPEATED,
  'slow_drip': REPEATED,
  'half_a_body': REPEATED,
  'bad_gzip': REPEATED,
  # Once round, one arrives.
  'redirects_in_a_circle': (('ok', 1), ('unreachable', 3)),
  'status_500': REPEATED,
  'status_502_html': REPEATED,
  'status_503': REPEATED,
  'status_408': REPEATED,
  'busy': REPEATED,
  'busy_retry_secs': REPEATED,
  'busy_retry_date': REPEATED,
  'busy_for_a_day': GIVEN_UP,
  'html_200': REPEATED,
  'truncated_json': REPEATED,
  'error_200': REPEATED,
  'no_choices': REPEATED,
  'json_list': REPEATED,
  'content_number': REPEATED,
  'status_400': DECLINED,
  'status_401': GIVEN_UP,
  'status_404': GIVEN_UP,
  'null_content': ASKED_AGAIN,
  'empty_content': ASKED_AGAIN,
  'no_tag': ASKED_AGAIN,
  'above_range': ASKED_AGAIN,
  'fraction': ASKED_AGAIN,
  'breaks_off_after_a_score': ASKED_AGAIN,
  'aborted_after_a_score': ASKED_AGAIN,
  'refusal': REFUSED,
  'filtered': REFUSED,
}


async def grade_under(fault, times, http_client, settings, folder):
  """A grade, and the ledger of its run."""
  name = f'{fault}-{times}'
  with Verdicts(folder / f'{name}.sqlite') as store:
    grader = judge.Judge(http_client.ask, settings, store)
    grade = await grader.grade(problem(), proof(name, 5, fault, times))
    return grade, grader.ledger()


async def test_the_fault_table(tmp_path):
  """Prints the table under `pytest -s`."""
  assert set(OUTCOMES) == set(FAULTS)
  served, turn = ScriptedJudge(), asyncio.Semaphore(12)
  # Long enough for whatever is not meant to be slow on a busy machine.
  settings = scripted_judge.judge_config(deadline_secs=1.5)
  cases = [(fault, times) for fault in FAULTS for times in (1, 99)]

  async def run(fault, times):
    async with turn:
      return await grade_under(fault, times, http_client, settings, tmp_path)

  async with (
    scripted.serve(served) as url,
    scripted_judge.client(url, settings) as http_client,
  ):
    results = await asyncio.gather(*(run(*case) for case in cases))
  row = '{:32} {:>5}  {:12} {:8} {}'
  print('\n' + row.format('fault', 'calls', 'status', 'reward', 'failed'))
  wrong = {}
  for (fault, times), (grade, ledger) in zip(cases, results, strict=True):
    name, value = f'{fault}-{times}', reward_of(grade)
    print(
      row.format(
        fault + (', once' if times == 1 else ''),
        ledger.calls,
        grade.status,
        'invalid' if value is None else f'{value:.3f}',
        ', '.join(f'{kind} {n}' for kind, n in ledger.failed.items()),
      )
    )
    expected = OUTCOMES[fault][times > 1]
    truth = (5, 5 / 7) if expected[0] == 'ok' else (None, None)
    got = grade.status, ledger.calls, grade.score, value
    if got != (*expected, *truth):
      wrong[name] = grade
    assert ledger.calls == grade.usage['calls']
    assert ledger.calls == ledger.answered + sum(ledger.failed.values())
    # The judge saw the same, but for a redirect's turns, a request each.
    assert ledger.answered == served.paid[name]
    if fault != 'redirects_in_a_circle':
      assert ledger.calls == served.requests[name]
    assert grade.feedback
  assert wrong == {}


async def test_a_judge_that_is_not_there_is_waited_for_and_then_unreachable(
  tmp_path,
):
  # Nobody was reached, so no attempt is used up: the patience is, of which
  # there is 0.3 s once two calls have found nobody.
  settings = scripted_judge.judge_config(
    max_attempts=1, max_failures=2, cooldown_secs=0.1, patience_secs=0.3
  )
  with scripted.nobody() as url, Verdicts(tmp_path / 'v') as store:
    async with scripted_judge.client(url, settings) as http_client:
      grader = judge.Judge(http_client.ask, settings, store)
      grade = await grader.grade(problem(), proof('a', 5))
    assert (grade.status, grade.score) == ('unreachable', None)
    assert 'was down' in grade.feedback
    failed = grader.ledger().failed
    assert list(failed) == ['connect']
    assert failed['connect'] >= 2


@pytest.mark.parametrize('text', [None, '', ' \n\t'])
async def test_no_proof_is_worth_0_without_a_call(text, tmp_path):
  with Verdicts(tmp_path / 'v') as store:
    grader = judge.Judge(None, scripted_judge.judge_config(), store)
    grade = await grader.grade(problem(), text)
    assert (grade.score, grade.status) == (0, 'ok')
    assert reward_of(grade) == 0.0
    assert grader.ledger().calls == 0
    assert set(grade.usage.values()) == {0}


async def test_a_reply_is_paid_for_once_and_parsed_on_every_reading(
  tmp_path, monkeypatch
):
  asked = Asked('I give <mark>4</mark>')
  settings = scripted_judge.judge_config(max_draws=1)
  with Verdicts(tmp_path / 'v') as store:
    grader = judge.Judge(asked, settings, store)
    for _ in range(2):
      grade = await grader.grade(problem(), proof('a', 4))
      assert grade.status == 'unparseable'
      assert 'I give <mark>4</mark>' in grade.feedback
    assert len(asked.messages) == 1
  # A better parser, on the next day, without an endpoint.
  monkeypatch.setattr(
    judge.parsing,
    'verdict',
    lambda text, scores: judge.parsing.Verdict(int(text[13]), ''),
  )
  with Verdicts(tmp_path / 'v') as store:
    grader = judge.Judge(None, settings, store)
    grade = await grader.grade(problem(), proof('a', 4))
    assert (grade.score, grade.status) == (4, 'ok')
    assert set(grade.usage.values()) == {0}
    other = await grader.grade(problem(), proof('b', 4))
    assert other.status == 'unreachable'
    assert 'not on record' in other.feedback
    ledger = grader.ledger()
  assert (ledger.calls, ledger.cache_hits) == (1, 2)
  # 1,000 tokens for 1 dollar a million, and 100 for 10.
  assert ledger.usd == pytest.approx(0.002)


async def test_what_the_judge_is_asked_with_decides_what_is_on_record(tmp_path):
  asked = Asked('<score>3</score>')
  changes = [
    {},
    {'model': 'other'},
    {'temperature': 0.5},
    {'max_tokens': 100},
    {'effort': 'high'},
    {'template': 'simple'},
  ]
  with Verdicts(tmp_path / 'v') as store:
    for _ in range(2):
      for change in changes:
        settings = scripted_judge.judge_config(**change)
        grader = judge.Judge(asked, settings, store)
        await grader.grade(problem(), proof('a', 3))
    assert len(asked.messages) == len(changes)
    grader = judge.Judge(asked, scripted_judge.judge_config(), store)
    for other in (
      dataclasses.replace(problem(), rubric='7 for some.'),
      dataclasses.replace(problem(), statement='Show that 2 = 2.'),
    ):
      await grader.grade(other, proof('a', 3))
    await grader.grade(problem(), proof('a', 3) + ' ')
    await grader.grade(problem(), proof('a', 3), replica=1)
    assert len(asked.messages) == len(changes) + 4
    # What is not part of the question does not ask it again.
    await grader.grade(problem('another name'), proof('a', 3))
    assert len(asked.messages) == len(changes) + 4


async def test_equal_proofs_at_the_same_time_share_a_call(tmp_path):
  asked = Asked('<score>3</score>', secs=0.02)
  with Verdicts(tmp_path / 'v') as store:
    grader = judge.Judge(asked, scripted_judge.judge_config(), store)
    grades = await asyncio.gather(
      *(grader.grade(problem(), proof('a', 3)) for _ in range(16))
    )
    assert [grade.score for grade in grades] == [3] * 16
    assert sum(grade.usage['calls'] for grade in grades) == 1
    ledger = grader.ledger()
  assert len(asked.messages) == 1
  assert (ledger.calls, ledger.cache_hits) == (1, 15)


@pytest.mark.parametrize(
  ('aggregate', 'scores', 'expected'),
  [
    ('median', (1, 7, 6), 6),
    ('minimum', (1, 7, 6), 1),
    ('median', (2, 7, 6, 1), 2),  # The lower one of 2 and 6.
    ('median', (4,), 4),
  ],
)
async def test_replicas_become_one_score(aggregate, scores, expected, tmp_path):
  asked = Asked(*(f'<score>{score}</score>' for score in scores))
  settings = scripted_judge.judge_config(
    replicas=len(scores), aggregate=aggregate
  )
  with Verdicts(tmp_path / 'v') as store:
    grader = judge.Judge(asked, settings, store)
    grade = await grader.grade(problem(), proof('a', 0))
    assert (grade.score, grade.status) == (expected, 'ok')
    assert grade.feedback == f'<score>{expected}</score>'
    assert grade.usage == {
      'prompt_tokens': 1000 * len(scores),
      'completion_tokens': 100 * len(scores),
      'calls': len(scores),
    }
    # The next replica of the grade has verdicts of its own.
    await grader.grade(problem(), proof('a', 0), replica=1)
    assert len(asked.messages) == 2 * len(scores)


async def test_a_replica_that_fails_leaves_no_score(tmp_path):
  asked = Asked('<score>7</score>', 'no', '<score>6</score>', 'no')
  settings = scripted_judge.judge_config(replicas=3, max_draws=1)
  with Verdicts(tmp_path / 'v') as store:
    grader = judge.Judge(asked, settings, store)
    grade = await grader.grade(problem(), proof('a', 0))
  assert (grade.score, grade.status) == (None, 'unparseable')
  assert grade.usage['calls'] == 3


async def test_a_judge_that_is_down_pauses_and_no_grade_is_lost(tmp_path):
  settings = scripted_judge.judge_config(
    max_failures=5, max_attempts=8, max_concurrency=16, deadline_secs=5.0
  )
  served, is_down = ScriptedJudge(), True
  seen_down = 0

  def respond(path, body):
    nonlocal seen_down
    seen_down += is_down
    return scripted.answer(503) if is_down else served(path, body)

  async with (
    scripted.serve(respond) as url,
    scripted_judge.client(url, settings) as http_client,
  ):
    with Verdicts(tmp_path / 'v') as store:
      grader = judge.Judge(http_client.ask, settings, store)
      assert grader.is_ready
      tasks = [
        asyncio.create_task(grader.grade(problem(), proof(i, i % 8)))
        for i in range(40)
      ]
      async with asyncio.timeout(5):
        while grader.is_ready:
          await asyncio.sleep(0.01)
      waiting = asyncio.create_task(grader.wait_ready())
      await asyncio.sleep(0.3)
      assert not waiting.done()
      assert seen_down < 20  # And not 40 x 8.
      is_down = False
      await waiting
      grades = await asyncio.gather(*tasks)
  assert [grade.score for grade in grades] == [i % 8 for i in range(40)]
  assert grader.is_ready


@pytest.mark.parametrize(
  ('fault', 'status', 'least', 'most'),
  [('busy_retry_half', 'ok', 0.5, 3.0), ('busy_for_a_day', None, 0.0, 3.0)],
)
async def test_retry_after_is_waited_for_or_given_up_at_once(
  fault, status, least, most, tmp_path, monkeypatch
):
  monkeypatch.setitem(
    FAULTS,
    'busy_retry_half',
    lambda score: scripted.answer(429, headers=[('retry-after', '0.5')]),
  )
  settings = scripted_judge.judge_config(patience_secs=10.0)
  async with (
    scripted.serve(ScriptedJudge()) as url,
    scripted_judge.client(url, settings) as http_client,
  ):
    with Verdicts(tmp_path / 'v') as store:
      grader = judge.Judge(http_client.ask, settings, store)
      began = time.monotonic()
      grade = await grader.grade(problem(), proof('a', 5, fault, 1))
      assert least <= time.monotonic() - began < most
      assert grade.status == (status or 'unreachable')
      # The day is kept for all, who had better not make proofs meanwhile.
      assert grader.is_ready == (status == 'ok')


async def test_patience_has_an_end(tmp_path):
  settings = scripted_judge.judge_config(
    max_failures=1, cooldown_secs=60.0, patience_secs=0.2
  )
  async with (
    scripted.serve(lambda *_: scripted.answer(503)) as url,
    scripted_judge.client(url, settings) as http_client,
  ):
    with Verdicts(tmp_path / 'v') as store:
      grader = judge.Judge(http_client.ask, settings, store)
      began = time.monotonic()
      grades = await asyncio.gather(
        *(grader.grade(problem(), proof(i, 5)) for i in range(3))
      )
      assert time.monotonic() - began < 3
  assert {grade.status for grade in grades} == {'unreachable'}
  assert '0.2 s' in grades[0].feedback


async def test_rate_limits_shrink_the_concurrency(tmp_path):
  settings = scripted_judge.judge_config(max_concurrency=64, max_attempts=20)
  in_flight, most_after = 0, 0
  served = ScriptedJudge()

  def respond(path, body):
    # As a server that does 4 at a time would.
    async def send(writer):
      nonlocal in_flight
      if in_flight >= 4:
        return await scripted.answer(429)(writer)
      in_flight += 1
      try:
        await asyncio.sleep(0.005)
        return await served(path, body)(writer)
      finally:
        in_flight -= 1

    return send

  async with (
    scripted.serve(respond) as url,
    scripted_judge.client(url, settings) as http_client,
  ):
    with Verdicts(tmp_path / 'v') as store:
      grader = judge.Judge(http_client.ask, settings, store)
      grades = await asyncio.gather(
        *(grader.grade(problem(), proof(i, i % 8)) for i in range(100))
      )
      most_after = grader.concurrency
  assert [grade.score for grade in grades] == [i % 8 for i in range(100)]
  assert most_after < 16


async def test_a_cancelled_grade_is_on_record_and_can_be_asked_again(tmp_path):
  asked = Asked('<score>3</score>', secs=5.0)
  with Verdicts(tmp_path / 'v') as store:
    grader = judge.Judge(asked, scripted_judge.judge_config(), store)
    first = asyncio.create_task(grader.grade(problem(), proof('a', 3)))
    second = asyncio.create_task(grader.grade(problem(), proof('a', 3)))
    await asyncio.sleep(0.02)
    asked.secs = 0.0
    first.cancel()
    assert (await second).score == 3
    with pytest.raises(asyncio.CancelledError):
      await first
    ledger = grader.ledger()
  assert ledger.failed == {'cancelled': 1}
  assert (ledger.calls, ledger.answered, ledger.open) == (2, 1, 0)


async def test_a_reply_is_stored_before_anything_looks_into_it(
  tmp_path, monkeypatch
):
  def broken(text, scores):
    raise RuntimeError('a bug in the parser')

  monkeypatch.setattr(judge.parsing, 'verdict', broken)
  asked = Asked('<score>3</score>')
  with Verdicts(tmp_path / 'v') as store:
    grader = judge.Judge(asked, scripted_judge.judge_config(), store)
    with pytest.raises(RuntimeError, match='a bug in the parser'):
      await grader.grade(problem(), proof('a', 3))
    monkeypatch.undo()
    grade = await grader.grade(problem(), proof('a', 3))
  assert (grade.score, len(asked.messages)) == (3, 1)


async def test_a_problem_without_a_rubric_is_an_error_not_a_grade(tmp_path):
  with Verdicts(tmp_path / 'v') as store:
    grader = judge.Judge(None, scripted_judge.judge_config(), store)
    bare = dataclasses.replace(problem(), rubric=None)
    with pytest.raises(ValueError, match='rubric'):
      await grader.grade(bare, 'Clear.')


async def test_any_question_with_a_score_can_be_asked(tmp_path):
  asked = Asked('<score>1</score>', '<score>2</score>')
  message = scripted_judge.http.types.Message(role='user', content='Equal?')
  with Verdicts(tmp_path / 'v') as store:
    grader = judge.Judge(asked, scripted_judge.judge_config(max_draws=1), store)
    first = await grader.verdict([message], scores=(0, 1), about='a')
    second = await grader.verdict(
      [message], scores=(0, 1), about='a', replica=1
    )
  assert (first.score, first.status) == (1, 'ok')
  assert (second.score, second.status) == (None, 'unparseable')
