"""The recipe in miniature, as far as it is built, on two CPU cores.

  qed demo [--workdir=runs/demo]

Chains of modular arithmetic -> teacher proofs -> a tokenizer and a tiny random
Qwen3 -> `qed sft` -> `qed export` -> the exported folder is loaded by a new
process, which proves problems that were trained on and problems that were not.
Started again with the same workdir, it goes on where it was stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import pathlib
import sys
import time
from collections.abc import Sequence

from absl import flags

from qed import cli, hub, sft

_EXPERIMENT = (
  pathlib.Path(__file__).resolve().parents[1] / 'experiments/miniature_sft.py'
)
NUM_TRAINED, NUM_NEW = 4_000, 32
_NUM_STEPS = (1, 2, 3, 4)  # Of the chains that the teacher proves.
_ERROR_RATE = 0.2  # Of a line of the teacher's.
_PROMPT = '{{problem}}'  # As in the experiment.
_MODEL = {
  'model_type': 'qwen3',
  'hidden_size': 64,
  'intermediate_size': 192,
  'num_hidden_layers': 4,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 32,
  'rope_theta': 100.0,  # Samples have at most 160 tokens.
  'rms_norm_eps': 1e-6,
  'tie_word_embeddings': True,
  'max_position_embeddings': 512,
}
_MAX_PROOF_TOKENS = 96


def main(argv: Sequence[str]) -> int:
  """Runs every stage and prints what came of it."""
  values = flags.FlagValues()
  flags.DEFINE_string('workdir', 'runs/demo', 'the folder', flag_values=values)
  cli.parse_flags(argv, values, usage=__doc__)
  workdir = pathlib.Path(values['workdir'].value)
  began = time.monotonic()

  trained, new = _chains()
  if not (workdir / 'traces.jsonl').exists():
    _say('writing teacher proofs, a tokenizer and a random model')
    _write_material(workdir, trained)
  _say('supervised fine-tuning')
  code = sft.main(
    [
      'qed sft',
      f'--config={_EXPERIMENT}',
      f'--config.model.path={workdir / "model"}',
      f'--config.data.paths={workdir / "traces.jsonl"}',
      f'--workdir={workdir / "sft"}',
    ],
  )
  if code != cli.DONE:
    return code
  _say('exporting, and proving with what was exported')
  exported = workdir / 'exported'
  hub.export_main(
    ['qed export', '--force', str(workdir / 'sft/checkpoints'), str(exported)]
  )
  scores = {}
  with multiprocessing.get_context('spawn').Pool(1) as pool:
    for name, chains in (('trained on', trained[:NUM_NEW]), ('new', new)):
      scores[name] = pool.apply(prove, (str(exported), chains))
  _report(workdir, scores, time.monotonic() - began)
  return cli.DONE


def _chains():
  """Distinct chains: to train on, and new."""
  import numpy as np

  from qed.miniature import problems

  chains = problems.draw_distinct(
    NUM_TRAINED + NUM_NEW, _NUM_STEPS, np.random.default_rng(0)
  )
  return chains[:NUM_TRAINED], chains[NUM_TRAINED:]


def _write_material(workdir: pathlib.Path, chains) -> None:
  """The model folder (random weights and tokenizer), then the traces."""
  import jax
  import numpy as np

  from qed.data import problems as files
  from qed.data import tokenizer
  from qed.data.problems import Trace
  from qed.miniature import problems, teacher
  from qed.models import hf, qwen3

  rng = np.random.default_rng(1)
  traces = []
  for chain in chains:
    problem = problems.problem(chain)
    traces.append(
      Trace(
        problem_id=problem.problem_id,
        statement=problem.statement,
        reasoning='',
        proof=teacher.write(chain, rng, error_rate=_ERROR_RATE),
        source=problem.source,
      )
    )
  words = tokenizer.train_sentencepiece(
    # The chat's roles are to be whole pieces, as the words of a problem are.
    ['user\n', 'assistant\n'] * 100
    + [f'{trace.statement}\n{trace.proof}' for trace in traces[:400]],
    max_vocab_size=460,
  )
  words.save(workdir / 'tokenizer')
  config = qwen3.Config.from_hf(
    {
      **_MODEL,
      'vocab_size': words.vocab_size,
      'eos_token_id': words.eos_id,
      'pad_token_id': words.pad_id,
    }
  )
  hf.save(
    workdir / 'model',
    qwen3.init(config, jax.random.key(0)),
    config,
    tokenizer_dir=workdir / 'tokenizer',
    force=True,
  )
  files.write_jsonl(workdir / 'traces.jsonl', traces)


def prove(folder: str, chains) -> tuple[list[str], float, float]:
  """Greedy proofs of an exported model.

  Args:
    folder: a Hugging Face folder.
    chains: the problems.

  Returns:
    The proofs, the share of them that equal the chain's proof to the letter,
    and the mean share of leading lines that do.
  """
  import functools

  import jax
  import jax.numpy as jnp
  import numpy as np

  from qed.data import chat, tokenizer
  from qed.data.templates import render
  from qed.miniature import problems
  from qed.models import hf, kv_cache, qwen3
  from qed.types import Message

  params, config = hf.load(folder, dtype=jnp.float32)
  words = tokenizer.load(folder)
  prompts = []
  for chain in chains:
    content = render(_PROMPT, problem=problems.problem(chain).statement)
    prompts.append(
      chat.encode_chat(
        words, [Message(role='user', content=content)], style='instruct'
      )
    )
  lengths = np.array([len(ids) for ids in prompts], np.int32)
  tokens = np.zeros((len(prompts), lengths.max()), np.int32)
  for row, ids in zip(tokens, prompts, strict=True):
    row[: len(ids)] = ids
  cache = kv_cache.init(
    config, len(prompts), lengths.max() + _MAX_PROOF_TOKENS, dtype=jnp.float32
  )
  prefill = jax.jit(functools.partial(qwen3.prefill, config=config))
  decode = jax.jit(functools.partial(qwen3.decode_step, config=config))
  hidden, cache = prefill(params, tokens, lengths, cache)
  hidden = hidden[np.arange(len(prompts)), lengths - 1]
  columns = []
  for _ in range(_MAX_PROOF_TOKENS):
    drawn = qwen3.logits(params, hidden, config=config).argmax(-1)
    columns.append(np.asarray(drawn, np.int32))
    hidden, cache = decode(params, columns[-1], cache)

  proofs, whole, lines = [], [], []
  for row, chain in zip(np.stack(columns, 1), chains, strict=True):
    ends = np.isin(row, words.stop_token_ids)
    text = words.decode(row[: ends.argmax() if ends.any() else len(row)])
    wanted = problems.proof(chain).split('\n')
    equal = [a == b for a, b in zip(text.split('\n'), wanted, strict=False)]
    leading = equal.index(False) if False in equal else len(equal)
    proofs.append(text)
    whole.append(text == '\n'.join(wanted))
    lines.append(leading / len(wanted))
  return proofs, float(np.mean(whole)), float(np.mean(lines))


def _report(workdir: pathlib.Path, scores, secs: float) -> None:
  """Prints a table and one proof; writes summary.json."""
  run = json.loads((workdir / 'sft/summary.json').read_text(encoding='utf-8'))
  print(f'\n{"problems":<12}{"whole proof":>14}{"leading lines":>16}')
  for name, (_, whole, lines) in scores.items():
    print(f'{name:<12}{whole:>13.0%}{lines:>15.0%}')
  print(f'\na proof by the exported model:\n{scores["trained on"][0][0]}')
  summary = {
    'sft': run,
    'proofs': {
      name: {'whole': whole, 'leading_lines': lines, 'n': len(proofs)}
      for name, (proofs, whole, lines) in scores.items()
    },
    'seconds': secs,
  }
  (workdir / 'summary.json').write_text(
    json.dumps(summary, indent=2) + '\n', encoding='utf-8'
  )
  print(f'\n{secs:.0f} s; {workdir / "summary.json"}')


def _say(line: str) -> None:
  print(f'== {line}', flush=True)


if __name__ == '__main__':
  sys.exit(cli.run(main))
