import dataclasses
import json

import pytest

from qed.planning import chips, report
from qed.planning.compile import Compiled, Memory, Refusal
from qed.planning.flops import Flops
from qed.planning.roofline import Estimate, Range
from qed.planning.search import Layout
from qed.planning.tables import plain
from qed.planning.traffic import Collective, Traffic

LAYOUT = Layout(
  data=16,
  context=1,
  tensor=1,
  remat='attention',
  num_rows=16,
  row_length=4_096,
  num_microbatches=2,
)
ESTIMATE = Estimate(
  model_flops=3e15,
  matmul_flops=2e15,
  attention_flops=2e15,
  hbm_bytes=2e12,
  ici_bytes=36e9,
  matmul_secs=4.0,
  attention_secs=6.0,
  hbm_secs=1.0,
  ici_secs=0.5,
  cycle_secs=5.0,
  ideal_secs=8.0,
  binds='mxu',
  mfu_bound=0.75,
  step_secs=Range(low=11.0, high=11.5),
  mfu=Range(low=0.521, high=0.545),
  tokens_per_sec_per_chip=Range(low=900.0, high=1_000.0),
)
GATHER = Collective('all-gather', 16, 'jit(step)/gather')
FITTING = report.Plan(
  layout=LAYOUT,
  compiled=Compiled(
    memory=Memory(peak=15 * 2**30, arguments=2**30, temporaries=0, host=0),
    refusal=None,
    hlo='a program',
    secs=90.0,
    host_bytes=2 * 2**30,
    versions={'libtpu': '0.0.42'},
    is_cached=False,
  ),
  flops=Flops(matmul=1.0, uncounted=frozenset({'mystery'})),
  traffic=Traffic(
    hbm_bytes=2e12,
    ici_bytes=36e9,
    cycles=1.0,
    collectives={GATHER: 36e9},
    kernels={'splash_mha_fwd': 72},
    unknown_loops=(),
  ),
  estimate=ESTIMATE,
)
REFUSED = report.Plan(
  layout=dataclasses.replace(LAYOUT, remat='none'),
  compiled=dataclasses.replace(
    FITTING.compiled,
    memory=None,
    refusal=Refusal(text='no', required=19 * 2**30, available=16 * 2**30),
  ),
)
IMPOSSIBLE = report.Plan(layout=LAYOUT, fault='7 does not divide 16')
SUBJECT = report.Subject(
  program='sft',
  model='qwen3-4b',
  target=chips.parse_slice('v5e:4x4'),
  total_steps=100,
  tokens_per_epoch=57_600_000,
)


def faster(plan, factor):
  rate = Range(low=900.0 * factor, high=1_000.0 * factor)
  estimate = dataclasses.replace(ESTIMATE, tokens_per_sec_per_chip=rate)
  return dataclasses.replace(plan, estimate=estimate)


def text(tables):
  return '\n'.join(map(plain, tables))


def test_the_best_plan_is_the_fastest_that_fits():
  fast = faster(FITTING, 2)
  assert report.best([REFUSED, FITTING, fast, IMPOSSIBLE]) is fast
  assert report.best([REFUSED, IMPOSSIBLE]) is REFUSED


def test_a_ranking_begins_with_the_fastest_and_ends_with_what_does_not_fit():
  plans = [REFUSED, FITTING, faster(FITTING, 2)]
  rows = report.ranking(plans, SUBJECT).rows
  assert [row[4] for row in rows] == ['1,800 .. 2,000', '900 .. 1,000', '']
  assert rows[-1][-1] == 'needs 19.00 GiB of 16.00 GiB'
  assert len({len(row) for row in rows}) == 1


def test_a_ranking_ends_with_the_flags_of_the_first():
  small = dataclasses.replace(LAYOUT, context=2, num_rows=32)
  best = dataclasses.replace(faster(FITTING, 2), layout=small)
  assert report.ranking([FITTING, best], SUBJECT).note == (
    'the first: --config.mesh.data=16 --config.mesh.context=2 '
    '--config.mesh.tensor=1 --config.model.remat=attention '
    '--config.packing.num_rows=32 --config.packing.microbatch_counts=2'
  )
  assert report.ranking([REFUSED], SUBJECT).note == ''


def test_the_headroom_is_told_and_that_it_is_little():
  shown = text(report.details(FITTING, SUBJECT))
  assert '15.00 GiB' in shown
  assert '5% stays free; keep 10 %' in shown


def test_hours_come_from_the_tokens_and_from_the_steps():
  shown = text(report.details(FITTING, SUBJECT))
  # 57.6 million tokens at 16 x 1,000 or 16 x 900 a second.
  assert '1.00 .. 1.11 h' in shown
  # 100 steps of 11 to 11.5 seconds.
  assert '0.31 .. 0.32 h' in shown


def test_without_steps_and_tokens_there_are_no_hours():
  subject = dataclasses.replace(SUBJECT, total_steps=0, tokens_per_epoch=None)
  assert ' h' not in text(report.details(FITTING, subject)[-1:]).replace(
    ' hidden', ''
  )


def test_what_is_not_counted_is_told():
  assert 'not counted in full: mystery' in text(
    report.details(FITTING, SUBJECT)
  )


@pytest.mark.parametrize(
  ('plan', 'reason'),
  [
    (REFUSED, 'needs 19.00 GiB of 16.00 GiB'),
    (IMPOSSIBLE, '7 does not divide 16'),
  ],
)
def test_what_does_not_fit_says_why_and_what_to_try(plan, reason):
  (table,) = report.details(plan, SUBJECT)
  assert ('does not fit', reason) in table.rows
  assert '--search' in table.note


def test_json_has_every_plan_and_no_program_text():
  values = json.loads(
    json.dumps(report.as_json([REFUSED, FITTING, IMPOSSIBLE], SUBJECT))
  )
  assert values['best'] == 1
  assert [plan['fits'] for plan in values['plans']] == [False, True, False]
  fitting = values['plans'][1]
  assert 'hlo' not in fitting['compiled']
  assert fitting['estimate']['mfu'] == {'low': 0.521, 'high': 0.545}
  assert fitting['traffic']['collectives'] == [
    {
      'kind': 'all-gather',
      'group_size': 16,
      'source': 'jit(step)/gather',
      'ici_bytes': 36e9,
    }
  ]
