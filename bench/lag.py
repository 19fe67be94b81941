r"""What a lag costs in learning, with the ratio correction and without it.

  qed demo
  .venv/bin/python -m bench.lag --demo runs/demo [--out lag.json] [--plot F.png]

Every run begins with the demo's weights after SFT and takes the demo's steps of
`qed grpo` on its problems, seeds and settings, judged by its judge. What
differs is how old the weights are that rollouts are drawn with. On two cores
sampler and trainer take turns whatever `max_lag` allows, and nothing would be
as old as it may be; so the sampler is handed each version `max_lag - 2` steps
late, and sampling ahead of the trainer adds one or two. The lag in the table is
what was measured. Scores are those of a version, whenever the sampler gets it.

`corrected` is the clipped ratio to the policy that drew a token (ppo, as in the
demo). `uncorrected` takes every ratio for 1 (cispo with an empty interval): the
plain policy gradient, as if the rollouts had been drawn by the trainer's
weights. Without a lag the two are the same, and it is run once.

The figure is the mean score / 7 on the held-out problems, with the demo's 95 %
bootstrap interval over problems. Compare the shape with AReaL's ablation, in
which more than a small lag needs a correction.
"""

import argparse
import collections
import contextlib
import json
import multiprocessing
import os
import pathlib
import tempfile
import time

LAGS = (0, 1, 4, 16)
NUM_STEPS = 50


def delay(max_lag: int) -> int:
  """Steps after which the sampler gets a version."""
  return max(max_lag - 2, 0)


class Late:
  """A sampler that gets every version some steps late."""

  def __init__(self, sampler, num_steps: int):
    self._sampler, self._delay = sampler, num_steps
    self._waiting = collections.deque()
    self.sample = sampler.sample

  async def update(self, params, version):
    """Keeps the weights, and hands over those of `delay` steps ago."""
    self._waiting.append((params, version))
    if len(self._waiting) > self._delay:
      await self._sampler.update(*self._waiting.popleft())


def make_config(
  demo: pathlib.Path, judge_url: str, max_lag: int, corrected: bool, seed: int
):
  """The demo's config with a lag."""
  from experiments import base, miniature_rl
  from qed import config

  values = {
    'model.path': str(demo / 'sft/checkpoints'),
    'problems.paths': (str(demo / 'practice.jsonl'),),
    'evaluation.paths': (str(demo / 'held_out.jsonl'),),
    'judge.base_url': judge_url,
    'training.seed': seed,
    # The last evaluation is then of the version that all runs end with.
    'training.total_steps': NUM_STEPS + delay(max_lag),
    'training.checkpoint_interval_steps': NUM_STEPS,
    'rollout.max_lag': max_lag,
    # Sampling is a step or two ahead of the trainer; `Late` does the rest.
    'rollout.max_groups_in_flight': 16,
    'rollout.max_groups_waiting': 16,
    'health.max_mismatch': 0.0,
  }
  if not corrected:
    values |= {
      'loss.kind': 'cispo',
      'loss.clip_low': 0.0,
      'loss.clip_high': 0.0,
    }
  return config.build(base.override(miniature_rl.get_config(), values))


