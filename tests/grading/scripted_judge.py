"""A judge whose truth is known and whose every failure is asked for.

A proof names its score and what goes wrong with the first calls about it:
'Proof 3, worth 5. Then reset x2.'
"""

import collections
import copy
import email.utils
import random
import re
import time

from experiments import base
from qed import config
from qed.llm import http
from qed.types import Problem
from tests.llm import scripted

DEFAULTS = base.grpo().judge.to_dict()
_PROOF = re.compile(r'Proof (\S+), worth (\d)\. Then (\w+) x(\d+)\.')


def judge_config(**changes):
  """Three attempts, two draws, and little patience."""
  fast = {
    'base_url': 'http://judge',
    'max_attempts': 3,
    'max_draws': 2,
    'deadline_secs': 0.4,
    'patience_secs': 5.0,
    'max_concurrency': 64,
    'max_failures': 1000,
    'cooldown_secs': 0.05,
    'usd_per_million_prompt': 1.0,
    'usd_per_million_completion': 10.0,
  }
  values = copy.deepcopy(DEFAULTS) | fast | changes
  return config.JudgeConfig(**values)


def client(url, settings):
  """The client that a program would make of the same section."""
  return http.Http(
    http.Endpoint(
      base_url=url,
      model=settings.model,
      api_key='',
      connect_secs=settings.connect_secs,
      deadline_secs=settings.deadline_secs,
      max_attempts=1,
      max_connections=settings.max_concurrency,
    )
  )


def problem(name='p'):
  return Problem(
    problem_id=str(name), statement='Show that 1 = 1.', rubric='7 for all.'
  )


def proof(name, score, fault='nothing', times=0):
  return f'Proof {name}, worth {score}. Then {fault} x{times}.'


def _date(secs):
  return email.utils.formatdate(time.time() + secs, usegmt=True)


def _cut(score):
  return f'<score>{(score + 1) % 8}</score> would be one view, but on'


# Name -> what the judge does instead, given the score that is due.
FAULTS = {
  'closed': lambda score: scripted.close,
  'reset': lambda score: scripted.reset,
  'not_http': lambda score: scripted.noise,
  'hang': lambda score: scripted.hang,
  'slow_drip': lambda score: scripted.drip('{"choices": [' + ' ' * 999, 0.02),
  'half_a_body': lambda score: scripted.answer(
    body='{"choices": [{"message": ', length=999
  ),
  'bad_gzip': lambda score: scripted.answer(
    body=b'no gzip', headers=[('content-encoding', 'gzip')]
  ),
  'redirects_in_a_circle': lambda score: scripted.answer(
    307, headers=[('location', '/v1/chat/completions')]
  ),
  'status_500': lambda score: scripted.answer(500, '<score>0</score>'),
  'status_502_html': lambda score: scripted.answer(502, '<html>bad</html>'),
  'status_503': lambda score: scripted.answer(503),
  'status_408': lambda score: scripted.answer(408),
  'busy': lambda score: scripted.answer(429),
  'busy_retry_secs': lambda score: scripted.answer(
    429, headers=[('retry-after', '0.1')]
  ),
  'busy_retry_date': lambda score: scripted.answer(
    429, headers=[('retry-after', _date(1))]
  ),
  'busy_for_a_day': lambda score: scripted.answer(
    429, headers=[('retry-after', '86400')]
  ),
  'html_200': lambda score: scripted.answer(
    body='<html><score>0</score></html>'
  ),
  'truncated_json': lambda score: scripted.answer(
    body='{"choices": [{"message": {"content": "<score>0</score>'
  ),
  'error_200': lambda score: scripted.answer(body={'error': 'overloaded'}),
  'no_choices': lambda score: scripted.answer(body={'choices': []}),
  'json_list': lambda score: scripted.answer(body=['<score>0</score>']),
  'content_number': lambda score: scripted.answer(body=scripted.chat(0)),
  'status_400': lambda score: scripted.answer(400, 'context is 4096 tokens'),
  'status_401': lambda score: scripted.answer(401, 'no such key'),
  'status_404': lambda score: scripted.answer(404, 'no such model'),
  'null_content': lambda score: scripted.answer(
    body=scripted.chat(None, finish_reason='length')
  ),
  'empty_content': lambda score: scripted.answer(body=scripted.chat('')),
  'no_tag': lambda score: scripted.answer(body=scripted.chat(f'{score}/7.')),
  'above_range': lambda score: scripted.answer(
    body=scripted.chat('<score>9</score>')
  ),
  'fraction': lambda score: scripted.answer(
    body=scripted.chat('<score>6.5</score>')
  ),
  'breaks_off_after_a_score': lambda score: scripted.answer(
    body=scripted.chat(_cut(score), finish_reason='length')
  ),
  'aborted_after_a_score': lambda score: scripted.answer(
    body=scripted.chat(_cut(score), finish_reason='abort')
  ),
  'refusal': lambda score: scripted.answer(
    body=scripted.chat(
      None, message={'content': None, 'refusal': 'I cannot grade this.'}
    )
  ),
  'filtered': lambda score: scripted.answer(
    body=scripted.chat('<score>0</score>', finish_reason='content_filter')
  ),
}
# Replies that come with usage: the judge's owner charges for them.
PAID = (
  'null_content',
  'empty_content',
  'no_tag',
  'above_range',
  'fraction',
  'breaks_off_after_a_score',
  'aborted_after_a_score',
  'refusal',
  'filtered',
)


class ScriptedJudge:
  """To be served: does what the proof asks for, or fails at random.

  Attributes:
    requests: how often it was asked about each proof, by the proof's name.
    paid: how many replies it has charged for.
  """

  def __init__(self, *, random_faults=(), fault_rate=0.0, pause_secs=0.0):
    self.random_faults = random_faults
    self.fault_rate = fault_rate
    self.pause_secs = pause_secs
    self.requests = collections.Counter()
    self.paid = collections.Counter()

  def __call__(self, path, body):
    found = _PROOF.search(body['messages'][-1]['content'])
    name, score, fault, times = found.groups()
    self.requests[name] += 1
    number = self.requests[name]
    dice = random.Random(f'{name} {number}')
    if number > int(times):
      fault = ''
      if dice.random() < self.fault_rate:
        fault = dice.choice(self.random_faults)
    if not fault or fault in PAID:
      self.paid[name] += 1
    if fault:
      return FAULTS[fault](int(score))
    text = f'All is well. <score>{score}</score>'
    return scripted.answer(body=scripted.chat(text), pause_secs=self.pause_secs)
