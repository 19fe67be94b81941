import io

import pytest

from qed.planning import tables
from qed.planning.tables import Table


@pytest.mark.parametrize(
  ('value', 'text'),
  [
    (1.494e15, '1.49 PFLOP'),
    (2.129e12, '2.13 TFLOP'),
    (36e9, '36 GFLOP'),
    (999.0, '999 FLOP'),
    (0, '0 FLOP'),
  ],
)
def test_amounts_come_in_powers_of_a_thousand(value, text):
  assert tables.amount(value, 'FLOP') == text


def test_memory_comes_in_gib():
  assert tables.gib(32.78 * 2**30) == '32.78 GiB'


@pytest.mark.parametrize(
  ('value', 'text'), [(16.975, '16.98 s'), (1, '1.00 s'), (0.7714, '771 ms')]
)
def test_short_times_come_in_milliseconds(value, text):
  assert tables.secs(value) == text


def test_plain_text_aligns_names_left_and_numbers_right():
  table = Table(
    title='Title',
    header=('mesh', 'peak', 'bound by'),
    rows=[('32x1x1', '9.5 GiB', 'mxu'), ('8x4', '12.25 GiB', '')],
    note='note',
  )
  assert tables.plain(table).splitlines() == [
    'Title',
    '  mesh         peak  bound by',
    '  32x1x1    9.5 GiB  mxu',
    '  8x4     12.25 GiB',
    'note',
  ]


TWO = [
  Table(title='First', rows=[('a', '1', 'of [2]')]),
  Table(title='Second', rows=[('b', '2', '')]),
]


def test_a_pipe_gets_plain_text():
  file = io.StringIO()
  tables.show(TWO, file)
  assert file.getvalue() == 'First\n  a  1  of [2]\n\nSecond\n  b  2\n'


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_a_terminal_gets_the_same_words_in_a_frame(monkeypatch):
  monkeypatch.setenv('TERM', 'xterm')
  file = Terminal()
  tables.show(TWO, file)
  for word in ('First', 'Second', 'of [2]', '│'):
    assert word in file.getvalue()
