"""Text piece by piece: the same as the text of the whole."""

import random

import numpy as np
import pytest

from qed.data import chat, tokenizer
from qed.rollout import http_text

WORDS = tokenizer.train_sentencepiece(
  ['x0 = 7, so x1 = 3 x0 + 4 mod 11', 'Hence the claim. ∎'], max_vocab_size=340
)


def pieces_of(items, seed):
  """Cuts a sequence in pieces of 0 to 5 items."""
  rng, start = random.Random(seed), 0
  while start < len(items):
    size = rng.randint(0, 5)
    yield items[start : start + size]
    start += size


def split(text, seed, is_thinking=True):
  splitter = http_text.Splitter(is_thinking=is_thinking)
  parts = [splitter.push(p, is_last=False) for p in pieces_of(text, seed)]
  parts.append(splitter.push('', is_last=True))
  return ''.join(p.reasoning for p in parts), ''.join(p.content for p in parts)


@pytest.mark.parametrize('seed', range(5))
def test_tokens_in_pieces_give_the_text_of_all(seed):
  # Characters that were never learnt are spelt in bytes, one token each.
  text = 'x0 = 7 \U0001d53d ∀é – 漢字\n x1 = 3 x0 \U0001f600'
  ids = WORDS.encode(text).tolist()
  decoder = http_text.Decoder(WORDS.decode)
  pieces = [decoder.push(p, is_last=False) for p in pieces_of(ids, seed)]
  assert not any('\ufffd' in piece for piece in pieces)
  assert ''.join([*pieces, decoder.push([], is_last=True)]) == text


def test_bytes_that_never_become_a_character_come_out_in_the_end():
  ids = WORDS.encode('∀').tolist()[:1]
  decoder = http_text.Decoder(WORDS.decode)
  assert decoder.push(ids, is_last=False) == ''
  assert decoder.push([], is_last=True) == WORDS.decode(ids) == '\ufffd'


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize(
  'text',
  [
    '\nFirst we try.\n</think>\n\n**Proof.** Let x < 3. \n\n Done.\n\n',
    '<think>\nwe try\n</think>\nProof',
    '  <think></think>  \n',
    '<thin ice> a</thin</think>b </thi',
    'still thinking \n </thi',
    '',
    '<think>',
    ' \n ',
    '</think>x',
  ],
)
def test_the_parts_are_those_of_split_thinking(text, seed):
  reasoning, proof = chat.split_thinking(text)
  assert split(text, seed) == (reasoning, proof or '')


def test_without_thinking_all_of_it_is_content():
  text = ' <think>a</think> b \n'
  assert split(text, 0, is_thinking=False) == ('', text)


def test_a_piece_is_told_as_soon_as_it_can_be():
  splitter = http_text.Splitter(is_thinking=True)
  assert splitter.push('\nWe try x', is_last=False).reasoning == 'We try x'
  assert splitter.push(' </th', is_last=False) == ('', '')
  assert splitter.push('ree', is_last=False).reasoning == ' </three'
  assert splitter.push('</think>\n\nLet', is_last=False) == ('', 'Let')


def test_decoding_again_does_not_grow_with_the_length():
  lengths = []

  def decode(ids):
    lengths.append(len(ids))
    return WORDS.decode(ids)

  decoder = http_text.Decoder(decode)
  for token in np.resize(WORDS.encode('x0 = 7, so '), 500).tolist():
    decoder.push([token], is_last=False)
  assert max(lengths) <= 8
