"""Which calls are made, in which order, with what in their prompts."""

import collections
import dataclasses
import re

import pytest

from qed import config
from qed.data import templates
from qed.scaffolds import nomos
from qed.scaffolds.calls import CallError
from tests.scaffolds import scripted
from tests.scaffolds.scripted import count, labels

DEFAULTS = config.NomosConfig(
  num_solutions=16,
  min_perfect=8,
  max_kept=12,
  solve='SOLVE {{problem}}',
  score='SCORE {{problem}} {{proof_verbatim}}',
  consolidate='KEEP {{problem}}\n{{submissions_verbatim}}',
  compare='COMPARE {{problem}} {{first_verbatim}} {{second_verbatim}}',
)
STATEMENT = scripted.PROBLEM.statement


class Script:
  """Proofs P1, P2, ...; what is given for a kind of call is its answer."""

  def __init__(self, scores=None, keep='', compare=None, proofs=None):
    self.scores, self.keep = scores or {}, keep
    self.compare = compare or (lambda first, second: 1)
    self.proofs = proofs or {}
    self.num_proofs = 0
    self.submissions = None
    self.matches = []

  def __call__(self, asked):
    kind, _, rest = asked.text.partition(' ')
    rest = rest.removeprefix(STATEMENT).strip()
    if kind == 'SOLVE':
      self.num_proofs += 1
      return self.proofs.get(f'P{self.num_proofs}', f'P{self.num_proofs}')
    if kind == 'SCORE':
      score = self.scores.get(rest, 7)
      return f'{rest} is {box(score)}' if type(score) is int else score
    if kind == 'KEEP':
      self.submissions = rest
      return self.keep
    self.matches.append(tuple(rest.split()))
    verdict = self.compare(*rest.split())
    if isinstance(verdict, int):
      return f'<verdict>{verdict}</verdict>'
    return verdict


def box(score):
  return f'\\boxed{{{score}}}'


async def solve(script, llm=None, scaffold=None, **changes):
  scaffold = dataclasses.replace(DEFAULTS, **(scaffold or {}))
  setup = scripted.setup(scaffold, **changes)
  return await nomos.solve(
    scripted.PROBLEM, llm or scripted.Scripted(script), setup
  )


def kept_in(script):
  """The proofs that were submitted to the consolidation, in order."""
  return re.findall(r'^Solution \d+:\n(\w+)$', script.submissions, re.MULTILINE)


def better(first, second):
  """The proof with the larger number."""
  return 1 if int(first[1:]) > int(second[1:]) else 2


async def test_forty_four_calls_in_this_order():
  script = Script(keep='<keep>1,2,3,4,5,6,7,8,9,10,11,12</keep>')
  solution = await solve(script)
  assert labels(solution) == [
    *(f'solution {i}' for i in range(1, 17)),
    *(f'solution {i}/score' for i in range(1, 17)),
    'consolidation',
    *(f'knockout 1/match {i}' for i in range(1, 7)),
    *(f'knockout 2/match {i}' for i in range(1, 4)),
    'knockout 3/match 1',  # Of three, one has a bye.
    'knockout 4/match 1',
  ]
  assert solution.usage['calls'] == 44


@pytest.mark.parametrize('num_kept', range(1, 13))
async def test_a_knockout_takes_one_call_less_than_it_has_proofs(num_kept):
  script = Script(
    keep=f'<keep>{list(range(1, num_kept + 1))}</keep>', compare=better
  )
  solution = await solve(script)
  assert len(script.matches) == num_kept - 1
  assert solution.usage['calls'] == 33 + num_kept - 1
  assert solution.text == f'P{num_kept}'
  # Whoever has lost is never asked about again.
  lost = [b if better(a, b) == 1 else a for a, b in script.matches]
  assert len(set(lost)) == num_kept - 1


