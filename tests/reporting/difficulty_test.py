"""The plot of difficulties is drawn, also of nothing."""

import pytest

from qed.reporting import difficulty


@pytest.mark.parametrize(
  ('before', 'after'), [([0.1, 0.2, 0.9], [0.1]), ([0.5], []), ([], [])]
)
def test_a_picture_is_written(tmp_path, before, after):
  path = tmp_path / 'plot.png'
  difficulty.draw(before, after, path, num_bins=10)
  assert path.read_bytes().startswith(b'\x89PNG')
