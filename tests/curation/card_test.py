"""A card tells sources, counts, bounds and versions, to machine and reader."""

from qed.curation import card
from qed.curation.stages import Report

REPORT = Report(
  stage='filter',
  num_in=1_000,
  num_kept=900,
  removed={'image': 60, 'ill_posed': 40},
  remarks={'review': 3},
  settings={'min_ratio': 0.9, 'writer': {'model': 'a|b'}, 'names': ['x', 'y']},
  fingerprint='f',
  sha256='s' * 64,
  secs=1.0,
)
CARD = card.make(
  'problems.jsonl',
  about='Problems.',
  rows=900,
  sha256='0' * 64,
  inputs=[
    {
      'source': 'aops',
      'path': 'aops.jsonl',
      'sha256': '1' * 64,
      'bytes': 12_345,
      'license': 'Apache-2.0',
    }
  ],
  reports=[REPORT],
  versions={'commit': 'abc'},
)


def test_counts_close():
  (stage,) = CARD['stages']
  assert stage['in'] == stage['kept'] + sum(stage['removed'].values())


def test_a_card_does_not_depend_on_the_clock():
  assert 'secs' not in str(CARD)


def test_people_find_everything():
  text = card.markdown(CARD)
  for part in (
    '900 rows', '0' * 64, 'aops.jsonl', 'Apache-2.0', '12,345', '1' * 16,
    'image | -60', '(review: 3)', 'min_ratio | 0.9', 'x, y', 'abc',
    r'writer.model | a\|b',
  ):  # fmt: skip
    assert part in text, part
