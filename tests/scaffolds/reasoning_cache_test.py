"""The turns of a reasoning cache, against a scripted model."""

import asyncio
import dataclasses

import numpy as np
import pytest

from experiments import base
from qed import config, preparation
from qed.config import ReasoningCacheConfig, SamplingConfig
from qed.data import templates
from qed.scaffolds import calls, reasoning_cache
from qed.types import CacheState
from tests.scaffolds import scripted
from tests.scaffolds.scripted import PROBLEM, cut


def make_config(**changes):
  return ReasoningCacheConfig(
    **{
      'num_turns': 3,
      'mode': 'replace',
      'reason_prompt': 'Solve {{problem}} {{summary_verbatim}}',
      'summarize_prompt': (
        'Sum up {{problem}} {{summary_verbatim}} {{reasoning_verbatim}}'
      ),
      'summary': SamplingConfig(
        temperature=0.7, top_p=0.8, top_k=20, max_tokens=7
      ),
      **changes,
    }
  )


def solve(llm, *, style='thinking', max_tokens=0, **changes):
  setup = calls.Setup(
    scaffold=make_config(**changes),
    sampling=scripted.SAMPLING,
    budget=dataclasses.replace(scripted.NO_LIMIT, max_tokens=max_tokens),
    style=style,
  )
  return asyncio.run(reasoning_cache.solve(PROBLEM, llm, setup))


def model(*replies):
  return scripted.Scripted(scripted.answers(*replies))


def turn(number, *, answer=True):
  text = f'thought {number}'
  return f'{text}</think>proof {number}' if answer else cut(text)


@pytest.mark.parametrize('num_turns', [1, 2, 3, 7])
def test_t_turns_are_2t_minus_1_calls(num_turns):
  replies = []
  for number in range(num_turns):
    replies += [turn(number), 'notes</think>notes']
  llm = model(*replies)
  solution = solve(llm, num_turns=num_turns)
  assert len(llm.asked) == 2 * num_turns - 1 == solution.usage['calls']
  assert solution.text == f'proof {num_turns - 1}'


def test_every_call_is_asked_exactly_this():
  llm = model(turn(0), '</think>notes 1', turn(1), '</think>notes 2', turn(2))
  solution = solve(llm)
  problem = PROBLEM.statement
  assert [asked.text for asked in llm.asked] == [
    f'Solve {problem} ',
    f'Sum up {problem}  thought 0',
    f'Solve {problem} notes 1',
    f'Sum up {problem} notes 1 thought 1',
    f'Solve {problem} notes 2',
  ]
  assert [call.params.max_tokens for call in llm.asked] == [100, 7] * 2 + [100]
  assert [call.params.top_k for call in llm.asked] == [0, 20] * 2 + [0]
  assert len({call.params.seed for call in llm.asked}) == 5
  assert [entry['label'] for entry in solution.trace] == [
    'turn 1/reason',
    'turn 1/summarize',
    'turn 2/reason',
    'turn 2/summarize',
    'turn 3/reason',
  ]


def test_roles_have_models_of_their_own():
  solver = model(turn(0), turn(1))
  summarizer = model('</think>notes')
  solution = solve({'solver': solver, 'summarizer': summarizer}, num_turns=2)
  assert solution.text == 'proof 1'
  assert (len(solver.asked), len(summarizer.asked)) == (2, 1)


@pytest.mark.parametrize(
  ('written', 'shown'),
  [
    ('thought</think>proof', 'thought'),
    ('<think>thought</think>proof', 'thought'),
    ('thought</think>proof</think>again', 'thought'),  # The first one closes.
    ('thought', 'thought'),
    ('</think>proof', 'proof'),  # Of a model that does not think before.
    (cut('thou'), 'thou'),
  ],
)
def test_a_summary_is_of_what_stands_before_the_think_block_closes(
  written, shown
):
  llm = model(written, '</think>notes', turn(1))
  solve(
    llm,
    num_turns=2,
    summarize_prompt='{{problem}}{{summary}}|{{reasoning_verbatim}}',
  )
  assert llm.asked[1].text.partition('|')[2] == shown


@pytest.mark.parametrize(
  ('mode', 'second'), [('replace', 'two'), ('append', 'one\n\ntwo')]
)
def test_a_summary_replaces_the_old_one_or_is_appended(mode, second):
  llm = model(turn(0), '</think>one', turn(1), '</think>two', turn(2))
  solve(llm, mode=mode)
  problem = PROBLEM.statement
  assert llm.asked[4].text == f'Solve {problem} {second}'
  assert llm.asked[3].text == f'Sum up {problem} one thought 1'


def test_where_there_is_no_summary_the_old_one_stays():
  llm = model(turn(0), '</think>one', turn(1), cut('still thinking'), turn(2))
  solution = solve(llm)
  assert llm.asked[4].text == f'Solve {PROBLEM.statement} one'
  assert solution.usage['missing_summaries'] == 1


@pytest.mark.parametrize('mode', ['replace', 'append'])
@pytest.mark.parametrize('missing', [None, '', ' \n'])
def test_a_missing_summary_changes_nothing(missing, mode):
  async def reason(state):
    return 'thought</think>proof'

  async def summarize(state, thoughts):
    return missing if state.turn else 'one'

  first = reasoning_cache.first_state(PROBLEM)
  states = asyncio.run(
    reasoning_cache.unroll(first, reason, summarize, num_turns=2, mode=mode)
  )
  assert [state.summary for state in states] == ['', 'one', 'one']
  assert [state.turn for state in states] == [0, 1, 2]


