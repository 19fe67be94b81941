"""Reasoning cache: reason, sum up, and reason again from the summary.

A turn is given the problem and a summary of the turns before, and none of their
text, so that a model whose context holds one attempt can work on a problem for
many (Wu, Qu, Setlur and Kumar, arXiv 2602.03773).

  state 0      no summary
  state t + 1  the summary of state t and of what was thought in the turn from
               it, before the think block closes

Training starts its rollouts from such states (qed/unrolling.py), and `solve`
plays all turns; both make their states with `unroll` and their prompts with
`reason_messages`, so that what is trained is what is used.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

from qed.data import templates
from qed.scaffolds import budget, calls, prompts
from qed.types import CacheState, Llm, Message, Problem, Solution

# The state that a turn starts from -> all that the model wrote.
Reason = Callable[[CacheState], Awaitable[str]]
# The state, and what was thought in the turn from it -> a summary of both;
# None or '': there is none.
Summarize = Callable[[CacheState, str], Awaitable[str | None]]
Mode = Literal['replace', 'append']

_THINK_START, _THINK_END = '<think>', '</think>'


def first_state(problem: Problem) -> CacheState:
  """Returns the state of the first turn, which has no summary."""
  return CacheState(problem=problem, turn=0, summary='')


async def unroll(
  first: CacheState,
  reason: Reason,
  summarize: Summarize,
  *,
  num_turns: int,
  mode: Mode,
) -> list[CacheState]:
  """Plays some turns.

  A turn in which nothing was thought is not summed up; where there is no
  summary, the old one stays.

  Args:
    first: where the first of the turns starts.
    reason: plays a turn.
    summarize: sums up. It is given what was written before the first
      `</think>`, which is all of it where there is none; the answer only of a
      model that wrote nothing before.
    num_turns: from `first` on.
    mode: whether a summary replaces the old one or is appended to it.

  Returns:
    `num_turns + 1` states, `first` among them.
  """
  states = [first]
  for _ in range(num_turns):
    before = states[-1]
    thoughts = _thoughts(await reason(before))
    added = await summarize(before, thoughts) if thoughts else None
    summary = (added or '').strip()
    if not summary:
      summary = before.summary
    elif mode == 'append':
      summary = f'{before.summary}\n\n{summary}'.strip()
    states.append(
      CacheState(problem=before.problem, turn=before.turn + 1, summary=summary)
    )
  return states


def reason_messages(config: Any, state: CacheState) -> tuple[Message, ...]:
  """Returns the prompt of a turn.

  Args:
    config: a ReasoningCacheConfig.
    state: where the turn starts.

  Raises:
    ValueError: the template has a slot that is not offered (`check`).
  """
  return prompts.user(
    config.reason_prompt,
    problem=state.problem.statement,
    **_quote('summary', state.summary),
  )


def summarize_messages(
  config: Any, state: CacheState, reasoning: str
) -> tuple[Message, ...]:
  """Returns the prompt for a summary.

  Args:
    config: a ReasoningCacheConfig.
    state: where the turn started.
    reasoning: what was thought in it.

  Raises:
    ValueError: the template has a slot that is not offered (`check`).
  """
  return prompts.user(
    config.summarize_prompt,
    problem=state.problem.statement,
    **_quote('summary', state.summary),
    **_quote('reasoning', reasoning),
  )


def check(config: Any) -> None:
  """Refuses templates without which there is no reasoning cache.

  Args:
    config: a ReasoningCacheConfig.

  Raises:
    ValueError: a template does not have the slots problem and summary (the
      second one also reasoning), has others, or does not exist. A summary or
      reasoning is put between markers, or as it is: {{summary_verbatim}}.
  """
  needed = {
    'reason_prompt': ('problem', 'summary'),
    'summarize_prompt': ('problem', 'summary', 'reasoning'),
  }
  prompts.check(config, needed)
  for field, names in needed.items():
    slots = templates.slots(getattr(config, field))
    for name in names:
      verbatim = () if name == 'problem' else (f'{name}_verbatim',)
      if not {name, *verbatim} & {*slots}:
        raise ValueError(
          f'{field}: expected a template with a slot {{{{{name}}}}}, got one '
          f'with {list(slots)}'
        )


async def solve(
  problem: Problem, llm: Llm | dict[str, Llm], config: calls.Setup
) -> Solution:
  """Plays T turns: T calls of the role 'solver', T - 1 of 'summarizer'.

  The answer is that of the last turn. Where that was cut off or has none, it is
  that of the latest turn whose answer is complete, else the latest answer that
  was cut off; both are counted as 'earlier_answers'.

  Args:
    problem: what is asked.
    llm: of all roles, or of each.
    config: its `scaffold` is a ReasoningCacheConfig.
  """
  cache = config.scaffold
  asked = calls.Calls(problem, llm, config)
  answers: list[calls.Answer] = []

  async def reason(state: CacheState) -> str:
    answer = await asked.ask(
      'solver',
      reason_messages(cache, state),
      label=f'turn {state.turn + 1}/reason',
      kind='cached' if state.summary else 'plain',
      turn=state.turn,
    )
    answers.append(answer)
    return answer.completion.text if answer.completion else ''

  async def summarize(state: CacheState, reasoning: str) -> str | None:
    answer = await asked.ask(
      'summarizer',
      summarize_messages(cache, state, reasoning),
      label=f'turn {state.turn + 1}/summarize',
      sampling=cache.summary,
      turn=state.turn,
    )
    if answer.text is None:
      asked.remark(answer, 'missing_summaries')
    return answer.text

  try:
    *_, last = await unroll(
      first_state(problem),
      reason,
      summarize,
      num_turns=cache.num_turns - 1,
      mode=cache.mode,
    )
    await reason(last)
  except budget.OutOfBudget:
    asked.count('out_of_budget')
  best = _best(answers)
  if best is not None and best is not answers[-1]:
    asked.remark(best, 'earlier_answers')
  return asked.solution(best.text if best else None)


def _thoughts(written: str) -> str:
  """What stands before the think block closes; if nothing does, the rest.

  The second is for models that do not think before they answer.
  """
  before, _, after = written.partition(_THINK_END)
  return before.strip().removeprefix(_THINK_START).strip() or after.strip()


def _best(answers: list[calls.Answer]) -> calls.Answer | None:
  """The latest answer that is complete, else the latest, if there is any."""
  found = [answer for answer in answers if answer.text is not None]
  complete = [answer for answer in found if not answer.is_truncated]
  return (complete or found or [None])[-1]


def _quote(slot: str, text: str) -> dict[str, str]:
  """Both forms of a text; of none, nothing, not an empty fence."""
  return (
    prompts.quote(slot, text) if text else {slot: '', f'{slot}_verbatim': ''}
  )
