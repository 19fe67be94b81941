r"""Plants near-copies of benchmark problems and counts which are found.

  .venv/bin/python -m bench.decontaminate [--rows 5000] [--out found.json]

160 problems of IMO-Bench play the benchmark. The rows are the other problems of
IMO-Bench, mixtures of their sentences, statements made from patterns, and 40
near-copies of benchmark problems, eight of each kind of edit:

  words      5 to 20 % of the words replaced, dropped or doubled
  letters    5 to 20 % of the letters mistyped
  tex        every formula and special word spelt in another way
  renamed    every variable and point called otherwise
  reordered  the sentences in another order, where there are several

The last kind, `all`, is counted apart: every edit at once. Needs the folder
../shared/data/imobench, and says so where it is absent.
"""

import argparse
import collections
import json
import pathlib
import random
import re
import string
import time

from experiments import base
from qed import config
from qed.curation import likeness
from qed.curation.records import Item
from qed.data import problems

DATA = pathlib.Path(__file__).parents[2] / 'shared/data/imobench'
KINDS = ('words', 'letters', 'tex', 'renamed', 'reordered')
NUM_BENCHMARK = 160
NUM_OF_KIND = 8
# fmt: off
_WORDS = (
  'given', 'such', 'suppose', 'number', 'every', 'exists', 'value', 'point',
  'positive', 'integer', 'real', 'any', 'some', 'certain', 'following',
  'condition', 'set', 'least', 'most', 'distinct', 'pair', 'sum', 'prove',
  'find',
)
# fmt: on
_RESPELT = (
  (r'\leq', '\\leqslant '),
  (r'\le ', '≤ '),
  (r'\geq', '\\ge '),
  (r'\frac', r'\dfrac'),
  (r'\ldots', r'\dots'),
  (r'\cdots', '...'),
  (r'\mathbb{R}', r'\mathbf R'),
  (r'\mathbb{Z}', r'\mathbb Z'),
  (r'\mathbb{N}', 'ℕ'),
  (r'\times', r'\cdot '),
  (r'\in ', '∈ '),
  (r'\rightarrow', r'\to '),
  (r'\triangle', '△'),
  (r'\angle', '∠'),
  (r'\[', '$$'),
  (r'\]', '$$'),
  ('(', r'\left( '),
  (')', r' \right)'),
)


def load_problems():
  """All problems of IMO-Bench."""
  files = [DATA / 'proofbench_v2.csv', DATA / 'answerbench_v2.csv']
  missing = [str(file) for file in files if not file.exists()]
  if missing:
    raise SystemExit(f'expected the real benchmarks, missing: {missing}')
  found, _ = problems.load_problems(*files, malformed='skip')
  return found


def edit_words(text, rng, share):
  """A share of the words between formulas is changed."""
  words = text.split(' ')
  changed = []
  for word in words:
    if not word.isalpha() or rng.random() > share:
      changed.append(word)
      continue
    how = rng.randrange(3)
    changed += [[], [rng.choice(_WORDS)], [word, rng.choice(_WORDS)]][how]
  # Formulas and short texts can leave too little to change.
  missing = round(share * len(words)) - sum(
    a != b for a, b in zip(words, changed, strict=False)
  )
  for _ in range(max(0, missing)):
    changed.insert(rng.randrange(len(changed) + 1), rng.choice(_WORDS))
  return ' '.join(changed)


def edit_letters(text, rng, share):
  """A share of the letters outside commands is mistyped."""

  def change(match):
    if match[0][0] == '\\':
      return match[0]
    return ''.join(
      rng.choice(['', rng.choice(string.ascii_lowercase), letter * 2])
      if rng.random() < share
      else letter
      for letter in match[0]
    )

  return re.sub(r'\\[A-Za-z]+|[A-Za-z]+', change, text)


def edit_tex(text, rng, share):
  """Other commands, braces, dollars, spaces and capitals."""
  for old, new in _RESPELT:
    text = text.replace(old, new)
  text = re.sub(r'\^\{(\w)\}', r'^\1', text)
  text = re.sub(r'_(\w)', r'_{\1}', text)
  text = re.sub(
    r'(?<!\$)\$(?!\$)([^$]+)\$',
    lambda m: rng.choice([rf'\({m[1]}\)', f'$ {m[1]} $', f'$${m[1]}$$']),
    text,
  )
  return text.replace('. ', '.\n\n').replace(' = ', '=')


def edit_names(text, rng, share):
  """Every single letter in a formula becomes another one."""
  lower, upper = list(string.ascii_lowercase), list(string.ascii_uppercase)
  rng.shuffle(lower)
  rng.shuffle(upper)
  names = dict(zip(string.ascii_letters, lower + upper, strict=True))

  def rename(match):
    return re.sub(
      r'\\[A-Za-z]+|[A-Za-z]',
      lambda m: m[0] if m[0][0] == '\\' else names[m[0]],
      match[0],
    )

  formulas = r'\$\$?[^$]+\$\$?|\\\[.+?\\\]|\\\(.+?\\\)'
  return re.sub(formulas, rename, text, flags=re.DOTALL)


