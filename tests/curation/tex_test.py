"""Spellings of one statement come out equal; different statements do not."""

import pytest

from qed.curation import tex


@pytest.mark.parametrize(
  ('one', 'other'),
  [
    (r'$\dfrac{a}{b} \le 1$', '$a/b ≤ 1$'),
    (r'$x^{2}+y_{1}$', '$x^2 + y_1$'),
    (r'\[ n\geqslant 3 \]', '$$n \\ge 3$$'),
    (
      r'\(f\colon\mathbb{R}\to\mathbb R\)',
      r'$f:\mathbf{R}\rightarrow \mathbb{R}$',
    ),
    ('Let $x, y$ be REAL.', 'let $x$, $y$ be real'),
    ('Let x, y be real numbers', 'Let $x$, $y$ be real numbers'),
    (r'$\left( \varepsilon \right)$', r'$(\epsilon)$'),
    (r'$a \in S \text{ is prime}$', r'$a\in S$ is prime'),
    (r'\begin{align*} a &= b \\ \end{align*}', '$a = b$'),
    (r'$\angle ABC = 90^\circ$', '∠ABC = 90°'),
    ('$a &lt; b$', '$a<b$'),
    (r'$\operatorname{lcm}(m,n)$', r'$\mathrm{lcm}(m, n)$'),
  ],
)
def test_two_spellings_are_one(one, other):
  assert tex.spell(one) == tex.spell(other)


@pytest.mark.parametrize(
  ('one', 'other'),
  [
    ('$a < b$', '$a > b$'),
    ('$n = 2019$', '$n = 2020$'),
    ('$a + b$', '$a - b$'),
    ('$x \\le y$', '$x \\ge y$'),
    ('for all x', 'for some x'),
  ],
)
def test_two_statements_stay_two(one, other):
  assert tex.spell(one) != tex.spell(other)


def test_words_and_formulas_are_units():
  found = tex.units(r'Find all $n+1 \ge 2$, if any.')
  assert found == ['find', 'all', ('n', '+', '1', '>=', '2'), 'if', 'any']


def test_a_comma_ends_a_formula():
  assert tex.units('$a,b$') == [('a',), ('b',)]


def test_a_dollar_amount_opens_no_formula():
  assert tex.units(r'It costs \$5 for each word') == [
    'it', 'costs', ('5',), 'for', 'each', 'word',
  ]  # fmt: skip


def test_renaming_makes_names_alike_and_leaves_numbers():
  first = tex.spell_both(r'$\alpha x + 3y$ and $ABC$')[1]
  second = tex.spell_both('$bu + 3w$ and $PQR$')[1]
  assert first == second == 'vv+3v and vvv'
  assert tex.spell_both('$bu + 4w$ and $PQR$')[1] != first


def test_shingles_are_runs_of_units():
  assert tex.shingles('let a be b', 3) == ['let a be', 'a be b']
  assert tex.shingles('let a', 3) == ['let a']
  assert tex.shingles('', 3) == []
  assert tex.shingles('b a b a b', 2) == ['b a', 'a b']


def test_numbers_are_those_of_the_text():
  spelt = tex.spell('$x_{12}+3$ of 2019')
  assert tex.numbers(spelt) == ('12', '2019', '3')


@pytest.mark.parametrize(
  'text', ['', '$', '\\', '$$$', '\\begin{', '{}}{', '\x00']
)
def test_any_text_can_be_spelt(text):
  assert isinstance(tex.spell(text), str)