def test_a_summary_that_was_cut_off_is_used_as_far_as_it_goes():
  llm = model(turn(0), cut('hm</think>half a summ'), turn(1))
  solution = solve(llm, num_turns=2)
  assert llm.asked[2].text == f'Solve {PROBLEM.statement} half a summ'
  assert 'missing_summaries' not in solution.usage


def test_a_prompt_says_of_which_kind_and_turn_it_is():
  llm, prompts = model(turn(0), '</think>notes', turn(1)), []

  class Watched:
    async def sample(self, prompt, params, *, n=1):
      prompts.append(prompt)
      return await llm.sample(prompt, params, n=n)

  solve(Watched(), num_turns=2)
  assert [(prompt.kind, prompt.turn) for prompt in prompts] == [
    ('plain', 0),
    ('plain', 0),
    ('cached', 1),
  ]


def test_a_summary_without_a_think_block_is_read_whole_in_other_styles():
  llm = model('thought', 'notes', 'proof')
  solution = solve(llm, style='instruct', num_turns=2)
  assert llm.asked[2].text == f'Solve {PROBLEM.statement} notes'
  assert solution.text == 'proof'


def test_a_last_turn_that_was_cut_off_falls_back_to_the_latest_answer():
  llm = model(turn(0), '</think>x', turn(1), '</think>x', turn(2, answer=False))
  solution = solve(llm)
  assert solution.text == 'proof 1'
  assert solution.usage['earlier_answers'] == 1
  assert solution.usage['truncated'] == 1


def test_a_complete_answer_is_better_than_a_later_one_that_was_cut_off():
  llm = model(turn(0), '</think>x', cut('thought</think>proo'))
  assert solve(llm, num_turns=2).text == 'proof 0'
  llm = model(turn(0, answer=False), '</think>x', cut('thought</think>proo'))
  assert solve(llm, num_turns=2).text == 'proo'


def test_no_answer_at_all_is_an_empty_one():
  llm = model(turn(0, answer=False), '</think>x', turn(1, answer=False))
  solution = solve(llm, num_turns=2)
  assert solution.text == ''
  assert 'earlier_answers' not in solution.usage


def test_at_the_end_of_the_budget_the_best_so_far_is_the_answer():
  llm = model(turn(0), '</think>one', turn(1), '</think>two')
  # Each took 10 tokens, and the next turn may take 100 more.
  solution = solve(llm, max_tokens=139)
  assert solution.text == 'proof 1'
  assert solution.usage['out_of_budget'] == 1
  assert len(llm.asked) == 4


# Templates.


def test_an_empty_summary_leaves_no_marker():
  first = reasoning_cache.first_state(PROBLEM)
  given = make_config(reason_prompt='{{problem}}\n{{summary}}\n')
  (message,) = reasoning_cache.reason_messages(given, first)
  assert message.content == f'{PROBLEM.statement}\n\n'
  later = dataclasses.replace(first, turn=1, summary='</summary>')
  (message,) = reasoning_cache.reason_messages(given, later)
  assert templates.unfence('summary', message.content) == '‹/summary>'


def test_the_shipped_prompts_have_what_they_need():
  cache = config.build(base.grpo_rc()).cache
  reasoning_cache.check(cache)
  state = CacheState(problem=PROBLEM, turn=1, summary='NOTES')
  (message,) = reasoning_cache.reason_messages(cache, state)
  assert PROBLEM.statement in message.content
  assert 'NOTES' in message.content
  (message,) = reasoning_cache.summarize_messages(cache, state, 'THOUGHTS')
  for part in (PROBLEM.statement, 'NOTES', 'THOUGHTS'):
    assert part in message.content


@pytest.mark.parametrize(
  ('changes', 'word'),
  [
    ({'reason_prompt': '{{problem}}'}, 'summary'),
    ({'reason_prompt': '{{summary}} only'}, 'problem'),
    ({'reason_prompt': '{{problem_verbatim}} {{summary}}'}, 'problem'),
    ({'reason_prompt': '{{problem}}{{summary}}{{reasoning}}'}, 'reasoning'),
    ({'summarize_prompt': '{{problem}}{{summary}}'}, 'reasoning'),
    ({'summarize_prompt': 'cache_sumarize'}, 'cache_summarize'),
  ],
)
def test_a_template_that_lacks_or_adds_a_slot_is_refused(changes, word):
  with pytest.raises(ValueError, match=word):
    reasoning_cache.check(make_config(**changes))


class Words:
  """A tokenizer of characters."""

  def __init__(self):
    control = ('<|im_start|>', '<|im_end|>', '<think>', '</think>')
    self.special_ids = {text: number for number, text in enumerate(control)}

  def encode(self, text):
    return np.array([10 + ord(c) for c in text], np.int32)


@pytest.mark.parametrize('summary', ['', 'notes of <b> {{problem}}'])
def test_training_and_evaluation_ask_the_same(summary):
  """Character for character, at the first turn and at later ones."""
  run = config.build(base.grpo_rc())

  state = CacheState(problem=PROBLEM, turn=3, summary=summary)
  trained = preparation.state_prompt(run, Words(), state)
  llm = model(turn(0), f'</think>{summary or " "}', turn(1))
  evaluated = base.grpo_rc().cache.to_dict() | {'num_turns': 2}
  evaluated['summary'] = SamplingConfig(**evaluated['summary'])
  solve(llm, **evaluated)
  asked = llm.asked[2].text if summary else llm.asked[0].text
  assert trained.messages[0].content == asked
  assert trained.turn == 3
  assert trained.kind == ('cached' if summary else 'plain')