def sentences(text):
  """The sentences of a text; one may end in a formula, and none within."""
  return [part for part in re.split(r'(?<=[.?!])\s+(?=[A-Z])', text) if part]


def edit_order(text, rng, share):
  """The sentences in another order; one alone stays as it is."""
  parts = sentences(text)
  moved = parts
  while len(parts) > 1 and moved == parts:
    moved = rng.sample(parts, len(parts))
  return ' '.join(moved)


EDITS = {
  'words': edit_words,
  'letters': edit_letters,
  'tex': edit_tex,
  'renamed': edit_names,
  'reordered': edit_order,
}


def plant(found, rng, *, num_of_kind):
  """(kind, item, id of the problem that it copies) of every near-copy."""
  left = rng.sample(found, len(found))
  copies = []
  # First the kind that is particular about its originals.
  for number in range(num_of_kind * (len(KINDS) + 1)):
    kind = ('reordered', *KINDS[:-1], 'all')[number // num_of_kind]
    needed = 2 if kind == 'reordered' else 1
    problem = next(p for p in left if len(sentences(p.statement)) >= needed)
    left.remove(problem)
    text = problem.statement
    for name in KINDS if kind == 'all' else [kind]:
      # Five edits at once are edits of 5 % each.
      share = 0.05 if kind == 'all' else rng.uniform(0.05, 0.2)
      text = EDITS[name](text, rng, share)
    item = Item(item_id=f'planted-{kind}-{number}', statement=text)
    copies.append((kind, item, problem.problem_id))
  return copies


def _pick(rng, *options):
  return rng.choice(options)


def synthetic(rng):
  """A statement from one of a dozen patterns, in the words of olympiads."""
  n, m, k, p = (rng.randint(2, 2024) for _ in range(4))
  x, y, z = rng.sample('abcdkmnpqrstxyz', 3)
  f = rng.choice('fghFP')
  domain = rng.choice(['R', 'Z', 'N', 'Q'])
  relation = _pick(rng, r'\le', r'\ge', '<', '>')
  opening = _pick(rng, 'Prove that', 'Show that', 'Determine whether')
  kind = _pick(rng, 'positive integers', 'real numbers', 'primes', 'integers')
  center = _pick(rng, 'incenter', 'orthocenter', 'circumcenter', 'centroid')
  side = _pick(rng, 'AB', 'BC', 'CA')
  object_ = _pick(rng, 'board', 'table', 'circle', 'graph', 'tournament')
  return _pick(
    rng,
    f'Find all functions ${f}: \\mathbb{{{domain}}} \\to \\mathbb{{{domain}}}$ '
    f'such that ${f}({x}+{f}({y})) = {n}{f}({x}) + {y}^{{{m % 7}}}$ for all '
    f'${x},{y} \\in \\mathbb{{{domain}}}$.',
    f'Let ${x},{y},{z}$ be {kind} with ${x}+{y}+{z}={n}$. {opening} '
    f'$\\frac{{{x}^{m % 9}}}{{{y}+{k}}} + {y}{z} {relation} {p}$.',
    f'Let $ABC$ be a triangle with {center} $X$, and let $D$ be the point '
    f'where the circle through $X$ of radius ${n}$ meets ${side}$ again. '
    f'{opening} the lines $AD$ and $BX$ are '
    f'{_pick(rng, "parallel", "perpendicular")}.',
    f'There are ${n}$ stones on a {object_}. Two players in turn remove '
    f'between ${m % 50}$ and ${k}$ stones, and whoever cannot move loses. '
    f'Who wins if the first player may pass '
    f'{_pick(rng, "once", "twice", "never")}?',
    f'Determine all {kind} ${x}$ for which ${x}^{{{n}}} + {m}$ is divisible by '
    f'${k}{x} - {p}$.',
    f'A sequence is given by ${x}_1={n}$ and ${x}_{{{y}+1}} = {m}{x}_{y} - '
    f'{k}{x}_{{{y}-1}}$. {opening} no term is '
    f'{_pick(rng, "a perfect square", "prime", "a multiple of " + str(p))}.',
    f'The cells of a ${n} \\times {m}$ {object_} are colored with ${k % 20}$ '
    f'colors. {opening} there is a '
    f'{_pick(rng, "rectangle", "row", "connected set", "path")} with at least '
    f'${p}$ cells of one color.',
    f'Let $P$ be a polynomial of degree ${n}$ with integer coefficients and '
    f'$P({m})={k}$. {opening} $P({x})=0$ has at most '
    f'${p}$ {_pick(rng, "integer", "rational", "real")} solutions.',
    f'In a {_pick(rng, "school", "country", "village")} with ${n}$ people, '
    f'each knows exactly ${m}$ others. What is the least number of groups of '
    f'${k}$ such that any two acquaintances are together in one?',
    f'For which ${x}$ can the set $\\{{{m},\\ldots,{x}\\}}$ be divided into '
    f'${k}$ subsets whose sums are {_pick(rng, "equal", "distinct", "prime")}?',
    f'Let $ABCD$ be a {_pick(rng, "cyclic", "convex", "tangential")} '
    f'quadrilateral with $AB={n}$ and $\\angle ABC={m % 180}^\\circ$. The '
    f'diagonals meet at $P$. Find the distance from $P$ to the {center} of '
    f'triangle $A{_pick(rng, "BP", "CD", "DP")}$.',
    f'Evaluate the largest {_pick(rng, "constant", "integer")} ${x}$ with '
    f'$\\sum_{{{y}=1}}^{{{n}}} \\sqrt{{{y}^{m % 8}+{k}}} {relation} {x}$.',
  )


def mixture(others, rng):
  """The first half of one problem and the second half of another."""
  first, second = (
    sentences(problem.statement) for problem in rng.sample(others, 2)
  )
  half = first[: (len(first) + 1) // 2] + second[len(second) // 2 :]
  return ' '.join(half)


def make_rows(others, copies, rng, *, num_rows):
  """Items in random order: every other problem, mixtures, patterns, copies."""
  items = [
    Item(item_id=problem.problem_id, statement=problem.statement)
    for problem in others
  ]
  items += [item for _, item, _ in copies]
  num_mixtures = num_rows // 5
  items += [
    Item(item_id=f'mixture-{i}', statement=mixture(others, rng))
    for i in range(num_mixtures)
  ]
  items += [
    Item(item_id=f'synthetic-{i}', statement=synthetic(rng))
    for i in range(num_rows - len(items))
  ]
  return rng.sample(items, len(items))


def measure(found, settings, *, num_rows, seed, num_of_kind=NUM_OF_KIND):
  """Recall by kind of edit, by kind of evidence, and the false flags."""
  rng = random.Random(seed)
  shuffled = rng.sample(found, len(found))
  benchmark, others = shuffled[:NUM_BENCHMARK], shuffled[NUM_BENCHMARK:]
  copies = plant(benchmark, rng, num_of_kind=num_of_kind)
  rows = make_rows(others, copies, rng, num_rows=num_rows)
  index = likeness.Index(benchmark, settings)
  began = time.monotonic()
  matches = {}
  for start in range(0, len(rows), 256):
    batch = rows[start : start + 256]
    for item, match in zip(batch, index.matches(batch), strict=True):
      if match is not None:
        matches[item.item_id] = match
  secs = time.monotonic() - began
  table = {}
  for kind in (*KINDS, 'all'):
    hits = [
      matches[item.item_id]
      for copied, item, original in copies
      if copied == kind
      and item.item_id in matches
      and matches[item.item_id].is_removed
      and matches[item.item_id].benchmark_id == original
    ]
    table[kind] = {
      'planted': num_of_kind,
      'found': len(hits),
      'by': dict(collections.Counter(match.how for match in hits)),
      'missed': [
        (item.item_id, original)
        for copied, item, original in copies
        if copied == kind and item.item_id not in {h.item_id for h in hits}
      ],
    }
  strangers = [
    match for name, match in matches.items() if not name.startswith('planted')
  ]
  return {
    'seed': seed,
    'rows': len(rows),
    'benchmark': len(benchmark),
    'secs': secs,
    'kinds': table,
    'false_flags': [m for m in strangers if m.is_removed],
    'reviews': [m for m in strangers if not m.is_removed],
    'matches': matches,
  }


def default_settings():
  """The thresholds of the default config."""
  section = base.curation().decontamination.to_dict()
  return config.DecontaminationConfig(**section)


def main():
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--rows', type=int, default=5000)
  parser.add_argument('--seeds', type=int, nargs='+', default=[70])
  parser.add_argument('--out', type=pathlib.Path)
  arguments = parser.parse_args()
  found = load_problems()
  results = []
  for seed in arguments.seeds:
    result = measure(
      found, default_settings(), num_rows=arguments.rows, seed=seed
    )
    del result['matches']
    print(
      f'seed {seed}: {result["rows"]} rows against {result["benchmark"]} '
      f'problems in {result["secs"]:.1f} s'
    )
    for kind, row in result['kinds'].items():
      print(f'  {kind:10}{row["found"]}/{row["planted"]}  {row["by"]}')
      for item_id, original in row['missed']:
        print(f'    missed {item_id}, a copy of {original}')
    num_found = sum(result['kinds'][kind]['found'] for kind in KINDS)
    print(
      f'  found {num_found} of {NUM_OF_KIND * len(KINDS)}; '
      f'{len(result["false_flags"])} false flags, '
      f'{len(result["reviews"])} for review'
    )
    for match in result['false_flags']:
      print(
        f'    {match.item_id} ~ {match.benchmark_id}: {match.how} '
        f'{match.ratio:.2f} {match.renamed:.2f} {match.overlap:.2f} '
        f'{match.content:.2f}'
      )
    results.append(result)
  if arguments.out:
    text = json.dumps(results, indent=2, default=lambda match: match.item_id)
    arguments.out.write_text(text + '\n')


if __name__ == '__main__':
  main()
