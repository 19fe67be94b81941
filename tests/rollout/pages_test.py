import numpy as np
import pytest

from qed.rollout.pages import Pages


def test_pages_are_given_out_once_and_are_free_again_when_given_back():
  pages = Pages(1, 5)
  first, second = pages.take(2), pages.take(3)
  assert sorted([*first, *second]) == [1, 2, 3, 4, 5]
  assert first.dtype == np.int32
  assert pages.num_free == 0
  pages.give_back(first)
  assert pages.num_free == 2
  assert sorted(pages.take(2)) == sorted(first)


def test_a_shared_page_is_free_when_its_last_user_gives_it_back():
  pages = Pages(1, 3)
  shared = pages.take(2)
  pages.share(shared)
  pages.share(shared[:1])
  pages.give_back(shared)
  assert pages.num_free == 1
  pages.give_back(shared[:1])
  assert pages.num_free == 1
  pages.give_back(shared[1:])
  assert pages.num_free == 2
  pages.give_back(shared[:1])
  assert pages.num_free == 3


def test_taking_nothing_is_legal():
  assert Pages(1, 1).take(0).shape == (0,)


def test_taking_more_than_is_free_takes_nothing():
  pages = Pages(1, 3)
  pages.take(2)
  with pytest.raises(ValueError, match='wanted 2 pages, but 1 of 3 are free'):
    pages.take(2)
  assert pages.num_free == 1


@pytest.mark.parametrize('wrong', [[9], [11], [14], [10, 13], [-1]])
def test_giving_back_or_sharing_what_is_not_in_use_is_refused(wrong):
  pages = Pages(10, 4)
  assert pages.take(1) == [10]
  for method in (pages.give_back, pages.share):
    with pytest.raises(ValueError, match='not in use; the pool has 10 to 13'):
      method(np.array(wrong, np.int32))
  assert pages.num_free == 3


def test_random_use_agrees_with_counting_in_a_dictionary():
  rng = np.random.default_rng(0)
  pages, users = Pages(3, 20), {}
  held = []
  for _ in range(2000):
    action = rng.integers(3)
    if action == 0 and pages.num_free:
      some = pages.take(int(rng.integers(pages.num_free + 1)))
      assert all(page not in users for page in some)
      users |= dict.fromkeys(some.tolist(), 1)
      held.append(some)
    elif held:
      some = held[rng.integers(len(held))]
      if action == 1:
        pages.share(some)
        held.append(some)
      else:
        held = [x for x in held if x is not some] + [
          x for x in held if x is some
        ][1:]
        pages.give_back(some)
      for page in some.tolist():
        users[page] += 1 if action == 1 else -1
        if not users[page]:
          del users[page]
    assert pages.num_free == 20 - len(users)
