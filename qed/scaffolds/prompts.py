"""What a scaffold asks: templates, and other texts put into them.

A template is the name of a text in qed/data/texts or a text itself, and names
whichever it wants of the slots that its scaffold offers. What a model wrote
earlier is offered twice: `{{proof}}` stands between marker lines that it cannot
contain (`templates.fence`), so that it can neither give a verdict nor orders;
`{{proof_verbatim}}` is the same as it is, for a policy whose few tokens are too
dear for that.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

from qed import types
from qed.data import templates

_VERBATIM = '_verbatim'


def user(template: str, /, **fields: str) -> tuple[types.Message, ...]:
  """A prompt of one message.

  Args:
    template: a name or a text; its slots are some of the fields.
    **fields: what is offered.

  Raises:
    ValueError: the template has a slot that is not offered.
  """
  slots = templates.slots(template)
  offered = {name: fields[name] for name in slots if name in fields}
  content = templates.render(template, **offered)
  return (types.Message(role='user', content=content),)


def quote(slot: str, text: str) -> dict[str, str]:
  """The two fields of a text that somebody else wrote, fenced and verbatim."""
  return {slot: templates.fence(slot, text), slot + _VERBATIM: text}


def listed(slot: str, label: str, texts: Mapping[str, str]) -> dict[str, str]:
  """The two fields of several texts, each under its name: `{{slot}}`.

  Args:
    slot: of both fields.
    label: of the fences.
    texts: by the names that they are called by.
  """
  fenced = (f'{x}:\n{templates.fence(label, t)}' for x, t in texts.items())
  verbatim = (f'{name}:\n{text}' for name, text in texts.items())
  return {
    slot: '\n\n'.join(fenced),
    slot + _VERBATIM: '\n\n'.join(verbatim),
  }


def lettered(texts: Sequence[str]) -> dict[str, str]:
  """The two fields of several texts, called A, B, ...: slot 'candidates'.

  Raises:
    ValueError: there are more than letters.
  """
  letters = string.ascii_uppercase
  if len(texts) > len(letters):
    raise ValueError(
      f'expected at most {len(letters)} candidates, which have a letter each, '
      f'got {len(texts)}'
    )
  named = dict(zip(letters, texts, strict=False))
  return listed('candidates', 'candidate', named)


def check(config: Any, slots: Mapping[str, Sequence[str]]) -> None:
  """Refuses a template with a slot that its scaffold does not offer.

  Args:
    config: a scaffold's section, with templates among its fields.
    slots: of each such field, what is offered; verbatim or not.

  Raises:
    ValueError: there is such a slot, or no template of a name.
  """
  for field, offered in slots.items():
    for slot in templates.slots(getattr(config, field)):
      if slot.removesuffix(_VERBATIM) not in offered:
        raise ValueError(
          f'{field}: expected a template with slots among {[*offered]} (each '
          f'also with {_VERBATIM}), got {{{{{slot}}}}}'
        )
