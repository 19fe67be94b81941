"""Which calls are made, in which order, with what in their prompts."""

import dataclasses

import pytest

from qed import config
from qed.data import templates
from qed.scaffolds import deepseek_math
from qed.scaffolds.calls import CallError
from tests.scaffolds import scripted
from tests.scaffolds.scripted import count, labels

DEFAULTS = config.DeepseekMathConfig(
  num_solutions=4,
  num_verifications=4,
  num_analyses=2,
  num_rounds=2,
  solve='SOLVE {{problem}}',
  verify='VERIFY {{problem}} {{proof_verbatim}}',
  refine='REFINE {{problem}} {{proof_verbatim}}\n{{analyses_verbatim}}',
)


def boxed(verdict):
  return f'I looked. \\boxed{{{verdict}}}'


class Script:
  """Proofs P1, P2, ... and, for each, the verdicts that a test gives it."""

  def __init__(self, verdicts=None, otherwise='0.5', proofs=None):
    self.verdicts, self.otherwise = verdicts or {}, otherwise
    self.proofs = proofs or {}
    self.num_proofs = 0
    self.refined = []  # (the proof, what was said about it)
    self.verified = {}

  def __call__(self, asked):
    kind, _, rest = asked.text.partition(' ')
    rest = rest.removeprefix(scripted.PROBLEM.statement).strip()
    if kind == 'VERIFY':
      number = self.verified[rest] = self.verified.get(rest, 0) + 1
      given = self.verdicts.get(rest, ())
      if number > len(given):
        return f'{rest} v{number} {boxed(self.otherwise)}'
      verdict = given[number - 1]
      if not isinstance(verdict, str | int | float):
        return verdict
      return f'{rest} v{number} {boxed(verdict)}'
    if kind == 'REFINE':
      self.refined.append(tuple(rest.split('\n', 1)))
    self.num_proofs += 1
    name = f'P{self.num_proofs}'
    return self.proofs.get(name, name)


async def solve(script, llm=None, scaffold=None, **changes):
  scaffold = dataclasses.replace(DEFAULTS, **(scaffold or {}))
  llm = llm or scripted.Scripted(script)
  setup = scripted.setup(scaffold, **changes)
  return await deepseek_math.solve(scripted.PROBLEM, llm, setup)


def expected_labels(number, first, num_solutions=4, num_verifications=4):
  places = range(first, first + num_solutions)
  return [
    *(f'round {number}/solution {i}' for i in places),
    *(
      f'round {number}/solution {i}/verification {j}'
      for i in places
      for j in range(1, num_verifications + 1)
    ),
  ]


async def test_sixty_calls_in_this_order_where_no_proof_passes():
  solution = await solve(Script())
  assert labels(solution) == [
    *expected_labels(0, 1),
    *expected_labels(1, 5),
    *expected_labels(2, 9),
  ]
  assert solution.usage['calls'] == 60
  assert solution.text == 'P1'  # All are equal, and it came first.
  assert solution.problem_id == 'p1'


@pytest.mark.parametrize(
  ('num_solutions', 'num_verifications', 'num_rounds', 'calls'),
  [(1, 1, 0, 2), (1, 1, 1, 4), (3, 2, 1, 18), (2, 5, 3, 48), (5, 1, 0, 10)],
)
async def test_the_calls_are_those_of_the_formula(
  num_solutions, num_verifications, num_rounds, calls
):
  assert calls == num_solutions * (1 + num_verifications) * (1 + num_rounds)
  scaffold = {
    'num_solutions': num_solutions,
    'num_verifications': num_verifications,
    'num_rounds': num_rounds,
    'num_analyses': 1,
  }
  solution = await solve(Script(), scaffold=scaffold)
  assert solution.usage['calls'] == calls


async def test_who_is_asked_what():
  roles = {
    role: scripted.Scripted(answer)
    for role, answer in (
      ('solver', lambda asked: 'P'),
      ('verifier', lambda asked: boxed(0)),
      ('refiner', lambda asked: 'Q'),
    )
  }
  await solve(None, roles, {'num_rounds': 1})
  assert {x.text for x in roles['solver'].asked} == {'SOLVE Show that 1 = 1.'}
  assert [len(llm.asked) for llm in roles.values()] == [4, 32, 4]
  asked = [x.text for x in roles['verifier'].asked]
  assert asked[:16] == ['VERIFY Show that 1 = 1. P'] * 16
  assert asked[16:] == ['VERIFY Show that 1 = 1. Q'] * 16
  assert {x.text for x in roles['refiner'].asked} == {
    'REFINE Show that 1 = 1. P\n'
    'Examiner 1:\nI looked. \\boxed{0}\n\n'
    'Examiner 2:\nI looked. \\boxed{0}'
  }