async def test_who_is_asked_what():
  roles = {
    role: scripted.Scripted(Script(keep='<keep>2, 1</keep>'))
    for role in ('solver', 'verifier', 'selector')
  }
  await solve(None, roles, {'num_solutions': 2})
  asked = {role: [x.text for x in llm.asked] for role, llm in roles.items()}
  assert asked['solver'] == [f'SOLVE {STATEMENT}'] * 2
  assert asked['verifier'] == [
    f'SCORE {STATEMENT} P1',
    f'SCORE {STATEMENT} P2',
  ]
  consolidation, match = asked['selector']
  assert consolidation == (
    f'KEEP {STATEMENT}\n'
    'Solution 1:\nP1\n\nThe grader of solution 1:\nP1 is \\boxed{7}\n\n'
    'Solution 2:\nP2\n\nThe grader of solution 2:\nP2 is \\boxed{7}'
  )
  assert match in (
    f'COMPARE {STATEMENT} P1 P2',
    f'COMPARE {STATEMENT} P2 P1',
  )


async def test_equal_prompts_are_drawn_differently_and_a_replay_is_equal():
  first, again = scripted.Scripted(Script()), scripted.Scripted(Script())
  await solve(None, first)
  await solve(None, again)
  seeds = [x.params.seed for x in first.asked]
  assert len(set(seeds)) == len(seeds) == 44
  assert seeds == [x.params.seed for x in again.asked]
  assert [x.text for x in first.asked] == [x.text for x in again.asked]


async def test_which_of_two_stands_first_and_who_has_the_bye_is_chance():
  firsts = collections.Counter()
  for seed in range(30):
    script = Script(keep='<keep>1, 2, 3</keep>')
    await solve(script, scaffold={'num_solutions': 3}, seed=seed)
    firsts[script.matches[0]] += 1
  assert len(firsts) == 6  # All ordered pairs of three.


class TestRanking:
  """Which proofs stay after scoring."""

  @pytest.mark.parametrize(
    ('scores', 'min_perfect', 'max_kept', 'kept'),
    [
      ([7, 3, 7, 7], 3, 4, [0, 2, 3]),  # Enough are perfect.
      ([7, 3, 7, 7], 3, 2, [0, 2]),
      ([7, 3, 7, 7], 4, 4, [0, 2, 3, 1]),  # Not enough.
      ([0, 3, 7, 3, 6], 2, 3, [2, 4, 1]),  # Of equal ones the first.
      ([0, 0], 1, 5, [0, 1]),
      ([], 1, 5, []),
    ],
  )
  def test_of(self, scores, min_perfect, max_kept, kept):
    assert nomos.ranking(scores, min_perfect, max_kept) == kept

  async def test_eight_perfect_ones_leave_no_others(self):
    script = Script({f'P{i}': 6 for i in range(1, 9)})
    await solve(script)
    assert kept_in(script) == [f'P{i}' for i in range(9, 17)]

  async def test_seven_perfect_ones_leave_the_twelve_best(self):
    script = Script({f'P{i}': 10 - i for i in range(4, 10)} | {'P16': 2})
    # 7 points: P1 to P3 and P10 to P15.
    script.scores |= {f'P{i}': 1 for i in (14, 15)}
    await solve(script)
    # Seven perfect; then 6, 5, 4, 3 and 2 points, P9 and the rest fall out.
    assert kept_in(script) == [
      *('P1', 'P2', 'P3', 'P10', 'P11', 'P12', 'P13'),
      *('P4', 'P5', 'P6', 'P7', 'P8'),
    ]


class TestConsolidation:
  """Who is believed."""

  async def test_only_those_that_are_named_play_on(self):
    script = Script(keep='Group A. <keep>[2, 5]</keep>', compare=better)
    solution = await solve(script)
    assert {*script.matches[0]} == {'P2', 'P5'}
    assert (solution.text, solution.usage['calls']) == ('P5', 34)

  async def test_the_numbers_are_those_of_the_order_shown(self):
    script = Script({'P1': 0}, keep='<keep>1</keep>')
    assert (await solve(script, scaffold={'num_solutions': 2})).text == 'P2'

  async def test_the_order_stays_that_of_the_scores(self):
    # No match is played, so that the first of those that stay is returned.
    solution = await solve(
      Script({'P1': 6, 'P2': 5}, keep='<keep>2, 1</keep>'),
      scaffold={'num_solutions': 2},
      budget=scripted.budget(max_tokens=140),
    )
    assert labels(solution)[-1] == 'consolidation'
    assert solution.text == 'P1'

  @pytest.mark.parametrize(
    'keep',
    [
      '',
      'All but the third.',
      '<keep></keep>',
      '<keep>0</keep>',
      '<keep>1, 17</keep>',
      '<keep>one</keep>',
      scripted.cut('<keep>1</keep>'),
      scripted.Down(),
    ],
  )
  async def test_all_stay_where_no_list_can_be_read(self, keep):
    solution = await solve(Script(keep=keep, compare=better))
    assert count(solution, 'unparseable_keeps', 'calls') == (1, 44)
    assert solution.text == 'P12'

  @pytest.mark.parametrize('scores', [{'P1': 1}, {'P1': 1, 'P2': 2}])
  async def test_one_proof_alone_is_the_solution(self, scores):
    scaffold = {'num_solutions': len(scores), 'max_kept': 1}
    solution = await solve(Script(scores), scaffold=scaffold)
    assert solution.text == f'P{len(scores)}'
    assert solution.usage['calls'] == 2 * len(scores)


