"""What came of `qed demo --full`: its summary, page, plots and tables."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from qed import demo, report, solving

TRAINED = ('rl', 'rc')  # From the SFT model.


def evaluations_dir(workdir: pathlib.Path, model: str) -> pathlib.Path:
  """Where each evaluation of a model has its run directory."""
  return workdir / f'evaluate-{model}'


def turns_name(num_turns: int) -> str:
  """What an evaluation of a number of turns is called."""
  return f'turns={num_turns}'


def write_summary(workdir: pathlib.Path, *, max_turns: int) -> dict[str, Any]:
  """Writes summary.json.

  sft, grpo, rc: held-out problems, out of 1, as in the plain demo. turns: by
  model and number of turns. rc_less_rl: by number of turns, paired by problem.
  scaffolds: by name.

  Args:
    workdir: of a demo that is complete.
    max_turns: that were evaluated.

  Returns:
    The content.
  """
  from qed import held_out
  from qed.evals import summary
  from qed.training import rundir

  trained = {name: held_out.on_file(workdir / name) for name in TRAINED}
  turns = {
    name: {
      str(turn): entry(workdir, name, turns_name(turn))
      for turn in range(1, max_turns + 1)
    }
    for name in TRAINED
  }
  secs = json.loads((workdir / 'seconds.json').read_text(encoding='utf-8'))
  found = {
    'sft': demo.interval(trained['rl'][0]['scores']),
    'grpo': demo.interval(trained['rl'][max(trained['rl'])]['scores']),
    'rc': demo.interval(trained['rc'][max(trained['rc'])]['scores']),
    'turns': {
      name: {turn: row(x) for turn, x in by_turn.items()}
      for name, by_turn in turns.items()
    },
    'rc_less_rl': {
      turn: _difference(summary.compare(turns['rc'][turn], turns['rl'][turn]))
      for turn in turns['rc']
    },
    'scaffolds': {
      name: row(entry(workdir, 'sft', name)) for name in solving.SCAFFOLDS
    },
    'seconds': sum(secs.values()),
    'stage_seconds': secs,
  }
  rundir.write_json(workdir / 'summary.json', found)
  return found


def entry(workdir: pathlib.Path, model: str, name: str) -> dict[str, Any]:
  """What an evaluation found, by its model and its own name."""
  path = evaluations_dir(workdir, model) / name / 'summary.json'
  return json.loads(path.read_text(encoding='utf-8'))['evaluations'][0]


def row(entry: Mapping[str, Any]) -> dict[str, Any]:
  """What stands in summary.json of an evaluation.

  mean, low, high: the score out of 1; n: problems; tokens and calls: of an
  attempt; by_steps: the mean by the length of the chain.
  """
  bounds = {'mean': 'value', 'low': 'low', 'high': 'high'}
  by_length: dict[int, list[float]] = {}
  for problem_id, scores in entry['problem_scores'].items():
    # brief-c=3-c*2-d+4 has two steps.
    by_length.setdefault(problem_id.count('-') - 1, []).extend(scores)
  return {
    **{key: entry['score'][name] / 7 for key, name in bounds.items()},
    'n': entry['score']['n'],
    'tokens': entry['tokens']['completion'],
    'calls': entry['tokens']['calls'],
    'by_steps': {
      str(steps): sum(scores) / len(scores) / 7
      for steps, scores in sorted(by_length.items())
    },
  }


def _difference(compared: Any) -> dict[str, float]:
  difference = compared.difference
  return {
    'mean': difference.value / 7,
    'low': difference.low / 7,
    'high': difference.high / 7,
    'p_value': compared.p_value,
    'n': difference.num_problems,
  }


def write_page(workdir: pathlib.Path) -> pathlib.Path:
  """Writes the page about all runs and evaluations; returns its path."""
  evaluated = [evaluations_dir(workdir, name) for name in ('sft', *TRAINED)]
  return report.write([workdir, *evaluated], workdir / 'report', 32)


def plot(found: Mapping[str, Any], target: pathlib.Path) -> None:
  """turns.svg and scaffolds.svg: scores in percent, with their intervals."""
  from qed.reporting import score_plots

  def points(rows: Sequence[tuple[float, str, Mapping[str, float]]]):
    return [
      score_plots.Point(
        x=x,
        label=label,
        y=100 * row['mean'],
        low=100 * row['low'],
        high=100 * row['high'],
      )
      for x, label, row in rows
    ]

  by_turn = [
    (int(turn), name, row)
    for name, rows in found['turns'].items()
    for turn, row in rows.items()
  ]
  svg = score_plots.draw(
    points(by_turn), x='turns', y='% of 7 points', is_connected=True
  )
  (target / 'turns.svg').write_text(svg, encoding='utf-8')
  by_tokens = [
    (row['tokens'], name, row) for name, row in found['scaffolds'].items()
  ]
  svg = score_plots.draw(
    points(by_tokens), x='tokens of an attempt', y='% of 7 points'
  )
  (target / 'scaffolds.svg').write_text(svg, encoding='utf-8')


def print_tables(found: Mapping[str, Any]) -> None:
  """Prints the content of summary.json."""
  from qed.planning import tables

  def cells(row: Mapping[str, float]) -> tuple[str, str]:
    return (
      f'{row["mean"]:.3f}',
      f'{row["low"]:.3f} to {row["high"]:.3f}',
    )

  tables.show(
    [
      tables.Table(
        title='Held-out problems that fit in a completion, one completion',
        header=('after', 'score / 7', '95 % interval'),
        rows=[(name, *cells(found[name])) for name in ('sft', 'grpo', 'rc')],
      ),
      tables.Table(
        title='Problems that are too long for one: score / 7 by turns',
        header=('turns', 'RL', '', 'RC', '', 'RC less RL', '', 'tokens'),
        rows=[
          (
            turn,
            *cells(found['turns']['rl'][turn]),
            *cells(row),
            *cells(found['rc_less_rl'][turn]),
            f'{row["tokens"]:.0f}',
          )
          for turn, row in found['turns']['rc'].items()
        ],
      ),
      tables.Table(
        title='Scaffolds of the SFT model with the same budget',
        header=('scaffold', 'score / 7', '95 % interval', 'tokens', 'calls'),
        rows=[
          (name, *cells(row), f'{row["tokens"]:.0f}', f'{row["calls"]:.1f}')
          for name, row in found['scaffolds'].items()
        ],
      ),
      tables.Table(
        title='Time',
        rows=[
          *(
            (f'{secs:.0f} s', stage)
            for stage, secs in found['stage_seconds'].items()
          ),
          (f'{found["seconds"]:.0f} s', 'together'),
        ],
      ),
    ]
  )
