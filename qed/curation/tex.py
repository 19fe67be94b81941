r"""One spelling for the many ways to write a statement.

`spell` turns a text into units: words, and formulas that are one unit each. Two
statements that differ in markup alone (`\dfrac{1}{2}` and `1/2`, `\le` and `≤`,
`$a, b$` and `$a$, $b$`, brackets, spacing, capitals) come out equal, and what
is lost on the way (brackets, powers set as indices) hardly ever tells two
problems apart. For comparing texts only; nothing here is shown to a model.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence

_TEXT = re.compile(
  r'\\(?:text|textrm|textit|textnormal|mbox|hbox)\s*\{([^{}]*)\}'
)
_NAME = re.compile(
  r'\\(?:operatorname|mathrm|mathop|mathsf|mathit|rm)\*?\s*\{([A-Za-z ]+)\}'
)
_TOKEN = re.compile(
  r'(?P<environment>\\(?:begin|end)\s*\{[^{}]*\})'
  r'|(?P<dollar>\\\$)'
  r'|(?P<toggle>\$\$?)'
  r'|(?P<open>\\[\[(])|(?P<close>\\[\])])'
  r'|\\(?P<command>[A-Za-z]+)'
  r'|\\.'
  r'|(?P<letters>[^\W\d_]+)'
  r'|(?P<number>\d+)'
  r'|(?P<relation><=|>=|!=|->|=>|[-+=<>!])'
  r'|(?P<stop>[,.;?])',
  re.DOTALL,
)
_MATH_ENVIRONMENT = re.compile(r'equation|align|gather|multline|eqnarray|math')
# Layout and fonts: nothing is left of them.
# fmt: off
_SILENT = frozenset((
  'left', 'right', 'big', 'Big', 'bigg', 'Bigg', 'bigl', 'bigr', 'Bigl',
  'Bigr', 'biggl', 'biggr', 'displaystyle', 'textstyle', 'limits', 'nolimits',
  'quad', 'qquad', 'frac', 'dfrac', 'tfrac', 'cfrac', 'over', 'cdot', 'times',
  'mathbb', 'mathbf', 'mathcal', 'mathfrak', 'mathscr', 'mathrm', 'mathsf',
  'mathit', 'Bbb', 'bf', 'rm', 'it', 'text', 'textbf', 'textit', 'emph',
  'operatorname', 'boldsymbol', 'item', 'noindent', 'ldots', 'dots', 'cdots',
  'dotsc', 'dotsb', 'vdots', 'ddots', 'colon', 'mid', 'vert', 'lvert',
  'rvert', 'Vert', 'lVert', 'rVert', 'middle', 'label', 'tag', 'nonumber',
  'newline', 'linebreak', 'hspace', 'vspace', 'phantom', 'overline',
  'underline', 'bar', 'widehat', 'hat', 'tilde', 'vec', 'overrightarrow',
  'mathop', 'lbrace', 'rbrace', 'langle', 'rangle', 'brace', 'cdotp', 'ast',
  'star', 'bullet', 'hline', 'hfill', 'par', 'small', 'large', 'mbox',
))
# fmt: on
_SYNONYMS = {
  'le': '<=',
  'leq': '<=',
  'leqslant': '<=',
  'leqq': '<=',
  'ge': '>=',
  'geq': '>=',
  'geqslant': '>=',
  'geqq': '>=',
  'lt': '<',
  'gt': '>',
  'ne': '!=',
  'neq': '!=',
  'not': '!',
  'to': '->',
  'rightarrow': '->',
  'longrightarrow': '->',
  'mapsto': '->',
  'longmapsto': '->',
  'implies': '=>',
  'Rightarrow': '=>',
  'Longrightarrow': '=>',
  'Leftrightarrow': 'iff',
  'Longleftrightarrow': 'iff',
  'varepsilon': 'epsilon',
  'vartheta': 'theta',
  'varphi': 'phi',
  'emptyset': 'empty',
  'varnothing': 'empty',
  'setminus': '-',
  'backslash': '-',
  'pm': '+-',
  'subseteq': 'subset',
  'dbinom': 'binom',
  'tbinom': 'binom',
  'bmod': 'mod',
  'pmod': 'mod',
  'ell': 'l',
  'R': 'R',
  'N': 'N',
  'Z': 'Z',
  'Q': 'Q',
  'C': 'C',
  'degree': 'circ',
  'measuredangle': 'angle',
}  # fmt: skip
_CHARACTERS = str.maketrans(
  {
    '≤': '<=', '⩽': '<=', '≥': '>=', '⩾': '>=', '≠': '!=', '→': '->',
    '⇒': '=>', '−': '-', '–': '-', '∈': r'\in ', '∞': r'\infty ',
    '√': r'\sqrt ',
    '∑': r'\sum ', '∏': r'\prod ', '∠': r'\angle ', '△': r'\triangle ',
    '°': r'\circ ', '⌊': r'\lfloor ', '⌋': r'\rfloor ', '⊥': r'\perp ',
    '∪': r'\cup ', '∩': r'\cap ', '⊂': r'\subset ', '⊆': r'\subset ',
    '’': "'", '×': ' ', '·': ' ', '⋅': ' ', '…': ' ',
  }
)  # fmt: skip
_GREEK = {
  chr(code): unicodedata.name(chr(code)).rsplit(' ', 1)[-1].lower()
  for code in [*range(0x3B1, 0x3C2), *range(0x3C3, 0x3CA)]
}
_GREEK_NAMES = frozenset(_GREEK.values())
# One letter that is a word of English.
_SHORT_WORDS = frozenset('aAI')
_MAX_POINTS = 4  # Capitals in a row that name points: ABCD.
VARIABLE = 'v'


def spell(text: str) -> str:
  """The text in one spelling: its units, with a space between two.

  Args:
    text: a statement, in any mixture of TeX, Unicode and plain letters.
  """
  return spell_both(text)[0]


def spell_both(text: str) -> tuple[str, str]:
  """What `spell` gives, and the same with every variable called `v`."""
  found = units(text)
  plain = [u if isinstance(u, str) else ''.join(u).lower() for u in found]
  renamed = [u if isinstance(u, str) else _renamed(u) for u in found]
  return ' '.join(plain), ' '.join(renamed)


def units(text: str) -> list[str | tuple[str, ...]]:
  """The text as words, which are str, and formulas, which are tuples.

  A formula ends at a comma, a full stop or a word. Outside dollars, what looks
  like one is one: single letters, up to four capitals, numbers, signs.
  """
  text = html.unescape(unicodedata.normalize('NFKC', text))
  text = text.translate(_CHARACTERS)
  text = _NAME.sub(lambda m: '\\' + m[1].replace(' ', '') + ' ', text)
  text = _TEXT.sub(r' $ \1 $ ', text)
  found: list[str | tuple[str, ...]] = []
  formula: list[str] = []

  def close() -> None:
    if formula:
      found.append(tuple(formula))
      formula.clear()

  in_math = False
  for match in _TOKEN.finditer(text):
    kind = match.lastgroup
    token = match[0]
    if kind == 'letters':
      if in_math or _is_mathematical(token):
        formula.extend(_letters(token))
      else:
        close()
        found.append(token.lower())
    elif kind == 'command':
      token = match['command']
      if token not in _SILENT:
        formula.append(_SYNONYMS.get(token, token))
    elif kind in ('number', 'relation'):
      formula.append(token)
    elif kind in ('stop', 'dollar'):
      close()
    elif kind is not None:
      close()
      in_math = _enters_math(kind, token, in_math)
  close()
  return found


def shingles(spelt: str, size: int) -> list[str]:
  """Every `size` units in a row of a text that `spell` returned, each once.

  In their order, so that what is summed up over them is the same in every
  process. A shorter text is one shingle; an empty one has none.
  """
  parts = spelt.split()
  if len(parts) <= size:
    return [spelt] if parts else []
  runs = range(len(parts) - size + 1)
  return list(dict.fromkeys(' '.join(parts[i : i + size]) for i in runs))


def numbers(spelt: str) -> tuple[str, ...]:
  """The numbers of a text that `spell` returned, sorted."""
  return tuple(sorted(re.findall(r'\d+', spelt)))


def _enters_math(kind: str, token: str, in_math: bool) -> bool:
  if kind == 'toggle':
    return not in_math
  if kind == 'environment':
    if _MATH_ENVIRONMENT.search(token):
      return token.startswith('\\b')
    return in_math
  return kind == 'open'


def _is_mathematical(letters: str) -> bool:
  """Whether letters outside dollars are variables or points."""
  if len(letters) == 1:
    return letters not in _SHORT_WORDS
  return letters.isupper() and len(letters) <= _MAX_POINTS


def _letters(token: str) -> list[str]:
  return [_GREEK.get(letter, letter) for letter in token]


def _renamed(tokens: Sequence[str]) -> str:
  return ''.join(
    VARIABLE
    if (len(token) == 1 and token.isalpha()) or token in _GREEK_NAMES
    else token.lower()
    for token in tokens
  )
