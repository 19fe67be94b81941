r"""Prompt texts with slots, filled in one pass.

A slot is a name in double braces, `{{problem}}`, without spaces. Any other
brace is text, in a template (`\boxed{}`) and in a value: what was filled in is
never looked at again, so that a problem which contains `{{problem}}` or LaTeX
comes out as it went in. str.format has neither property.

The texts are in texts/NAME.md:

  prove    {{problem}}   asks for a complete proof
  answer   {{problem}}   asks for a boxed final answer
  guided   {{problem}} {{prefix}}   asks for the rest of a proof
  judge_*  for judges: see qed/grading/rubrics.py
  curate_*  for curation: see qed/curation
  cache_*  for a reasoning cache: see qed/scaffolds/reasoning_cache.py
  scaffold_*  for the calls of a scaffold: see SLOTS in each of qed/scaffolds

A text that must not speak for itself, such as a proof that a judge reads, is
put between two marker lines (`fence`). Their code is a hash of the text, which
its author cannot foresee; and what would read as a verdict, a marker or a
control token loses its opening bracket, so that no text holds the line that
ends it.
"""

import difflib
import functools
import hashlib
import importlib.resources
import re

_SLOT = re.compile(r'\{\{([a-z][a-z0-9_]*)\}\}')
_NAME = re.compile(r'[A-Za-z0-9_-]+')
_LABEL = re.compile(r'[a-z]+')
_CODE = r'[0-9a-f]{12}'
_FENCE_START = re.compile(rf'<([a-z]+-{_CODE})>')
# Opening brackets of tags that a judge writes, of markers, and of the control
# tokens of the usual chat formats. Wider than what any reader of verdicts
# accepts: white space and letters of any alphabet count here.
_MARKUP = re.compile(
  r'<(?=\s*/?\s*(?:score|assessment|errors|summary|verification|think'
  r'|verdict|keep)[^<>]*>'
  rf'|\s*/?\s*[a-z]+-{_CODE}\s*>'
  r'|[|｜][^\s<>]{1,60}[|｜]>'
  r'|/?s>|(?:start|end)_of_turn>)',
  re.IGNORECASE,
)


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


def fence(label: str, text: str) -> str:
  """Returns a text between marker lines that it cannot contain.

    <proof-0123456789ab>
    Let n = 2k ...
    </proof-0123456789ab>

  `‹` takes the place of `<` where it opens a tag that a judge writes, a marker
  or a control token (`<score>`, `</proof-0123456789ab>`, `<|im_end|>`), so that
  a judge who quotes from the text gives no verdict by it. All else is verbatim.

  Args:
    label: what the text is, in small letters.
    text: anything.

  Raises:
    ValueError: the label has other characters.
  """
  if not _LABEL.fullmatch(label):
    raise ValueError(f'expected a label in small letters, got {label!r}')
  text = _MARKUP.sub('‹', text)
  marker = f'{label}-{_code(label, text)}'
  return f'<{marker}>\n{text}\n</{marker}>'


def fence_marker(fenced: str) -> str:
  """Returns the marker of what `fence` returned: 'proof-0123456789ab'."""
  return fenced[1 : fenced.index('>')]


def unfence(label: str, text: str) -> str:
  """Returns the first text that stands fenced under a label inside another.

  The inverse of `fence`, but for the brackets that it replaced.

  Raises:
    ValueError: there is none.
  """
  for opening in re.finditer(rf'^<({label}-{_CODE})>\n', text, re.MULTILINE):
    inside, closing, _ = text[opening.end() :].partition(f'\n</{opening[1]}>')
    if closing and opening[1] == f'{label}-{_code(label, inside)}':
      return inside
  raise ValueError(
    f'expected a text between <{label}-...> and </{label}-...>, got '
    f'{text[:60]!r}...'
  )


def outside_fences(text: str) -> str:
  """Returns a text without what stands fenced in it: what its author says."""
  kept, position, unclosed = [], 0, set()
  for opening in _FENCE_START.finditer(text):
    # What begins inside a fence belongs to it.
    if opening.start() < position or opening[1] in unclosed:
      continue
    closing = f'</{opening[1]}>'
    end = text.find(closing, opening.end())
    if end < 0:
      unclosed.add(opening[1])
      continue
    kept.append(text[position : opening.start()])
    position = end + len(closing)
  return '\n'.join([*kept, text[position:]])


def _code(label: str, text: str) -> str:
  """Twelve hexadecimal digits that depend on the label and the text."""
  content = f'{label}\0{text}'.encode('utf-8', 'surrogatepass')
  return hashlib.sha256(content).hexdigest()[:12]


def _resolve(template: str) -> str:
  return text(template) if _NAME.fullmatch(template) else template
