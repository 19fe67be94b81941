"""One call, and what becomes of it."""

import pytest

from qed import config
from qed.scaffolds import single
from qed.scaffolds.calls import CallError
from tests.scaffolds import scripted
from tests.scaffolds.scripted import PROBLEM, Down, Scripted, cut

SINGLE = config.SingleConfig(solve='Prove: {{problem}}')


@pytest.mark.parametrize(
  ('given', 'text'), [('A proof.', 'A proof.'), (cut('A pr'), 'A pr'), ('', '')]
)
async def test_the_answer_is_the_solution(given, text):
  llm = Scripted(lambda asked: given)
  solution = await single.solve(PROBLEM, llm, scripted.setup(SINGLE, attempt=2))
  assert (solution.text, solution.attempt) == (text, 2)
  assert [asked.text for asked in llm.asked] == ['Prove: Show that 1 = 1.']
  assert scripted.labels(solution) == ['solution']
  assert solution.usage['calls'] == 1


async def test_a_failed_call_is_no_solution():
  with pytest.raises(CallError):
    await single.solve(
      PROBLEM, Scripted(lambda asked: Down()), scripted.setup(SINGLE)
    )


async def test_without_budget_there_is_no_call():
  llm = Scripted(lambda asked: 'x')
  setup = scripted.setup(SINGLE, budget=scripted.budget(max_tokens=99))
  solution = await single.solve(PROBLEM, llm, setup)
  assert (solution.text, llm.asked) == ('', [])
  assert scripted.count(solution, 'calls', 'refused') == (0, 1)


async def test_an_unknown_slot_is_told_before_the_call():
  llm = Scripted(lambda asked: 'x')
  wrong = config.SingleConfig(solve='Prove: {{statement}}')
  with pytest.raises(ValueError, match=r'solve: .*\{\{statement\}\}'):
    await single.solve(PROBLEM, llm, scripted.setup(wrong))
  assert llm.asked == []
