"""`qed grpo` with its samplers as processes of their own: two `qed serve`."""

import contextlib

import pytest

from bench import serve
from qed import cli, grpo
from qed.training import metrics
from tests.grpo_rig import (
  MAX_TOKENS,
  NUM_STEPS,
  PROMPT_TOKENS,
  Parts,
  assert_ledger_closes,
  cache,
  make_config,
  rollouts,
  tiny,
)

__all__ = ['cache', 'tiny']  # Fixtures.


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_samplers_over_http_draw_from_the_weights_of_the_step(
  cache, tiny, tmp_path
):
  """Weights go through the run's folder, tokens and log-probs over HTTP."""
  flags = (
    f'--weights_dir={tmp_path / "weights"}',
    f'--max_length={PROMPT_TOKENS + MAX_TOKENS}',
    '--page_size=64',
    '--steps_per_chunk=4',
    '--shutdown_secs=0',
  )
  with contextlib.ExitStack() as stack:
    urls = tuple(
      f'{stack.enter_context(serve.server(tiny / "model", *flags))[0]}/v1'
      for _ in range(2)
    )
    config = make_config(
      tiny, **{'sampler.placement': 'remote', 'sampler.urls': urls}
    )
    code = grpo.train(config, str(tmp_path), open_grader=Parts().open_grader)
  assert code == cli.DONE
  found = rollouts(tmp_path)
  assert sorted(found) == [(g, m) for g in range(8) for m in range(3)]
  for (group, _), row in found.items():
    assert {*row['versions']} == {group // 2}
  book = assert_ledger_closes(tmp_path)
  assert book['generated'] == book['trained']
  records = metrics.read(tmp_path / 'metrics.jsonl')
  assert len(records) == NUM_STEPS
  for record in records.values():
    assert record['ratio/mean'] == pytest.approx(1, abs=1e-5)
    assert record['mismatch/max'] < 1e-5