def measure(
  demo: pathlib.Path, max_lag: int, corrected: bool, seed: int
) -> dict:
  """One run: the lag that came of it, and the scores at every evaluation."""
  from qed import cli, grpo, held_out, samplers
  from qed import demo as program
  from qed.miniature import judge_server
  from qed.training import metrics

  @contextlib.asynccontextmanager
  async def open_late(run, params, version):
    async with samplers.open_sampler(run, params, version) as sampler:
      yield Late(sampler, delay(max_lag))

  began = time.monotonic()
  with (
    tempfile.TemporaryDirectory() as workdir,
    judge_server.start() as judge,
  ):
    config = make_config(demo, judge.url, max_lag, corrected, seed)
    code = grpo.train(config, workdir, open_sampler=open_late)
    if code != cli.DONE:
      raise SystemExit(f'max_lag {max_lag} ended with code {code}')
    records = metrics.read(pathlib.Path(workdir) / 'metrics.jsonl')
    found = held_out.on_file(pathlib.Path(workdir))
    book = json.loads((pathlib.Path(workdir) / 'ledger.json').read_text())
  last = [records[step] for step in sorted(records)][-10:]

  def mean(name):
    return sum(record[name] for record in last) / len(last)

  return {
    'max_lag': max_lag,
    'corrected': corrected,
    'seed': seed,
    'lag_mean': mean('lag/mean'),
    'lag_max': max(record['lag/max'] for record in records.values()),
    'mismatch': mean('mismatch/mean'),
    'ess': mean('ess'),
    'stale_share': book['stale'] / book['generated'],
    'scores': {
      found[step]['version_max']: program.interval(found[step]['scores'])
      for step in sorted(found)
    },
    'secs': time.monotonic() - began,
  }


def plot(rows: list[dict], path: pathlib.Path) -> None:
  """Held-out score against steps, a line for each run."""
  import matplotlib

  matplotlib.use('agg')
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(
    1, 2, figsize=(9, 4), sharey=True, layout='constrained'
  )
  colors = pyplot.cm.viridis([0.0, 0.3, 0.6, 0.85])
  for side, corrected in zip(axes, (True, False), strict=True):
    for row in rows:
      # Without a lag there is nothing to correct.
      if row['corrected'] != corrected and row['max_lag']:
        continue
      steps = sorted(row['scores'])
      color = colors[LAGS.index(row['max_lag'])]
      scores = [row['scores'][step] for step in steps]
      side.plot(
        steps,
        [score['mean'] for score in scores],
        color=color,
        marker='o',
        markersize=3,
        label=f'max_lag {row["max_lag"]} (mean {row["lag_mean"]:.1f})',
      )
      side.fill_between(
        steps,
        [score['low'] for score in scores],
        [score['high'] for score in scores],
        color=color,
        alpha=0.12,
        linewidth=0,
      )
    side.set_title('ratio corrected' if corrected else 'uncorrected')
    side.set_xlabel('step')
    side.grid(alpha=0.3)
  handles, labels = axes[0].get_legend_handles_labels()
  figure.legend(handles, labels, loc='outside lower center', ncols=len(labels))
  axes[0].set_ylabel('held-out score / 7')
  figure.savefig(path, dpi=110)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--demo', type=pathlib.Path, required=True)
  parser.add_argument('--lags', type=int, nargs='+', default=LAGS, choices=LAGS)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--out', type=pathlib.Path, help='a JSON file')
  parser.add_argument('--plot', type=pathlib.Path, help='a picture')
  args = parser.parse_args()
  rows = []
  for max_lag in args.lags:
    for corrected in (True, False) if max_lag else (True,):
      with multiprocessing.get_context('spawn').Pool(1) as pool:
        row = pool.apply(measure, (args.demo, max_lag, corrected, args.seed))
      rows.append(row)
      final = row['scores'][max(row['scores'])]
      print(
        f'max_lag {max_lag}, {"" if corrected else "un"}corrected: '
        f'{final["mean"]:.3f} [{final["low"]:.3f}, {final["high"]:.3f}]; lag '
        f'{row["lag_mean"]:.1f} (at most {row["lag_max"]:.0f}), mismatch '
        f'{row["mismatch"]:.3f}, ess {row["ess"]:.2f}, stale '
        f'{row["stale_share"]:.1%}, {row["secs"]:.0f} s',
        flush=True,
      )
      if args.out:
        text = json.dumps({'cores': os.cpu_count(), 'runs': rows}, indent=2)
        args.out.write_text(text + '\n', encoding='utf-8')
  if args.plot:
    plot(rows, args.plot)


if __name__ == '__main__':
  main()
