r"""Prompt texts with slots, filled in one pass.

A slot is a name in double braces, `{{problem}}`, without spaces. Any other
brace is text, in a template (`\boxed{}`) and in a value: what was filled in is
never looked at again, so that a problem which contains `{{problem}}` or LaTeX
comes out as it went in. str.format has neither property.

The texts are in texts/NAME.md:

  prove    {{problem}}   asks for a complete proof
  answer   {{problem}}   asks for a boxed final answer
"""

import difflib
import functools
import importlib.resources
import re

_SLOT = re.compile(r'\{\{([a-z][a-z0-9_]*)\}\}')
_NAME = re.compile(r'[A-Za-z0-9_-]+')


@functools.cache
def text(name: str) -> str:
  """Returns the text of a template, without the file's last newline.

  Raises:
    ValueError: there is no template of that name.
  """
  texts = importlib.resources.files('qed.data') / 'texts'
  names = sorted(
    entry.name.removesuffix('.md')
    for entry in texts.iterdir()
    if entry.name.endswith('.md')
  )
  if name not in names:
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f'; did you mean {nearest[0]!r}?' if nearest else ''
    raise ValueError(
      f'expected the name of a template, one of {names}, got {name!r}{hint}'
    )
  content = (texts / f'{name}.md').read_text(encoding='utf-8')
  return content.removesuffix('\n')


def slots(template: str) -> tuple[str, ...]:
  """Returns the names of a template's slots, each once, in order.

  Args:
    template: a name, or a text (whatever is not one bare word).
  """
  return tuple(dict.fromkeys(_SLOT.findall(_resolve(template))))


def render(template: str, **fields: str) -> str:
  """Returns the template with each slot replaced by the field of its name.

  Args:
    template: a name, or a text (whatever is not one bare word).
    **fields: exactly the template's slots.

  Raises:
    ValueError: a slot without a field, a field without a slot, or an unknown
      name.
    TypeError: a value is not a string.
  """
  expected = slots(template)
  if set(fields) != set(expected):
    raise ValueError(
      f'expected the fields {sorted(expected)} for template '
      f'{template[:60]!r}, got {sorted(fields)}'
    )
  for field, value in fields.items():
    if not isinstance(value, str):
      raise TypeError(
        f'expected a string for {field!r} in template {template[:60]!r}, got '
        f'{value!r}'
      )
  return _SLOT.sub(lambda slot: fields[slot[1]], _resolve(template))


def _resolve(template: str) -> str:
  return text(template) if _NAME.fullmatch(template) else template