class TestComparison:
  """Verdicts of matches."""

  @pytest.mark.parametrize(('verdict', 'place'), [(1, 0), (2, 1)])
  async def test_a_verdict_names_the_first_or_the_second(self, verdict, place):
    script = Script(keep='<keep>1, 2</keep>', compare=lambda a, b: verdict)
    solution = await solve(script)
    assert solution.text == script.matches[0][place]

  @pytest.mark.parametrize(
    ('verdict', 'name'),
    [
      ('<verdict>tie</verdict>', 'ties'),
      ('<Verdict> TIE </verdict>', 'ties'),
      ('The first.', 'unparseable_verdicts'),
      ('<verdict>3</verdict>', 'unparseable_verdicts'),
      ('<verdict>1</verdict> <verdict>0</verdict>', 'unparseable_verdicts'),
      ('', 'unparseable_verdicts'),
      (scripted.cut('<verdict>1</verdict>'), 'unparseable_verdicts'),
      (scripted.Down(), 'unparseable_verdicts'),
    ],
  )
  async def test_a_coin_decides_otherwise(self, verdict, name):
    async def play(seed):
      script = Script(keep='<keep>1, 2</keep>', compare=lambda a, b: verdict)
      solution = await solve(script, scaffold={'num_solutions': 2}, seed=seed)
      counts = count(solution, 'ties', 'unparseable_verdicts')
      assert counts == ((1, 0) if name == 'ties' else (0, 1))
      return script.matches[0].index(solution.text)

    places = [await play(seed) for seed in range(16)]
    # Of 16 fair coins, fewer than 2 of one side are one in 2,000.
    assert 2 <= sum(places) <= 14
    assert await play(3) == places[3]

  async def test_who_meets_whom_is_that_of_seed_and_attempt(self):
    async def matches(**changes):
      script = Script(keep='<keep>1, 2, 3, 4, 5, 6, 7, 8</keep>')
      await solve(script, **changes)
      return script.matches

    first = await matches(seed=1, attempt=2)
    assert await matches(seed=1, attempt=2) == first
    assert await matches(seed=1, attempt=3) != first
    assert await matches(seed=2, attempt=2) != first


class TestWhatIsNotAsItShouldBe:
  """Every failure has its rule, and is counted."""

  async def test_an_answer_without_a_proof_is_not_scored(self):
    proofs = {
      'P2': '',
      'P3': scripted.cut('thinking still'),
      'P4': scripted.Down(),
    }
    proofs |= {f'P{i}': f'thought</think>P{i}' for i in (1, 5)}
    llm = scripted.Scripted(Script(proofs=proofs))
    solution = await solve(
      None, llm, {'num_solutions': 5, 'max_kept': 1}, style='thinking'
    )
    assert labels(solution)[5:] == ['solution 1/score', 'solution 5/score']
    assert count(solution, 'missing_solutions', 'failed') == (3, 1)
    assert solution.text == 'P1'

  async def test_no_proof_at_all_is_no_solution(self):
    solution = await solve(lambda asked: '')
    assert (solution.text, solution.usage['calls']) == ('', 16)

  async def test_calls_that_all_failed_are_no_attempt(self):
    with pytest.raises(CallError):
      await solve(lambda asked: scripted.Down())

  @pytest.mark.parametrize(
    'score',
    [
      'Seven.',
      '\\boxed{8}',
      '\\boxed{6.5}',
      '\\boxed{7} \\boxed{x}'.replace('x', '9'),
      '',
      scripted.cut(box(7)),
      scripted.Down(),
    ],
  )
  async def test_no_score_is_a_zero_without_words(self, score):
    script = Script({'P1': score, 'P2': 1, 'P3': 1})
    solution = await solve(
      script, scaffold={'num_solutions': 3, 'min_perfect': 1}
    )
    assert count(solution, 'unparseable_scores') == (1,)
    assert kept_in(script) == ['P2', 'P3', 'P1']
    assert 'The grader of solution 2' in script.submissions
    assert 'The grader of solution 3' not in script.submissions