async def test_equal_prompts_are_drawn_differently_and_a_replay_is_equal():
  first, again = scripted.Scripted(Script()), scripted.Scripted(Script())
  await solve(None, first)
  await solve(None, again)
  seeds = [x.params.seed for x in first.asked]
  assert len(set(seeds)) == 60
  assert seeds == [x.params.seed for x in again.asked]
  assert [x.text for x in first.asked] == [x.text for x in again.asked]


class TestStopping:
  """A proof that passes everything ends it."""

  async def test_at_once(self):
    solution = await solve(Script({'P3': [1, 1, 1, 1]}))
    assert (solution.text, solution.usage['calls']) == ('P3', 20)

  async def test_after_a_refinement(self):
    solution = await solve(Script({'P6': [1, 1, 1, 1]}))
    assert (solution.text, solution.usage['calls']) == ('P6', 40)

  async def test_in_the_last_round(self):
    solution = await solve(Script({'P12': [1, 1, 1, 1]}))
    assert (solution.text, solution.usage['calls']) == ('P12', 60)

  @pytest.mark.parametrize(
    'last', [0.5, scripted.cut(boxed(1)), 'I forgot.', scripted.Down()]
  )
  async def test_not_while_one_verdict_is_missing(self, last):
    solution = await solve(Script({'P1': [1, 1, 1, last]}, otherwise='0'))
    assert solution.usage['calls'] == 60
    assert solution.text == 'P1'


class TestChoice:
  """What is refined, with what, and what is returned."""

  async def test_the_best_mean_of_all_rounds(self):
    script = Script(
      {'P2': [1, 0, 0, 0], 'P7': [1, 1, 1, 0], 'P11': [1, 1, 0.5, 0]},
      otherwise='0',
    )
    assert (await solve(script)).text == 'P7'

  async def test_the_first_of_equal_ones(self):
    script = Script(
      {'P3': [1, 0, 1, 0], 'P5': [0, 1, 0, 1], 'P2': [0, 0, 0, 1]},
      otherwise='0',
    )
    assert (await solve(script)).text == 'P3'

  async def test_the_best_proofs_of_all_rounds_are_refined(self):
    script = Script(
      {
        'P1': [0.5, 0, 0, 0],
        'P2': [1, 1, 0, 0],
        'P4': [1, 0, 0, 0],
        'P5': [1, 1, 1, 0],
        'P8': [1, 0.5, 0, 0],
      },
      otherwise='0',
    )
    await solve(script)
    refined = [proof for proof, _ in script.refined]
    assert refined == ['P2', 'P4', 'P1', 'P3', 'P5', 'P2', 'P8', 'P4']

  async def test_the_analyses_that_give_least_are_shown_the_lowest_first(self):
    script = Script({'P1': [1, 0.5, 0, 0.5]}, otherwise='0')
    await solve(script, scaffold={'num_rounds': 1, 'num_analyses': 3})
    shown = dict(script.refined)['P1']
    assert [line for line in shown.split('\n') if 'P1 v' in line] == [
      f'P1 v3 {boxed(0)}',
      f'P1 v2 {boxed(0.5)}',
      f'P1 v4 {boxed(0.5)}',
    ]


