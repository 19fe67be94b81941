"""Teacher traces turned into samples to imitate, some of them held out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

from qed.data import chat, problems, samples, templates
from qed.data.tokenizer import Tokenizer
from qed.types import Message, TrainingSample


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Demonstrations:
  """Samples in the order of the files.

  Attributes:
    train: to be trained on.
    validation: of other problems than those.
    problem_ids: whose sample it is, by the bytes of its token ids.
    report: what was read and what was left out, in words.
  """

  train: list[TrainingSample]
  validation: list[TrainingSample]
  problem_ids: Mapping[bytes, str]
  report: str


def load(
  paths: Sequence[problems.Path],
  tokenizer: Tokenizer,
  *,
  prompt: str,
  style: chat.ChatStyle,
  max_tokens: int,
  overlong: samples.OnOverlong,
  malformed: problems.OnMalformed,
  validation_frac: float,
) -> Demonstrations:
  """Reads traces and splits them by problem.

  Whether a problem is held out depends on its id alone: it is the same in every
  run with this fraction, whatever else is in the files.

  Args:
    paths: as `problems.stream_traces` reads them.
    tokenizer: of the model.
    prompt: a template whose only slot is `problem`; a trace with messages of
      its own is not asked by it.
    style: of the chat; only 'thinking' has a place for reasoning.
    max_tokens: of a sample, prompt included.
    overlong: what becomes of a longer one.
    malformed: what becomes of a line that is no trace.
    validation_frac: about which part of the problems is held out, in [0, 1).

  Raises:
    ValueError: another template, a trace that cannot be used, or none that can
      be trained on.
  """
  if templates.slots(prompt) != ('problem',):
    raise ValueError(
      f'prompt {prompt!r}: expected a template whose only slot is problem, got '
      f'{templates.slots(prompt)}'
    )
  traces, report = problems.stream_traces(*paths, malformed=malformed)
  read = {'train': [], 'validation': []}
  problem_ids = {}
  for trace in traces:
    is_held_out = _unit_hash(trace.problem_id) < validation_frac
    sample = _sample(trace, tokenizer, prompt, style)
    read['validation' if is_held_out else 'train'].append(sample)
    problem_ids[sample.token_ids.tobytes()] = trace.problem_id
  kept, lines = {}, [str(report)]
  for part, found in read.items():
    kept[part], lengths = samples.limit_length(
      found, max_tokens, overlong=overlong
    )
    lines.append(
      f'{part}: {len(kept[part])} samples ({lengths.num_dropped} longer ones '
      f'dropped, {lengths.num_truncated} cut to {max_tokens} tokens)'
    )
  report = '\n'.join(lines)
  if not kept['train']:
    raise ValueError(f'expected samples to train on, got none:\n{report}')
  return Demonstrations(**kept, problem_ids=problem_ids, report=report)


def digest(train: Sequence[TrainingSample]) -> str:
  """Sixteen hexadecimal digits that tell one list of samples from another."""
  sha = hashlib.sha256()
  for sample in train:
    sha.update(len(sample.token_ids).to_bytes(8, 'little'))
    sha.update(sample.token_ids.tobytes() + sample.loss_mask.tobytes())
  return sha.hexdigest()[:16]


def _sample(
  trace: problems.Trace,
  tokenizer: Tokenizer,
  prompt: str,
  style: chat.ChatStyle,
) -> TrainingSample:
  """The prompt as the policy will see it, and what it should answer."""
  messages = trace.prompt_messages
  if not messages:
    text = templates.render(prompt, problem=trace.statement)
    messages = (Message(role='user', content=text),)
  try:
    return samples.from_sft(
      chat.encode_chat(tokenizer, messages, style=style),
      chat.encode_completion(
        tokenizer, trace.proof, reasoning=trace.reasoning, style=style
      ),
      stop_token_ids=tokenizer.stop_token_ids,
    )
  except ValueError as error:
    raise ValueError(f'problem {trace.problem_id}: {error}') from error


def _unit_hash(text: str) -> float:
  """A number in [0, 1) that looks random and depends on the text alone."""
  sha = hashlib.sha256(text.encode()).digest()
  return int.from_bytes(sha[:6], 'big') / 2**48
