"""rollouts.jsonl gives back what was written, after any death."""

import json

import numpy as np
import pytest

from qed.rollout.journal import Journal
from qed.rollout.lines import cut_partial_line
from tests.rollout import rollouts


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'rollouts.jsonl'


@pytest.fixture
def make(path):
  """Opens the file, as one process after another does."""
  opened = []

  def open_journal():
    opened.append(Journal(path))
    return opened[-1]

  yield open_journal
  for journal in opened:
    journal.close()


def reopened(make, snapshot, step):
  journal = make()
  return journal, journal.restore(snapshot, step=step)


def test_a_rollout_comes_back_bit_for_bit(path, make):
  journal = make()
  rng = np.random.default_rng(0)
  written = rollouts.rollout(2 / 7, (0, 1, 1))
  exact = -rng.exponential(size=3).astype(np.float32)
  exact[1] = np.nan
  object.__setattr__(written.completion, 'logprobs', exact)
  journal.write(4, 2, written)
  (read,) = journal.read(4, rollouts.PROMPT).values()
  for name in ('token_ids', 'logprobs', 'versions'):
    one, other = (getattr(r.completion, name) for r in (written, read))
    assert one.dtype == other.dtype
    np.testing.assert_array_equal(one, other)
  assert read.completion.text == written.completion.text
  assert (read.grade, read.reward) == (written.grade, written.reward)
  assert json.loads(path.read_text())['logprobs'][1] is None


def test_open_groups_survive_a_restart_and_settled_ones_do_not(make):
  journal = make()
  for group, member in [(0, 0), (0, 1), (1, 1), (2, 0)]:
    journal.write(group, member, rollouts.rollout(1.0))
  journal.settle(0)
  snapshot = json.loads(json.dumps(journal.snapshot()))
  journal, recovered = reopened(make, snapshot, step=0)
  assert recovered == (0, 0)
  assert not journal.knows(0)
  assert journal.read(0, rollouts.PROMPT) == {}
  assert list(journal.read(1, rollouts.PROMPT)) == [1]
  assert journal.num_open_tokens == 4


def test_what_was_written_since_the_checkpoint_is_found(make):
  journal = make()
  journal.write(0, 0, rollouts.rollout(1.0))
  snapshot = journal.snapshot()
  journal.write(0, 1, rollouts.rollout(0.0))
  journal.write(7, 3, rollouts.rollout(0.5, (0, 0, 0)))
  journal, recovered = reopened(make, snapshot, step=0)
  assert recovered == (5, 0)
  assert list(journal.read(0, rollouts.PROMPT)) == [0, 1]
  assert journal.read(7, rollouts.PROMPT)[3].reward == 0.5
  assert journal.num_open_tokens == 7


def test_what_lost_weights_drew_is_lost(make):
  journal = make()
  journal.write(0, 0, rollouts.rollout(1.0, (2, 3)))  # Of step 3, and gone.
  journal.write(0, 1, rollouts.rollout(1.0, (1, 2)))
  journal, recovered = reopened(make, {}, step=2)
  assert recovered == (4, 2)
  assert list(journal.read(0, rollouts.PROMPT)) == [1]


def test_after_a_second_restart_the_replacement_counts(make):
  journal = make()
  journal.write(0, 0, rollouts.rollout(1.0, (3,)))
  journal, _ = reopened(make, {}, step=0)
  journal.write(0, 0, rollouts.rollout(0.0, (0, 0)))
  journal, recovered = reopened(make, {}, step=0)
  assert recovered == (3, 1)
  assert journal.read(0, rollouts.PROMPT)[0].reward == 0.0


def test_of_two_lines_the_last_counts(make):
  journal = make()
  journal.write(0, 0, rollouts.rollout(1.0, (0,)))
  journal.write(0, 0, rollouts.rollout(0.0, (0, 0)))
  journal, recovered = reopened(make, {}, step=0)
  assert recovered == (3, 1)
  assert journal.read(0, rollouts.PROMPT)[0].reward == 0.0
  assert journal.num_open_tokens == 2


def test_half_a_line_is_cut(path, make):
  make().write(0, 0, rollouts.rollout(1.0))
  whole = path.read_bytes()
  path.write_bytes(whole + whole[: len(whole) // 2])
  journal, recovered = reopened(make, {}, step=0)
  assert recovered == (2, 0)
  assert path.read_bytes() == whole
  journal.write(0, 1, rollouts.rollout(1.0))
  assert len(path.read_text().splitlines()) == 2


def test_half_a_first_line_leaves_an_empty_file(path):
  path.write_text('{"group')
  cut_partial_line(path)
  assert path.read_bytes() == b''
  cut_partial_line(path.with_name('missing'))


def test_a_file_that_lost_its_end_is_refused(path, make):
  journal = make()
  journal.write(0, 0, rollouts.rollout(1.0))
  snapshot = journal.snapshot()
  path.write_text('')
  with pytest.raises(ValueError, match='bring the file back'):
    reopened(make, snapshot, step=0)


def test_a_rollout_of_another_prompt_is_refused(make):
  journal = make()
  journal.write(0, 0, rollouts.rollout(1.0))
  other = type(rollouts.PROMPT)(
    problem_id='q', messages=(), token_ids=np.array([1], np.int32)
  )
  with pytest.raises(ValueError, match='one of p'):
    journal.read(0, other)
