"""Text to token ids and back.

A tokenizer comes from a Hugging Face folder (`load`) or is learnt in memory
(`train_sentencepiece`). Either way the same fast runtime applies it, so that
what a saved folder does elsewhere is what it did here.

Text is data: `Tokenizer.encode` spells `<|im_end|>` or `</think>` inside a
problem with ordinary tokens. Control tokens are placed by id, in `chat.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tokenizers

PAD = '<|endoftext|>'
TURN_START = '<|im_start|>'
TURN_END = '<|im_end|>'
THINK_START = '<think>'
THINK_END = '</think>'

# Qwen's byte-level vocabulary ends where Qwen3's control tokens begin, in this
# order. The tags are not "special" to Hugging Face: its skip_special_tokens
# leaves them in the text.
QWEN_TEXT_VOCAB_SIZE = 151_643
QWEN3_SPECIALS = (
  '<|endoftext|>',
  '<|im_start|>',
  '<|im_end|>',
  '<|object_ref_start|>',
  '<|object_ref_end|>',
  '<|box_start|>',
  '<|box_end|>',
  '<|quad_start|>',
  '<|quad_end|>',
  '<|vision_start|>',
  '<|vision_end|>',
  '<|vision_pad|>',
  '<|image_pad|>',
  '<|video_pad|>',
)
QWEN3_TAGS = (
  '<tool_call>',
  '</tool_call>',
  '<|fim_prefix|>',
  '<|fim_middle|>',
  '<|fim_suffix|>',
  '<|fim_pad|>',
  '<|repo_name|>',
  '<|file_sep|>',
  '<tool_response>',
  '</tool_response>',
  '<think>',
  '</think>',
)

# What makes up a tokenizer in a Hugging Face folder.
TOKENIZER_FILES = (
  'tokenizer.json',
  'tokenizer.model',
  'tokenizer_config.json',
  'vocab.json',
  'merges.txt',
  'added_tokens.json',
  'special_tokens_map.json',
  'chat_template.jinja',
)

# For folders of our own making; `enable_thinking` is Qwen3's switch.
CHAT_TEMPLATE = (
  '{% for message in messages %}'
  f"{{{{ '{TURN_START}' + message.role + '\\n' }}}}"
  f"{{{{ message.content + '{TURN_END}\\n' }}}}"
  '{% endfor %}'
  '{% if add_generation_prompt %}'
  f"{{{{ '{TURN_START}assistant\\n' }}}}"
  '{% if enable_thinking is not defined or enable_thinking %}'
  f"{{{{ '{THINK_START}\\n' }}}}"
  '{% endif %}{% endif %}'
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tokenizer:
  """A vocabulary and its rules; made by `load` or `train_sentencepiece`.

  Attributes:
    special_ids: id of every control token, by its text; `encode` returns none
      of them.
    eos_id: the end of a sequence, as the folder declares it.
    pad_id: fills what is masked; it may equal `eos_id`, so that masks are to
      be made from lengths.
    stop_token_ids: every id that ends a completion, `eos_id` first.
    vocab_size: ids are below it; an embedding may have more rows.
    files: the folder's tokenizer files, by name.
    backend: the runtime; owned by this object.
  """

  special_ids: Mapping[str, int]
  eos_id: int
  pad_id: int
  stop_token_ids: tuple[int, ...]
  vocab_size: int
  files: Mapping[str, bytes]
  backend: tokenizers.Tokenizer

  def __post_init__(self):
    # "Encode special tokens as text". Serialisation drops this switch, hence
    # __reduce__: a copy in another process is constructed anew.
    self.backend.encode_special_tokens = True

  def __reduce__(self):
    names = [field.name for field in dataclasses.fields(self)]
    fields = {name: getattr(self, name) for name in names}
    return functools.partial(Tokenizer, **fields), ()

  def encode(self, text: str) -> np.ndarray:
    """Returns int32 [n], the ids of plain text: no control token, no BOS.

    Raises:
      ValueError: the text holds a lone surrogate, which is not Unicode text.
    """
    try:
      ids = self.backend.encode(text, add_special_tokens=False).ids
    except TypeError as error:
      if not isinstance(text, str):
        raise
      raise ValueError(
        'expected Unicode text, got a string with a lone surrogate: '
        f'{text[:80]!r}'
      ) from error
    return np.array(ids, np.int32)

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of `ids`, control tokens spelled out.

    A completion that stopped has its stop token last: drop it before decoding.
    Bytes that are not UTF-8 become U+FFFD, and ids from `vocab_size` on (rows
    that an embedding has to spare) nothing. `decode(encode(text))` is `text`,
    but for Qwen, whose tokenizer first normalizes to NFC.
    """
    return self.backend.decode(
      np.asarray(ids, np.int32).tolist(), skip_special_tokens=False
    )

  def save(self, folder: str | os.PathLike[str]) -> None:
    """Writes the tokenizer files, for `load` or transformers' AutoTokenizer."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in self.files.items():
      (folder / name).write_bytes(content)


def load(folder: str | os.PathLike[str]) -> Tokenizer:
  """Loads the tokenizer of a local Hugging Face folder, without the network.

  A folder with Qwen's text vocabulary that lacks some of Qwen3's control tokens
  gets them at their published ids.

  Raises:
    FileNotFoundError: there is no such folder, or no tokenizer in it.
    ValueError: the tokenizer declares no EOS, or has no fast runtime, or has
      one of Qwen3's control tokens at another id.
  """
  folder = pathlib.Path(folder)
  files = {
    name: (folder / name).read_bytes()
    for name in TOKENIZER_FILES
    if (folder / name).is_file()
  }
  if 'tokenizer_config.json' not in files:
    raise FileNotFoundError(
      f'expected a Hugging Face folder with tokenizer_config.json, got {folder}'
      f' ({"which has none" if folder.is_dir() else "which does not exist"})'
    )
  # Its import warns that PyTorch is missing, which is as it should be here.
  os.environ.setdefault('TRANSFORMERS_NO_ADVISORY_WARNINGS', '1')
  import transformers

  source = transformers.AutoTokenizer.from_pretrained(
    folder, local_files_only=True, trust_remote_code=False
  )
  if not source.is_fast:
    raise ValueError(
      f'expected a tokenizer that the tokenizers library can run, got '
      f'{type(source).__name__} from {folder}; convert it to a tokenizer.json'
    )
  if source.eos_token_id is None:
    raise ValueError(
      f'expected an eos_token in {folder / "tokenizer_config.json"}, got none'
    )
  backend = source.backend_tokenizer
  if added := _add_qwen3_tokens(backend, folder):
    files['tokenizer_config.json'] = _declare_added_tokens(
      files['tokenizer_config.json'], added
    )
  return _from_backend(
    backend,
    eos_id=source.eos_token_id,
    pad_id=source.pad_token_id,
    declared_stops=_declared_stops(folder),
    files=files,
  )


def train_sentencepiece(
  texts: Iterable[str], *, max_vocab_size: int, mixes_scripts: bool = False
) -> Tokenizer:
  r"""Learns a small tokenizer with ChatML and think tags, deterministically.

  Byte-pair encoding of the text as it is: no normalization, no space put in
  front or taken away, digits and newlines one by one, and UTF-8 bytes for
  characters that `texts` does not contain, so that every text round-trips.

  Sentencepiece learns the pieces; `save` writes both its tokenizer.model and a
  tokenizer.json of the same pieces, numbered alike. They differ in one thing:
  sentencepiece writes a space as U+2581 and cannot tell the two apart; here
  U+2581 is spelled in bytes.

  Args:
    texts: what to learn from, plain text without control tokens.
    max_vocab_size: control tokens, 256 bytes, every character of `texts`, and
      merged pieces for as long as there are any; there may be fewer.
    mixes_scripts: whether a piece may hold letters and signs, such as `d=c*`.

  Raises:
    ValueError: `max_vocab_size` does not hold even the characters.
  """
  import sentencepiece

  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(texts),
      model_writer=model,
      model_type='bpe',
      vocab_size=max_vocab_size,
      hard_vocab_limit=False,
      byte_fallback=True,
      character_coverage=1.0,
      normalization_rule_name='identity',
      add_dummy_prefix=False,
      remove_extra_whitespaces=False,
      split_digits=True,
      split_by_unicode_script=not mixes_scripts,
      unk_id=0,
      bos_id=-1,
      eos_id=1,
      eos_piece=TURN_END,
      pad_id=2,
      pad_piece=PAD,
      # Control symbols, unlike user-defined ones, never match text.
      control_symbols=[TURN_START, THINK_START, THINK_END],
      user_defined_symbols=['\n'],
      # Longer texts are left out in silence; the default is 4192 bytes.
      max_sentence_length=1 << 24,
      num_threads=1,
      minloglevel=2,
    )
  except RuntimeError as error:
    raise ValueError(
      f'expected texts from which at most max_vocab_size={max_vocab_size} '
      f'pieces can be learnt; sentencepiece says: {error}'
    ) from error
  backend = _sentencepiece_backend(model.getvalue())
  config = {
    'tokenizer_class': 'PreTrainedTokenizerFast',
    'eos_token': TURN_END,
    'pad_token': PAD,
    'chat_template': CHAT_TEMPLATE,
    'clean_up_tokenization_spaces': False,
  }
  return _from_backend(
    backend,
    eos_id=backend.token_to_id(TURN_END),
    pad_id=backend.token_to_id(PAD),
    declared_stops=(),
    files={
      'tokenizer.model': model.getvalue(),
      'tokenizer.json': backend.to_str(pretty=True).encode(),
      'tokenizer_config.json': json.dumps(config, indent=2).encode(),
    },
  )


def _from_backend(
  backend: tokenizers.Tokenizer,
  *,
  eos_id: int,
  pad_id: int | None,
  declared_stops: Sequence[int],
  files: Mapping[str, bytes],
) -> Tokenizer:
  # A tokenizer.json may carry the lengths of somebody's training run.
  backend.no_truncation()
  backend.no_padding()
  # Think and tool tags are not "special" in the sense of encode_special_tokens
  # until they are declared again.
  added = backend.get_added_tokens_decoder()
  backend.add_special_tokens(
    [_added_token(token.content, special=True) for token in added.values()]
  )
  special_ids = {token.content: index for index, token in added.items()}
  chat_ends = [special_ids[t] for t in (TURN_END, PAD) if t in special_ids]
  return Tokenizer(
    special_ids=special_ids,
    eos_id=eos_id,
    pad_id=eos_id if pad_id is None else pad_id,
    stop_token_ids=tuple(dict.fromkeys([eos_id, *declared_stops, *chat_ends])),
    vocab_size=1 + max(backend.get_vocab().values()),
    files=files,
    backend=backend,
  )


def _add_qwen3_tokens(
  backend: tokenizers.Tokenizer, folder: pathlib.Path
) -> dict[int, tokenizers.AddedToken]:
  """Adds what is missing of Qwen3's control tokens; returns it by id."""
  if backend.get_vocab_size(with_added_tokens=False) != QWEN_TEXT_VOCAB_SIZE:
    return {}
  added = {}
  expected = enumerate(QWEN3_SPECIALS + QWEN3_TAGS, QWEN_TEXT_VOCAB_SIZE)
  for index, text in expected:
    if backend.token_to_id(text) is None:
      added[index] = _added_token(text, special=text in QWEN3_SPECIALS)
      backend.add_tokens([added[index]])
    if (got := backend.token_to_id(text)) != index:
      raise ValueError(
        f"expected Qwen3's {text} at id {index}, got {got} in {folder}"
      )
  return added