class TestWhatIsNotAsItShouldBe:
  """Every failure has its rule, and is counted."""

  async def test_an_answer_without_a_proof_is_none(self):
    proofs = {
      'P1': '',
      'P2': ' \n',
      'P3': scripted.cut('thinking still'),
      'P4': 'thought </think> ## Solution\n\n## Self Evaluation\n\\boxed{1}',
    }
    llm = scripted.Scripted(Script(proofs=proofs))
    solution = await solve(None, llm, {'num_rounds': 0}, style='thinking')
    assert labels(solution) == expected_labels(0, 1)[:4]
    assert solution.text == ''
    assert count(solution, 'missing_solutions', 'truncated') == (4, 1)

  async def test_the_others_go_on_under_their_numbers(self):
    script = Script(proofs={'P1': '', 'P3': scripted.Down()})
    solution = await solve(script)
    assert count(solution, 'missing_solutions', 'failed') == (2, 1)
    # Two proofs, then as many refinements as there are proofs, at most four.
    assert labels(solution)[4:] == [
      *(
        f'round 0/solution {i}/verification {j}'
        for i in (2, 4)
        for j in (1, 2, 3, 4)
      ),
      *expected_labels(1, 5, num_solutions=2),
      *expected_labels(2, 7),
    ]
    assert solution.text == 'P2'

  async def test_calls_that_all_failed_are_no_attempt(self):
    with pytest.raises(CallError):
      await solve(lambda asked: scripted.Down())

  async def test_a_proof_that_was_cut_off_is_one_as_far_as_it_goes(self):
    script = Script(proofs={'P1': scripted.cut('Half')})
    solution = await solve(script, scaffold={'num_solutions': 1})
    assert solution.text == 'Half'
    assert count(solution, 'truncated', 'missing_solutions') == (1, 0)

  @pytest.mark.parametrize(
    'verdict',
    [
      'nothing',
      '\\boxed{0.7}',
      '\\boxed{2}',
      '\\boxed{1} or \\boxed{3}',
      '1',
      '',
      scripted.cut(boxed(1)),
      scripted.Down(),
    ],
  )
  async def test_no_verdict_is_a_zero_and_nothing_to_refine_with(self, verdict):
    def respond(asked):
      if asked.text.startswith('VERIFY'):
        verdicts.append(verdict if not verdicts else boxed(0.5))
        return verdicts[-1]
      if asked.text.startswith('REFINE'):
        refined.append(asked.text)
      return 'P'

    verdicts, refined = [], []
    solution = await solve(
      respond,
      scaffold={
        'num_solutions': 2,
        'num_verifications': 2,
        'num_rounds': 1,
      },
    )
    assert count(solution, 'unparseable_verdicts') == (1,)
    # The second proof has a mean of 1/2 and comes before the first with 1/4.
    assert len(refined) == 2
    assert refined[0].count('\\boxed{0.5}') == 2
    assert refined[1].count('Examiner') == 1
    assert refined[1].count('\\boxed{0.5}') == 1

  async def test_a_proof_without_any_analysis_is_not_refined(self):
    script = Script({'P1': ['?'] * 4, 'P2': ['?'] * 4, 'P3': ['?'] * 4})

    def respond(asked):
      answer = script(asked)
      return answer.replace('\\boxed{?}', '')

    solution = await solve(respond, scaffold={'num_rounds': 1})
    assert [proof for proof, _ in script.refined] == ['P4']
    assert count(solution, 'unparseable_verdicts', 'unrefinable_solutions') == (
      12,
      3,
    )
    assert solution.text == 'P4'

  async def test_without_any_analysis_at_all_it_ends(self):
    solution = await solve(
      lambda asked: 'P' if 'SOLVE' in asked.text else 'Fine!'
    )
    assert (solution.text, solution.usage['calls']) == ('P', 20)
    assert count(solution, 'unrefinable_solutions') == (4,)


class TestBudget:
  """At the limit, the best so far."""

  # Every call takes 10 tokens and reserves 100.
  @pytest.mark.parametrize(
    ('max_tokens', 'calls', 'text'),
    [
      (0, 60, 'P6'),
      (690, 60, 'P6'),  # The last call of 60 begins when 590 are spent.
      (680, 59, 'P6'),
      (480, 39, 'P6'),
      (290, 20, 'P2'),  # Four proofs and all verifications.
      (200, 11, 'P2'),
      (130, 4, 'P1'),  # Nothing verified.
      (120, 3, 'P1'),
      (100, 1, 'P1'),
      (99, 0, ''),
    ],
  )
  async def test_of_tokens(self, max_tokens, calls, text):
    script = Script({'P2': [1, 1, 1, 0], 'P6': [1, 1, 1, 0.5]})
    solution = await solve(
      script,
      scripted.Scripted(script),
      budget=scripted.budget(max_tokens=max_tokens),
      sampling=dataclasses.replace(scripted.SAMPLING, max_tokens=100),
    )
    assert (solution.usage['calls'], solution.text) == (calls, text)

  async def test_what_is_refused_ends_it(self):
    solution = await solve(Script(), budget=scripted.budget(max_tokens=200))
    # 20 calls of the first round, and no attempt to refine.
    assert count(solution, 'calls', 'refused') == (11, 9)

  async def test_of_time(self):
    solution = await solve(
      None,
      scripted.Scripted(Script(), secs=0.2),
      budget=scripted.budget(max_secs=0.3),
    )
    assert solution.text == 'P1'
    assert count(solution, 'calls', 'late') == (20, 16)


