"""What makes another evaluation, and what another judge."""

import dataclasses

import pytest

from experiments import base, eval_main
from qed import config
from qed.data import problems, templates
from qed.evals import benchmarks, identity

BENCHMARK = benchmarks.Benchmark(
  name='own_proofs',
  kind='proof',
  split='',
  items=(),
  digest='d',
  is_published=None,
  report=problems.ReadReport(),
)


def digests(benchmark=BENCHMARK, **changes):
  """(of the way to solutions, of the judge) with these values of the config."""
  paths = {path.replace('__', '.'): value for path, value in changes.items()}
  given = config.build(base.override(eval_main.get_config(), paths))
  found = identity.identify(given, benchmark, 'w')
  return found.config, found.judge


def changed(benchmark=BENCHMARK, given=None, **changes):
  """Which of the two a change of the config makes another."""
  before = digests(benchmark, **(given or {}))
  after = digests(benchmark, **((given or {}) | changes))
  names = ('solutions', 'judge')
  pairs = zip(names, before, after, strict=True)
  return {name for name, a, b in pairs if a != b}


@pytest.mark.parametrize(
  'change',
  [
    {'seed': 7},
    {'scaffold': 'rsa'},
    {'sampling__temperature': 0.1},
    {'sampling__max_tokens': 99},
    {'budget__max_tokens': 99},
    {'budget__max_secs': 9.0},
    {'solver__chat_style': 'base'},
    {'solver__roles': ('verifier=other@http://a/v1',)},
    {'scaffolds__single__solve': 'answer'},
  ],
  ids=str,
)
def test_this_makes_other_solutions(change):
  assert changed(**change) == {'solutions'}


@pytest.mark.parametrize(
  'change',
  [
    {'judge__model': 'other'},
    {'judge__effort': 'medium'},
    {'judge__temperature': 0.5},
    {'judge__max_tokens': 99},
    {'judge__max_draws': 9},
    {'judge__template': 'simple'},
    {'judge__with_reference': False},
    {'judge__replicas': 3},
    {'judge__aggregate': 'minimum'},
  ],
  ids=str,
)
def test_this_makes_another_judge(change):
  given = {'judge__effort': 'low', 'judge__with_reference': True}
  assert changed(given=given, **change) == {'judge'}


@pytest.mark.parametrize(
  'change',
  [
    {'solver__base_url': 'http://elsewhere/v1'},
    {'solver__max_concurrency': 3},
    {'scaffolds__rsa__num_rounds': 9},
    {'budget__usd_per_million_prompt': 9.0},
    {'judge__base_url': 'http://elsewhere/v1'},
    {'judge__usd_per_million_prompt': 9.0},
    {'benchmark__num_attempts': 9},
    {'benchmark__pass_score': 7},
  ],
  ids=str,
)
def test_this_makes_nothing_else(change):
  assert changed(**change) == set()


def test_a_role_may_be_played_elsewhere_and_prices_count_under_a_limit():
  here, there = (f'verifier=v@http://{host}/v1' for host in ('a', 'b'))
  given = {'solver__roles': (here,)}
  assert changed(given=given, solver__roles=(there,)) == set()
  given = {'budget__max_usd': 1.0, 'budget__usd_per_million_completion': 2.0}
  price = {'budget__usd_per_million_prompt': 9.0}
  assert changed(given=given, **price) == {'solutions'}


@pytest.mark.parametrize(
  ('template', 'kind', 'other'),
  [
    ('prove', 'proof', {'solutions'}),
    ('judge_system', 'proof', {'judge'}),
    ('judge_simple', 'proof', {'judge'}),
    ('judge_reference', 'proof', {'judge'}),
    ('judge_opc', 'proof', set()),
    ('judge_answer', 'answer', {'judge'}),
    ('judge_simple', 'answer', set()),
  ],
)
def test_a_template_that_is_edited_is_another(
  monkeypatch, template, kind, other
):
  given = {
    'scaffolds__single__solve': 'prove',
    'judge__template': 'simple',
    'judge__with_reference': True,
    'benchmark__second_opinion': True,
  }
  benchmark = dataclasses.replace(BENCHMARK, kind=kind)
  before, text = digests(benchmark, **given), templates.text

  def edited(name):
    return text(name) + ' Edited.' * (name == template)

  monkeypatch.setattr(templates, 'text', edited)
  after = digests(benchmark, **given)
  pairs = zip(('solutions', 'judge'), before, after, strict=True)
  assert {name for name, a, b in pairs if a != b} == other
