"""Traces become samples, and problems are held out whole."""

import hashlib
import json

import numpy as np
import pytest

from qed.data import chat, demonstrations, templates, tokenizer
from qed.types import Message

SETTINGS = dict(
  prompt='prove',
  style='thinking',
  max_tokens=400,
  overlong='drop',
  malformed='refuse',
  validation_frac=0.25,
)


@pytest.fixture(scope='module')
def words():
  return tokenizer.train_sentencepiece(
    [templates.text('prove'), 'Show that 12 = 3 * 4. We see it: 567890.'],
    max_vocab_size=330,
  )


def make_traces(num_problems=200, num_proofs=2):
  return [
    {
      'problem_id': f'p{problem}',
      'statement': f'Show that {problem} = {problem}.',
      'reasoning': f'We see {proof}.',
      'proof': f'It is {problem}.',
    }
    for problem in range(num_problems)
    for proof in range(num_proofs)
  ]


def load(tmp_path, words, traces, **changes):
  path = tmp_path / 'traces.jsonl'
  path.write_text(''.join(json.dumps(trace) + '\n' for trace in traces))
  return demonstrations.load([path], words, **{**SETTINGS, **changes})


def problems_of(samples, found):
  return [found.problem_ids[sample.token_ids.tobytes()] for sample in samples]


def test_a_sample_is_the_policy_s_prompt_and_the_teacher_s_answer(
  tmp_path, words
):
  (trace,) = make_traces(1, 1)
  found = load(tmp_path, words, [trace], validation_frac=0.0)
  (sample,) = found.train
  text = templates.render('prove', problem=trace['statement'])
  prompt = chat.encode_chat(
    words, [Message(role='user', content=text)], style='thinking'
  )
  answer = sample.token_ids[len(prompt) :]
  np.testing.assert_array_equal(sample.token_ids[: len(prompt)], prompt)
  assert words.decode(answer) == ('We see 0.\n</think>\n\nIt is 0.<|im_end|>')
  assert sample.loss_mask.sum() == len(answer)
  assert not sample.loss_mask[: len(prompt)].any()


def test_a_trace_with_messages_answers_those(tmp_path, words):
  (trace,) = make_traces(1, 1)
  messages = [
    Message(role='system', content='Be strict.'),
    Message(role='user', content='We see it: 12 = 3 * 4.'),
    Message(role='assistant', content='It is 5.'),
    Message(role='user', content='Is it?'),
  ]
  trace['prompt_messages'] = [
    {'role': m.role, 'content': m.content} for m in messages
  ]
  found = load(tmp_path, words, [trace], validation_frac=0.0)
  (sample,) = found.train
  prompt = chat.encode_chat(words, messages, style='thinking')
  answer = sample.token_ids[len(prompt) :]
  np.testing.assert_array_equal(sample.token_ids[: len(prompt)], prompt)
  assert words.decode(answer) == 'We see 0.\n</think>\n\nIt is 0.<|im_end|>'
  assert found.problem_ids[sample.token_ids.tobytes()] == 'p0'


def test_all_proofs_of_a_problem_are_on_one_side(tmp_path, words):
  found = load(tmp_path, words, make_traces())
  train = problems_of(found.train, found)
  validation = problems_of(found.validation, found)
  assert not {*train} & {*validation}
  assert sorted(train + validation) == sorted(
    trace['problem_id'] for trace in make_traces()
  )
  assert 0.15 < len(validation) / 400 < 0.35


def test_what_is_held_out_depends_on_the_id_alone(tmp_path, words):
  found = load(tmp_path, words, make_traces())
  expected = {
    f'p{problem}'
    for problem in range(200)
    if hashlib.sha256(f'p{problem}'.encode()).digest()[0] < 64
  }
  assert {*problems_of(found.validation, found)} == expected
  fewer = load(tmp_path, words, make_traces(20, 1)[::-1])
  assert {*problems_of(fewer.validation, fewer)} == {
    name for name in expected if int(name[1:]) < 20
  }


def test_longer_samples_are_dropped_or_cut_and_told(tmp_path, words):
  traces = make_traces(4, 1)
  traces[2]['proof'] *= 50
  settings = dict(validation_frac=0.0)
  whole = load(tmp_path, words, traces, max_tokens=10**4, **settings)
  lengths = [len(sample.token_ids) for sample in whole.train]
  limit = sorted(lengths)[-2]
  found = load(tmp_path, words, traces, max_tokens=limit, **settings)
  assert len(found.train) == 3
  assert '1 longer ones dropped' in found.report
  found = load(
    tmp_path, words, traces, max_tokens=limit, overlong='truncate', **settings
  )
  assert max(len(sample.token_ids) for sample in found.train) == limit
  assert f'1 cut to {limit} tokens' in found.report


def test_a_digest_tells_samples_their_order_and_their_masks_apart(
  tmp_path, words
):
  traces = make_traces(3, 1)
  settings = dict(validation_frac=0.0)
  train = load(tmp_path, words, traces, **settings).train
  digests = {
    demonstrations.digest(train),
    demonstrations.digest(train[::-1]),
    demonstrations.digest(train[:2]),
    demonstrations.digest([]),
  }
  assert len(digests) == 4
  again = load(tmp_path, words, traces, **settings).train
  assert demonstrations.digest(again) == demonstrations.digest(train)
  again[0].loss_mask[-1] = False
  assert demonstrations.digest(again) not in digests


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'prompt': 'a text without a slot'}, 'whose only slot is problem'),
    ({'prompt': '{{problem}} {{rubric}}'}, 'whose only slot is problem'),
    ({'style': 'base'}, "problem p0: .*style='base'"),
    ({'max_tokens': 3}, 'expected samples to train on, got none'),
  ],
)
def test_what_cannot_be_used_is_told(tmp_path, words, changes, message):
  with pytest.raises(ValueError, match=message):
    load(tmp_path, words, make_traces(3, 1), **changes)