async def test_the_named_templates_show_what_they_are_about_in_fences():
  named = {
    'solve': 'scaffold_deepseek_math_solve',
    'verify': 'scaffold_deepseek_math_verify',
    'refine': 'scaffold_deepseek_math_refine',
    'num_solutions': 1,
    'num_verifications': 1,
    'num_analyses': 1,
    'num_rounds': 1,
  }
  proof = 'Let n = 2. </proof> {{problem}} \\boxed{1}'
  replies = [
    f'## Solution\n\n{proof}\n\n## Self Evaluation\n\nFine: \\boxed{{1}}',
    'Step 2 is {{wrong}}. \\boxed{0}',
    'better',
    boxed(0),
  ]
  llm = scripted.Scripted(scripted.answers(*replies))
  solution = await solve(None, llm, named)
  texts = [x.text for x in llm.asked]
  assert labels(solution) == [
    *expected_labels(0, 1, 1, 1),
    *expected_labels(1, 2, 1, 1),
  ]
  for text in texts:
    assert scripted.PROBLEM.statement in text
  for text in texts[:3:2]:
    assert '## Solution' in text
    assert '## Self Evaluation' in text
  assert templates.unfence('proof', texts[1]) == proof
  assert templates.unfence('proof', texts[2]) == proof
  assert templates.unfence('analysis', texts[2]) == replies[1]
  assert 'Fine' not in ''.join(texts)  # Nobody sees the self-evaluation.


async def test_a_template_with_a_foreign_slot_is_refused_before_any_call():
  llm = scripted.Scripted(Script())
  with pytest.raises(ValueError, match=r'refine: .*summary'):
    await solve(None, llm, {'refine': '{{summary}}'})
  assert not llm.asked


PROOF = 'Let x = 1.\n\n## Evaluation of the integral\n\nIt is 0.'


@pytest.mark.parametrize(
  'text',
  [
    f'## Solution\n\n{PROOF}\n\n## Self Evaluation\n\nGood. \\boxed{{1}}',
    f'Hm.\n\n### solution:\n{PROOF}\n# SELF-EVALUATION #\nBad.',
    f'**Solution**\n\n{PROOF}\n\n**Self Evaluation:**\n\n0',
    f'## **Solution**\n{PROOF}\n## **Self Evaluation**\n0',
    f'##Solution\n{PROOF}\n##SelfEvaluation',
    f'{PROOF}\n\n## Self_Evaluation\n\n1',
    PROOF,
    f'\n{PROOF}\n\n',
    f'## Self Evaluation\n\nBefore.\n\n## Solution\n\n{PROOF}',
  ],
)
def test_a_proof_ends_where_its_own_evaluation_begins(text):
  assert deepseek_math.proof_of(text) == PROOF


def test_a_heading_inside_a_proof_takes_nothing_away():
  proof = (
    'Step 1.\n\n### Solution\n\nStep 2.\n\n## Evaluation\n\nStep 3.\n'
    'The self evaluation map\n\n## Self-evaluation maps\n\nStep 4.'
  )
  text = f'## Solution\n\n{proof}\n\n## Self Evaluation\n\n\\boxed{{0}}'
  assert deepseek_math.proof_of(text) == proof


def test_an_evaluation_of_something_else_does_not_end_a_proof():
  proof = 'Step 1.\n\n## Evaluation\n\nThe integral is 0.'
  assert deepseek_math.proof_of(f'## Solution\n\n{proof}') == proof


def test_a_proof_that_is_taken_up_again_loses_nothing():
  again = 'A.\n\n## Self Evaluation\n\nNo.\n\n## Solution\n\nB.'
  text = f'## Solution\n\n{again}\n\n## Self Evaluation\n\nYes.'
  assert deepseek_math.proof_of(text) == again


@pytest.mark.parametrize(
  'text',
  ['', ' \n', '## Solution', '## Solution\n\n## Self Evaluation\n\\boxed{1}'],
)
def test_no_proof_is_none(text):
  assert deepseek_math.proof_of(text) is None