def _declare_added_tokens(
  config: bytes, added: Mapping[int, tokenizers.AddedToken]
) -> bytes:
  """Returns a tokenizer_config.json with further added tokens."""
  config = json.loads(config)
  declared = config.setdefault('added_tokens_decoder', {})
  for index, token in added.items():
    declared[str(index)] = {
      'content': token.content,
      'normalized': token.normalized,
      'special': token.special,
    }
  return json.dumps(config, indent=2).encode()


def _declared_stops(folder: pathlib.Path) -> list[int]:
  """Returns the EOS ids of a model's configuration files: none, one or more."""
  stops = []
  for name in ('generation_config.json', 'config.json'):
    path = folder / name
    if path.is_file():
      eos = json.loads(path.read_text(encoding='utf-8')).get('eos_token_id')
      stops += eos if isinstance(eos, list) else [eos]
  return [stop for stop in stops if stop is not None]


def _sentencepiece_backend(model: bytes) -> tokenizers.Tokenizer:
  """Returns a runtime with the pieces of a sentencepiece BPE model."""
  import sentencepiece

  pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
  names = [
    pieces.id_to_piece(i).replace('\u2581', ' ') for i in range(len(pieces))
  ]
  # Sentencepiece merges the pair whose union has the best score, and numbers
  # its pieces by score: rank the unions, and every way to make each, by id.
  text_pieces = {
    names[i]
    for i in range(len(pieces))
    if not (pieces.is_control(i) or pieces.is_byte(i) or pieces.is_unknown(i))
  }
  merges = [
    (name[:cut], name[cut:])
    for name in names
    if name in text_pieces
    for cut in range(1, len(name))
    if name[:cut] in text_pieces and name[cut:] in text_pieces
  ]
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      vocab={name: i for i, name in enumerate(names)},
      merges=merges,
      byte_fallback=True,
    )
  )
  backend.decoder = tokenizers.decoders.Sequence(
    [tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
  )
  # As Qwen3 has it: think tags outlive skip_special_tokens.
  for text in (PAD, TURN_START, TURN_END, THINK_START, THINK_END):
    is_special = text not in (THINK_START, THINK_END)
    backend.add_tokens([_added_token(text, special=is_special)])
  return backend


def _added_token(text: str, *, special: bool) -> tokenizers.AddedToken:
  return tokenizers.AddedToken(text, normalized=False, special=special)
