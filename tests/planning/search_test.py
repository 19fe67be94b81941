import dataclasses
import itertools

from qed.planning import search
from qed.planning.search import Layout

START = Layout(
  data=1,
  context=1,
  tensor=1,
  remat='attention',
  num_rows=8,
  row_length=1_024,
  num_microbatches=2,
)


def candidates(num_devices=8, num_heads=32, **changes):
  start = dataclasses.replace(START, **changes)
  return list(
    search.candidates(start, num_devices=num_devices, num_heads=num_heads)
  )


def test_every_candidate_uses_all_devices_and_holds_all_rows():
  found = list(itertools.chain(*candidates()))
  assert found
  for layout in found:
    assert layout.data * layout.context * layout.tensor == 8
    assert layout.num_rows % layout.data == 0
    assert layout.num_rows * layout.num_microbatches == 16


def test_context_takes_what_the_heads_and_the_row_allow():
  assert [group[0].mesh for group in candidates()] == [
    (8, 1, 1),
    (4, 2, 1),
    (2, 4, 1),
    (1, 8, 1),
  ]
  assert [group[0].context for group in candidates(num_heads=6)] == [1, 2]
  # 512 positions are four times 128 lanes.
  assert [group[0].context for group in candidates(row_length=512)] == [1, 2, 4]


def test_the_tensor_axis_stays():
  meshes = [group[0].mesh for group in candidates(tensor=2, num_heads=8)]
  assert meshes == [(4, 1, 2), (2, 2, 2), (1, 4, 2)]


def test_a_mesh_has_no_more_places_for_rows_than_there_are_rows():
  found = candidates(num_devices=32)
  assert [group[0].data for group in found] == [16, 8, 4]


def test_rows_per_microbatch_grow():
  rows = [(g.num_rows, g.num_microbatches) for g in candidates()[1]]
  assert rows == [(4, 4), (8, 2), (16, 1)]


@dataclasses.dataclass
class Tried:
  layout: Layout
  fits: bool


def run(fits, groups):
  """The (data, rows, remat) that are tried when `fits` is the compiler."""
  tried = search.search(iter(groups), lambda x: Tried(x, fits(x)))
  return [(t.layout.data, t.layout.num_rows, t.layout.remat) for t in tried]


def test_more_is_recomputed_until_it_fits():
  assert run(lambda x: x.remat == 'offload', candidates()[:1]) == [
    (8, 8, 'none'),
    (8, 8, 'attention'),
    (8, 8, 'offload'),
    (8, 16, 'offload'),
  ]


def test_more_rows_never_get_a_policy_that_did_not_fit_fewer():
  def fits(x):
    return x.remat == {4: 'attention', 8: 'full'}.get(x.num_rows)

  assert run(fits, candidates()[1:2]) == [
    (4, 4, 'none'),
    (4, 4, 'attention'),
    (4, 8, 'attention'),
    (4, 8, 'offload'),
    (4, 8, 'full'),
    (4, 16, 'full'),
  ]


def test_a_mesh_on_which_nothing_fits_ends_after_the_fewest_rows():
  assert run(lambda x: x.data == 4, candidates()[:2]) == [
    *((8, 8, remat) for remat in search.REMAT),
    *((4, rows, 'none') for rows in (4, 8, 16)),
  ]


def test_a_layout_says_what_it_is():
  layout = dataclasses.replace(START, data=4, context=2, row_length=49_152)
  assert str(layout) == 'mesh 4x2x1, remat attention, 2 x 8 x 49,152 tokens'
  assert layout.num_tokens == 2 * 8 * 49_152
