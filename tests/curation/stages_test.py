"""A stage can be killed anywhere, and its files come out the same."""

import dataclasses
import json

import pytest

from qed.curation import records, stages
from qed.curation.records import Item, Outcome

ITEMS = [
  Item(item_id=f'i{n}', statement=f'Prove {n}.', notes={'n': n})
  for n in range(701)
]


@pytest.fixture(autouse=True)
def _often(monkeypatch):
  monkeypatch.setattr(stages, '_SAVED_EVERY', 200)


class Killed(Exception):
  pass


def odd_ones_go(items, *, killed_at=None, seen=None):
  for item in items:
    number = item.notes['n']
    if seen is not None:
      seen.append(number)
    if number == killed_at:
      raise Killed
    reason = 'odd' if number % 2 else ''
    yield Outcome(item=item, reason=reason, detail='x', remarks=('seen',))


async def run(folder, *, is_rowwise=True, settings=(), source='s', **fields):
  return await stages.run(
    folder,
    'parity',
    lambda start: iter(ITEMS[start:]),
    lambda items: odd_ones_go(items, **fields),
    source=source,
    settings=dict(settings),
    is_rowwise=is_rowwise,
  )


def content(folder):
  return {
    name: (folder / name).read_bytes()
    for name in ('kept.jsonl', 'removed.jsonl')
  }


async def test_kept_and_removed_are_all_there(tmp_path):
  report = await run(tmp_path)
  assert (report.num_in, report.num_kept) == (701, 351)
  assert report.removed == {'odd': 350}
  assert report.remarks == {'seen': 701}
  assert list(stages.read_kept(tmp_path)) == ITEMS[::2]
  lines = (tmp_path / 'removed.jsonl').read_text().splitlines()
  row = json.loads(lines[0])
  assert (row['item_id'], row['reason'], row['detail']) == ('i1', 'odd', 'x')
  assert records.from_json(json.dumps(row['item'])) == ITEMS[1]
  assert stages.read_report(tmp_path) == report


@pytest.mark.parametrize('is_rowwise', [True, False])
async def test_killed_twice_it_is_the_same(tmp_path, is_rowwise):
  whole = await run(tmp_path / 'whole')
  broken = tmp_path / 'broken'
  for place in (250, 699):
    with pytest.raises(Killed):
      await run(broken, killed_at=place, is_rowwise=is_rowwise)
    assert stages.read_report(broken) is None
    # As if the process had died in the middle of a line.
    with (broken / 'kept.jsonl').open('ab') as file:
      file.write(b'{"item_id": "half')
  report = await run(broken, is_rowwise=is_rowwise)
  assert content(broken) == content(tmp_path / 'whole')
  assert dataclasses.replace(report, secs=0) == dataclasses.replace(
    whole, secs=0
  )


async def test_another_stage_begins_anew(tmp_path):
  with pytest.raises(Killed):
    await run(tmp_path, killed_at=450, is_rowwise=False)
  seen = []
  await run(tmp_path, is_rowwise=False, seen=seen)
  assert seen == [*range(701)]


async def test_a_rowwise_stage_goes_on_where_it_was(tmp_path):
  with pytest.raises(Killed):
    await run(tmp_path, killed_at=450)
  seen = []
  await run(tmp_path, seen=seen)
  assert seen[0] == 400


async def test_what_is_done_is_not_done_again(tmp_path):
  first = await run(tmp_path)
  seen = []
  assert await run(tmp_path, seen=seen) == first
  assert seen == []


@pytest.mark.parametrize(
  'change', [{'settings': {'bound': 2}}, {'source': 'other'}]
)
async def test_a_change_does_it_again(tmp_path, change):
  first = await run(tmp_path)
  seen = []
  second = await run(tmp_path, seen=seen, **change)
  assert len(seen) == len(ITEMS)
  assert second.fingerprint != first.fingerprint


async def test_a_tampered_output_is_made_again(tmp_path):
  await run(tmp_path)
  before = content(tmp_path)
  path = tmp_path / 'kept.jsonl'
  path.write_bytes(path.read_bytes().replace(b'Prove 2.', b'Prove 3.'))
  await run(tmp_path)
  assert content(tmp_path) == before


async def test_progress_of_other_settings_is_not_taken_up(tmp_path):
  with pytest.raises(Killed):
    await run(tmp_path, killed_at=450)
  seen = []
  await run(tmp_path, seen=seen, settings={'bound': 2})
  assert seen[0] == 0


def test_a_line_that_is_no_item_is_named(tmp_path):
  (tmp_path / 'kept.jsonl').write_text('{"item_id": 1}\n')
  with pytest.raises(ValueError, match=r'kept\.jsonl:1'):
    list(stages.read_kept(tmp_path))
