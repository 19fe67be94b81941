"""A page of texts that resemble each other, side by side, for a person.

It opens from disk. The texts come from anywhere, so they are put there as text:
nothing in them is markup, and formulas stay in their source, since that is what
was compared.
"""

from __future__ import annotations

import difflib
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #222; }
h2 { font-size: 1rem; margin: 2rem 0 .3rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; background: #f6f6f4;
  border-radius: 4px; padding: .6rem .8rem; }
.text b { display: block; font-size: .8rem; color: #555; }
mark { background: #ffe08a; }
.note { color: #555; }
.gone { color: #9c2f2f; }
@media (prefers-color-scheme: dark) {
  body { background: #1b1b1b; color: #ddd; }
  .text { background: #262626; } .text b, .note { color: #aaa; }
  mark { background: #6b5300; color: inherit; } .gone { color: #e58a8a; }
}
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="note">{{ rows | length }} pairs; what differs is marked.
{% if left_out %}{{ left_out }} more are in the file beside this page.
{% endif %}</p>
{% for row in rows %}
<h2>{{ loop.index }}. {{ row.how }}
{% if row.is_removed %}<span class="gone">removed</span>{% else %}
kept, to be looked at{% endif %}</h2>
<div class="pair">
{% for side in row.sides %}
<div class="text"><b>{{ side.name }}</b>{% for is_same, text in side.parts %}\
{% if is_same %}{{ text }}{% else %}<mark>{{ text }}</mark>{% endif %}\
{% endfor %}</div>
{% endfor %}
</div>
{% endfor %}
</body>
</html>
"""


def write(
  path: str | os.PathLike[str],
  title: str,
  rows: Sequence[Mapping[str, Any]],
  *,
  max_rows: int,
) -> None:
  """Writes the page.

  Args:
    path: of the page, which appears when it is complete.
    title: of the page.
    rows: 'name', 'text', 'other_name', 'other_text', 'how' (in words) and
      'is_removed' of each pair.
    max_rows: on the page, the first ones.
  """
  import jinja2  # Slow to import, and only here.

  environment = jinja2.Environment(
    autoescape=True, undefined=jinja2.StrictUndefined
  )
  html = environment.from_string(_PAGE).render(
    title=title,
    rows=[_pair(row) for row in rows[:max_rows]],
    left_out=max(0, len(rows) - max_rows),
  )
  path = pathlib.Path(path)
  partial = path.with_name(path.name + '.partial')
  partial.write_text(html, encoding='utf-8')
  partial.replace(path)


def _pair(row: Mapping[str, Any]) -> dict[str, Any]:
  """Both texts in parts, each either the same on both sides or not."""
  first, second = (
    re.findall(r'\s+|\S+', row[k]) for k in ('text', 'other_text')
  )
  sides: list[list[tuple[bool, str]]] = [[], []]
  matcher = difflib.SequenceMatcher(None, first, second, autojunk=False)
  for kind, a, b, c, d in matcher.get_opcodes():
    for parts, words in zip(sides, (first[a:b], second[c:d]), strict=True):
      if words:
        parts.append((kind == 'equal', ''.join(words)))
  names = (row['name'], row['other_name'])
  return {
    'how': row['how'],
    'is_removed': row['is_removed'],
    'sides': [
      {'name': name, 'parts': parts}
      for name, parts in zip(names, sides, strict=True)
    ],
  }
