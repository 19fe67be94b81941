r"""Removes what is no proof problem for a model that reads text alone.

Each filter looks at one item and returns the evidence, or '' where there is
none; the first filter of `FILTERS` that finds some gives the reason. They err
on the side of removal where a false alarm costs one problem of many, and every
removed item is on file with the evidence, so that a rule can be judged by what
it took.

Steps 1 and 2 of section 3 of the QED-Nano report; how they were done there was
not published.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from qed.curation import tex
from qed.curation.records import Item, Outcome

_IMAGE = re.compile(
  r'(?i)!\[[^\]]*\]\(|<img\b|<svg\b|\\includegraphics|\[/?(?:asy|img|attach)\b'
  r'|<asy>|\\begin\{(?:asy|tikzpicture|pspicture|figure)\}|\\(?:usetikz|draw)\b'
  r'|\.(?:png|jpe?g|gif|svg|webp)\b|data:image/|!\[\]|\[image'
)
_FIGURE = re.compile(
  r'(?i)\b(?:(?:see|as (?:shown|seen|depicted|drawn|illustrated)|refer to|'
  r'(?:shown|drawn|depicted|given|pictured|illustrated)) (?:in |on |by |at )?'
  r'(?:the |this |that )?(?:(?:attached|accompanying|adjoining|following|above|'
  r'below|adjacent) )?(?:figure|diagram|picture|image|drawing|sketch|graph '
  r'below)|(?:figure|diagram|picture|image|drawing) (?:below|above|shown|on '
  r'the (?:right|left))|in (?:the|this) (?:attached |adjoining |following )?'
  r'(?:figure|diagram|picture|image|drawing))\b'
)
_TOLD = re.compile(
  r'(?im)(?:^|[.\s(\[])(?:(?:the )?answers?|solution|ans|sol)\s*[:=]|\\boxed'
  r'|\[hide|\bspoiler\b'
)
_ASKS = re.compile(
  r'(?i)\b(?:find|determine|evaluate|compute|calculate|what|which|how many)\b'
)
_CHOICES = re.compile(r'\(?\\?(?:text|mathrm|textbf)?\{?\(?A\)(?=.*?B\).*?C\))')
_TASK = re.compile(
  r'(?i)\?|\b(?:prove|proof|show|find|determine|evaluate|compute|calculate|'
  r'solve|construct|decide|describe|verify|demonstrate|deduce|establish|'
  r'conclude|can|does|do|is|are|what|which|how|who|give|draw|characteri[sz]e|'
  r'demuestre|pruebe|maximi[sz]e|minimi[sz]e|maximum|minimum|disprove|explain|'
  r'justify|classify|identify|list|estimate|simplify|factor|express)\b'
)
_DOUBTFUL = re.compile(
  r'(?i)\b(?:please help|help me|thanks in advance|i think (?:the problem|'
  r"there is a typo|it'?s wrong)|(?:the )?problem is wrong|typo|any ideas?\?|"
  r"i am stuck|i'?m stuck|don'?t know how|sorry if|already posted|not sure if "
  r'(?:this|the problem))\b|\?\?\?'
)
_DEDUCTION = re.compile(
  r'(?i)\b(?:therefore|hence|thus|since|because|suppose|assume|contradict\w*|'
  r'prove[ds]?|proof|claim|lemma|implies|it follows|by induction|without loss|'
  r'w\.?l\.?o\.?g|note that|observe|consider|let|if|then|similarly|show)\b'
)
_DEDUCTION_TEX = re.compile(
  r'\\(?:implies|Rightarrow|Longrightarrow|therefore|because|iff)\b|⇒'
)
# What a statement that breaks off ends with.
_BREAKS_OFF = re.compile(
  r'(?:[,;(\[{\\]|\b(?:and|or|the|such that|that|of|let))$'
)


def filter_items(items: Iterable[Item], config: Any) -> Iterator[Outcome]:
  """Removes every item that a filter finds evidence against.

  Args:
    items: any number.
    config: a `qed.config.FiltersConfig`.
  """
  for item in items:
    for reason, find in FILTERS.items():
      evidence = find(item, config)
      if evidence:
        yield Outcome(item=item, reason=reason, detail=evidence)
        break
    else:
      yield Outcome(item=item)


def image(item: Item, config: Any) -> str:
  """A picture, the code of one, or words that point to one."""
  return _found(_IMAGE, item.statement) or _found(_FIGURE, item.statement)


def multiple_choice(item: Item, config: Any) -> str:
  """Answers to choose from."""
  return _found(_CHOICES, item.statement.replace('\n', ' '))


def short_statement(item: Item, config: Any) -> str:
  """Too few letters to pose a problem."""
  length = len(''.join(item.statement.split()))
  return f'{length} characters' if length < config.min_statement_chars else ''


def ill_posed(item: Item, config: Any) -> str:
  """No task, no end, or doubts about itself."""
  statement = item.statement.strip()
  if not _TASK.search(statement):
    return 'it asks for nothing'
  if _BREAKS_OFF.search(statement):
    return f'it breaks off: ...{statement[-40:]}'
  if statement.replace(r'\$', '').count('$') % 2:
    return 'a formula is not closed'
  return _found(_DOUBTFUL, statement)


def answer_in_statement(item: Item, config: Any) -> str:
  """The answer, or a mark that it follows, where the question is."""
  told = _found(_TOLD, item.statement)
  if told or not item.answer or not _ASKS.search(item.statement):
    return told
  answer = tex.spell(item.answer).replace(' ', '')
  statement = tex.spell(item.statement).replace(' ', '')
  # Shorter answers, like numbers, occur by chance.
  is_long = len(answer) >= config.min_answer_chars
  return (
    f'the answer {item.answer!r}' if is_long and answer in statement else ''
  )


def easy_contest(item: Item, config: Any) -> str:
  """One of the contests of which the problems are routine."""
  where = ' '.join([item.origin, *item.tags]).replace('_', ' ')
  for name in config.easy_contests:
    if re.search(rf'(?i)(?<![a-z]){re.escape(name)}(?![a-z])', where):
      return f'{name} in {where[:80]!r}'
  return ''


def no_solution(item: Item, config: Any) -> str:
  """Nothing to make a rubric from, where there is no rubric either."""
  return '' if item.solution.strip() or item.rubric else 'no solution'


def short_solution(item: Item, config: Any) -> str:
  """So few words that there was nothing to prove."""
  if not item.solution:
    return ''
  num_words = len(item.solution.split())
  return f'{num_words} words' if num_words < config.min_solution_words else ''


def computational(item: Item, config: Any) -> str:
  """A solution that reckons and never argues."""
  if not item.solution:
    return ''
  num_words = len(item.solution.split())
  num_steps = len(_DEDUCTION.findall(item.solution))
  num_steps += len(_DEDUCTION_TEX.findall(item.solution))
  if num_steps >= config.min_deduction_share * num_words:
    return ''
  return f'{num_steps} words of deduction in {num_words}'


# Reason -> filter, in the order in which they are asked.
FILTERS = {
  'short_statement': short_statement,
  'image': image,
  'multiple_choice': multiple_choice,
  'ill_posed': ill_posed,
  'answer_in_statement': answer_in_statement,
  'easy_contest': easy_contest,
  'no_solution': no_solution,
  'short_solution': short_solution,
  'computational': computational,
}


def _found(pattern: re.Pattern[str], text: str) -> str:
  """What a pattern found, with a little of what stands around it."""
  match = pattern.search(text)
  if match is None:
    return ''
  return ' '.join(text[max(0, match.start() - 20) : match.end() + 20].split())