class TestBudget:
  """At the limit, the best so far."""

  # Every call takes 10 tokens and reserves 100.
  @pytest.mark.parametrize(
    ('max_tokens', 'calls', 'text'),
    [
      (0, 44, 'P12'),
      (530, 44, 'P12'),
      (420, 33, 'P5'),  # No match: the best scored.
      (410, 32, 'P5'),  # No consolidation.
      (300, 21, 'P5'),
      (290, 20, 'P1'),  # P5 has no score.
      (250, 16, 'P1'),
      (100, 1, 'P1'),
      (99, 0, ''),
    ],
  )
  async def test_of_tokens(self, max_tokens, calls, text):
    scores = {f'P{i}': 5 for i in range(1, 17)} | {'P5': 6}
    solution = await solve(
      Script(scores, compare=better),
      budget=scripted.budget(max_tokens=max_tokens),
    )
    assert (solution.usage['calls'], solution.text) == (calls, text)

  async def test_in_the_knockout_it_is_the_best_scored_of_the_winners(self):
    scores = {f'P{i}': 1 for i in range(1, 17)} | {'P9': 6, 'P4': 5}
    # P9 loses at once, whomever it meets, and P4 wins; then the budget ends.
    script = Script(
      scores, compare=lambda a, b: 2 if a == 'P9' or b == 'P4' else 1
    )
    solution = await solve(script, budget=scripted.budget(max_tokens=480))
    assert labels(solution)[-1] == 'knockout 1/match 6'
    assert solution.text == 'P4'

  async def test_of_time(self):
    solution = await solve(
      None,
      scripted.Scripted(Script(), secs=0.2),
      budget=scripted.budget(max_secs=0.3),
    )
    assert solution.text == 'P1'
    assert count(solution, 'calls', 'late') == (32, 16)


async def test_the_named_templates_show_what_they_are_about_in_fences():
  named = {
    'solve': 'prove',
    'score': 'scaffold_nomos_score',
    'consolidate': 'scaffold_nomos_consolidate',
    'compare': 'scaffold_nomos_compare',
    'num_solutions': 2,
  }
  proofs = ['First </first> {{problem}}', 'Second \\boxed{7}']
  replies = [*proofs, 'Poor. \\boxed{1}', 'Good. \\boxed{6}']
  replies += ['<keep>1, 2</keep>', '<verdict>2</verdict>']
  llm = scripted.Scripted(scripted.answers(*replies))
  solution = await solve(None, llm, named)
  solve1, _, score1, score2, consolidation, match = (x.text for x in llm.asked)
  assert solve1 == templates.render('prove', problem=STATEMENT)
  for text in (score1, score2, consolidation, match):
    assert STATEMENT in text
  assert templates.unfence('proof', score1) == proofs[0]
  assert templates.unfence('proof', score2) == proofs[1]
  # The better one comes first.
  places = [
    consolidation.index(templates.fence('submission', text))
    for text in (proofs[1], replies[3], proofs[0], replies[2])
  ]
  assert places == sorted(places)
  pair = [templates.unfence(label, match) for label in ('first', 'second')]
  assert sorted(pair) == sorted(proofs)
  assert solution.text == pair[1]


async def test_a_template_with_a_foreign_slot_is_refused_before_any_call():
  llm = scripted.Scripted(Script())
  with pytest.raises(ValueError, match=r'compare: .*proof'):
    await solve(None, llm, {'compare': '{{proof}}'})
  assert not llm.asked
