"""`qed solve`: a model that is a script, killed, starved and started again."""

import asyncio
import contextlib
import json
import os
import signal
import threading

import numpy as np
import pytest

from bench import serve as bench
from experiments import solve_main
from qed import cli, config, solving, types
from qed.llm import http
from qed.scaffolds import prompts
from tests.llm import scripted

pytestmark = pytest.mark.timeout(120)

# 3 solutions, 3 merges and 2 comparisons.
RSA = (
  '--scaffold=rsa',
  '--config.scaffolds.rsa.num_solutions=3',
  '--config.scaffolds.rsa.num_rounds=1',
  '--config.scaffolds.rsa.block_size=2',
)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
  monkeypatch.setattr(http, '_FIRST_WAIT_SECS', 0.001)


class Model:
  """Answers a chat by what it is asked; counts what it has answered."""

  def __init__(self, names=('prover',)):
    self.names, self.asked = names, []
    self.respond = self.reply

  def __call__(self, path, body):
    if path.endswith('/models'):
      return scripted.answer(body={'data': [{'id': x} for x in self.names]})
    self.asked.append(body)
    return self.respond(body)

  def reply(self, body):
    content = body['messages'][-1]['content']
    verdict = '<verdict>A</verdict>' if '<verdict>' in content else ''
    text = f'Proof {len(self.asked)} of 7. {verdict}'.strip()
    message = {'content': text, 'reasoning_content': 'Hm.'}
    return scripted.answer(body=scripted.chat('', message=message))


@contextlib.contextmanager
def served(model):
  """The address of a server in a thread of its own."""
  loop, ready, urls = asyncio.new_event_loop(), threading.Event(), []

  async def serve():
    async with scripted.serve(model) as url:
      urls.append(url)
      stopped = loop.create_future()
      urls.append(lambda: loop.call_soon_threadsafe(stopped.set_result, None))
      ready.set()
      await stopped

  thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
  thread.start()
  ready.wait(10)
  try:
    yield urls[0]
  finally:
    urls[1]()
    thread.join(10)
    loop.close()


@pytest.fixture
def model():
  return Model()


@pytest.fixture
def url(model):
  with served(model) as address:
    yield address


@pytest.fixture
def solve(tmp_path, capsys):
  """Runs `qed solve` here; (exit code, stdout, stderr)."""
  problem = tmp_path / 'problem.md'
  problem.write_text('\nShow that 2 + 2 = 4.\n\n', encoding='utf-8')

  def call(*arguments, llm=None, problem=problem, workdir='run'):
    given = [f'--problem={problem}'] if problem else []
    given += [f'--llm={llm}'] if llm else []
    given += [f'--workdir={tmp_path / workdir}'] if workdir else []
    code = cli.main(['qed', 'solve', *given, *arguments])
    return code, *capsys.readouterr()

  return call


def trace_of(tmp_path, workdir='run'):
  return json.loads((tmp_path / workdir / 'trace.json').read_text())


def test_a_problem_becomes_a_proof_and_a_trace(solve, model, url, tmp_path):
  code, out, _ = solve(*RSA, llm=url)
  assert code == cli.DONE
  assert len(model.asked) == 8
  first = model.asked[0]
  assert 'Show that 2 + 2 = 4.' in first['messages'][0]['content']
  assert (first['model'], first['max_completion_tokens']) == ('prover', 49_152)
  assert (first['temperature'], first['top_p'], first['top_k']) == (
    *(0.8, 0.95),
    20,
  )
  trace = trace_of(tmp_path)
  proof = (tmp_path / 'run/proof.md').read_text()
  assert proof.startswith('Proof ')
  assert trace['text'] == proof.removesuffix('\n')
  assert trace['scaffold'] == 'rsa'
  assert (trace['num_paid'], trace['num_recalled']) == (8, 0)
  assert trace['usage']['calls'] == 8
  assert trace['usage']['completion_tokens'] == 80
  labels = [entry['label'] for entry in trace['trace']]
  assert labels == [
    *(f'solution {i}' for i in (1, 2, 3)),
    *(f'round 1/merge {i}' for i in (1, 2, 3)),
    *('knockout 1/match 1', 'knockout 2/match 1'),
  ]
  assert {entry['reasoning'] for entry in trace['trace']} == {'Hm.'}
  config = json.loads((tmp_path / 'run/config.json').read_text())['config']
  assert config['scaffolds']['rsa']['num_solutions'] == 3
  # What is seen: a line for each call, the proof, what it took, where it is.
  assert 'solution 1: 10 tokens, ' in out
  assert 'rsa: 8 calls, 80 tokens' in out
  assert proof in out
  assert '8 calls; 800 prompt tokens; 80 completion tokens' in out
  assert f'{tmp_path}/run/proof.md' in out


def test_a_second_start_pays_nothing(solve, model, url, tmp_path):
  solve(*RSA, llm=url)
  first = trace_of(tmp_path)
  code, out, _ = solve(*RSA, llm=url)
  assert (code, len(model.asked)) == (cli.DONE, 8)
  second = trace_of(tmp_path)
  assert (second['num_paid'], second['num_recalled']) == (0, 8)
  assert second['text'] == first['text']
  assert '8 of the calls were on record' in out


def test_what_asks_the_same_is_on_record_for_another_scaffold(
  solve, model, url, tmp_path
):
  solve(*RSA, llm=url)
  _, out, _ = solve('--scaffold=single', llm=url)
  # The label is part of the seed: 'solution' is no 'solution 1'.
  assert len(model.asked) == 9
  _, out, _ = solve('--scaffold=single', '--config.seed=2', llm=url)
  assert len(model.asked) == 10
  assert '0 of the calls were on record' in out


def test_a_kill_at_any_call_loses_only_what_was_in_flight(
  solve, model, url, tmp_path
):
  def die(body):
    if len(model.asked) in (2, 5, 9):
      threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
      return scripted.hang
    return model.reply(body)

  model.respond = die
  one_by_one = (*RSA, '--config.solver.max_concurrency=1')
  codes = []
  for _ in range(4):
    code, out, _ = solve(*one_by_one, llm=url)
    codes.append(code)
    if code == cli.RESTART:
      assert 'calls.sqlite' in out
      assert not (tmp_path / 'run/proof.md').exists()
  assert codes == [cli.RESTART] * 3 + [cli.DONE]
  # Eight answers (1 + 2 + 3 + 2), and the three that never came.
  assert len(model.asked) == 8 + 3
  assert trace_of(tmp_path)['num_recalled'] == 6


def test_at_the_limit_of_the_budget_the_best_so_far_is_the_proof(
  solve, model, url, tmp_path
):
  # Ten tokens a call, of which each reserves 49,152.
  code, out, _ = solve(*RSA, '--budget_tokens=49185', llm=url)
  assert (code, len(model.asked)) == (cli.DONE, 4)
  assert trace_of(tmp_path)['text'] == 'Proof 4 of 7.'
  code, out, _ = solve(*RSA, '--budget_tokens=49000', llm=url)
  assert (code, len(model.asked)) == (cli.DONE, 4)
  assert 'no proof; every call is in' in out
  assert not (tmp_path / 'run/proof.md').exists()


def test_a_flag_of_0_lifts_the_limit_of_the_config(solve, model, url):
  given = ('--scaffold=single', '--config.budget.max_tokens=9')
  solve(*given, llm=url)
  assert not model.asked
  solve(*given, '--budget_tokens=0', llm=url)
  assert len(model.asked) == 1


async def test_calls_in_flight_are_bounded_over_all_that_ask(tmp_path, model):
  params = types.SamplingParams(
    temperature=1.0, top_p=1.0, top_k=0, max_tokens=9, stop_token_ids=(), seed=0
  )
  values = solve_main.get_config('single')
  model.respond = lambda body: scripted.answer(
    body=scripted.chat('Four.'), pause_secs=0.01
  )
  async with scripted.serve(model) as url:
    values.solver.update(base_url=url, max_concurrency=2)
    given = config.build(values)
    async with solving.opened(
      given.solver, sampling=given.sampling, workdir=tmp_path
    ) as opened:
      await asyncio.gather(
        *(
          opened.llm['solver'].sample(
            types.Prompt(
              problem_id=f'p{number}',
              messages=prompts.user(f'Prove {number}.'),
              token_ids=np.zeros(0, np.int32),
            ),
            params,
          )
          for number in range(5)
        )
      )
      assert (opened.num_paid, opened.most_running) == (5, 2)


def test_money_is_counted_at_the_prices_of_the_budget(
  solve, model, url, tmp_path
):
  prices = (
    '--config.budget.usd_per_million_prompt=2.0',
    '--config.budget.usd_per_million_completion=10.0',
  )
  solve('--scaffold=single', *prices, llm=url)
  # 100 tokens in and 10 out.
  assert trace_of(tmp_path)['usd'] == pytest.approx(0.0003)
  code, _, err = solve('--budget_usd=1', llm=url)
  assert code == cli.USAGE
  assert 'budget.max_usd = 1.0: needs a price' in err


class TestFailures:
  """Of an endpoint."""

  def test_one_that_takes_no_request_is_told(self, solve, model, url):
    model.respond = lambda body: scripted.answer(400, 'unknown field top_k')
    code, _, err = solve('--scaffold=single', llm=url)
    assert code == cli.USAGE
    assert 'rejected: status 400' in err
    assert 'unknown field top_k' in err

  def test_one_that_fails_is_a_reason_to_start_again(
    self, solve, model, url, tmp_path
  ):
    model.respond = lambda body: scripted.answer(503)
    arguments = ('--scaffold=single', '--config.solver.max_attempts=2')
    code, out, _ = solve(*arguments, llm=url)
    assert (code, len(model.asked)) == (cli.RESTART, 2)
    assert 'overloaded: status 503' in out
    model.respond = model.reply
    assert solve(*arguments, llm=url)[0] == cli.DONE
    assert (tmp_path / 'run/proof.md').exists()

  def test_a_call_that_fails_leaves_the_others(self, solve, model, url):
    def respond(body):
      return (
        scripted.answer(400) if len(model.asked) == 2 else model.reply(body)
      )

    model.respond = respond
    code, out, _ = solve(*RSA, llm=url)
    assert code == cli.DONE
    assert '1 failed' in out

  @pytest.mark.parametrize('flags', [(), ('--model=prover',)])
  def test_nobody_at_the_address(self, solve, flags):
    with scripted.nobody() as address:
      code, _, err = solve(*flags, llm=address)
    assert code == cli.USAGE
    assert f'solver.base_url = {address!r}' in err
    assert 'connect' in err


class TestModels:
  """Which one is asked."""

  def test_of_several_one_is_to_be_named(self, solve, model, url):
    model.names = ('small', 'large')
    code, _, err = solve(llm=url)
    assert code == cli.USAGE
    assert 'expected one model, got 2: small, large' in err
    assert '--model' in err
    solve('--scaffold=single', '--model=large', llm=url)
    assert [body['model'] for body in model.asked] == ['large']

  def test_two_models_in_one_workdir_do_not_share_answers(
    self, solve, model, url
  ):
    for name in ('small', 'large', 'small'):
      solve('--scaffold=single', f'--model={name}', llm=url)
    assert [body['model'] for body in model.asked] == ['small', 'large']

  def test_another_effort_is_another_model(self, solve, model, url):
    for effort in ('low', 'high', 'low'):
      solve('--scaffold=single', f'--config.solver.effort={effort}', llm=url)
    efforts = [body['reasoning_effort'] for body in model.asked]
    assert efforts == ['low', 'high']

  def test_a_role_may_have_a_model_of_its_own(
    self, solve, model, url, tmp_path
  ):
    other = Model()
    with served(other) as selector:
      code, _, _ = solve(
        *RSA, f'--config.solver.roles=selector=judge@{selector}', llm=url
      )
    assert code == cli.DONE
    assert (len(model.asked), len(other.asked)) == (6, 2)
    assert {body['model'] for body in other.asked} == {'judge'}
    assert trace_of(tmp_path)['model'] == 'selector=judge solver=prover'

  def test_the_key_comes_from_the_environment(
    self, solve, model, url, monkeypatch
  ):
    monkeypatch.delenv('PROVER_KEY', raising=False)
    flag = '--config.solver.api_key_env=PROVER_KEY'
    code, _, err = solve(flag, llm=url)
    assert code == cli.USAGE
    assert 'environment variable PROVER_KEY, which is not set' in err
    monkeypatch.setenv('PROVER_KEY', 'secret')
    assert solve(flag, '--scaffold=single', llm=url)[0] == cli.DONE


class TestProblems:
  """What FILE may be."""

  @pytest.fixture
  def several(self, tmp_path):
    path = tmp_path / 'several.jsonl'
    rows = [
      {'problem_id': f'imo-{i}', 'statement': f'Show that {i} = {i}.'}
      for i in range(1, 8)
    ]
    path.write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    return path

  def test_one_of_several_is_chosen_by_its_id(
    self, solve, model, url, several, tmp_path
  ):
    code, _, _ = solve(
      '--problem_id=imo-3', '--scaffold=single', llm=url, problem=several
    )
    assert code == cli.DONE
    assert 'Show that 3 = 3.' in model.asked[0]['messages'][0]['content']
    assert trace_of(tmp_path)['problem_id'] == 'imo-3'

  @pytest.mark.parametrize(
    ('flag', 'message'),
    [
      (
        '--scaffold=rsa',
        'has 7 problems; choose one with --problem_id: imo-1, imo-2, imo-3, '
        'imo-4, imo-5, ...',
      ),
      ('--problem_id=omi-3', 'no such problem; did you mean imo-3?'),
    ],
  )
  def test_otherwise_it_is_asked_for(self, solve, several, flag, message):
    code, _, err = solve(flag, problem=several)
    assert code == cli.USAGE
    assert message in err

  @pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
      ('empty.md', b' \n', 'expected a problem, got an empty file'),
      ('image.png', b'\xff\xd8\xff', "can't decode byte"),
      ('bad.jsonl', b'{"problem', 'bad.jsonl'),
      ('none.jsonl', b'', 'expected at least one record'),
      ('folder', None, 'Is a directory'),
    ],
  )
  def test_a_file_that_is_none_is_told(
    self, solve, tmp_path, name, content, message
  ):
    path = tmp_path / name
    path.mkdir() if content is None else path.write_bytes(content)
    code, _, err = solve(problem=path)
    assert code == cli.USAGE
    assert message in err

  def test_a_missing_file_names_the_nearest(self, solve, tmp_path):
    code, _, err = solve(problem=tmp_path / 'problen.md')
    assert code == cli.USAGE
    assert f'did you mean {tmp_path}/problem.md?' in err


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--scaffold=nomso'], '--scaffold=nomso: did you mean nomos?'),
    (['--scafold=rsa'], 'Did you mean: scaffold'),
    (['--llm=nowhere'], "--llm = 'nowhere': no such file or folder"),
    (['--budget_tokens=-1'], 'budget_tokens'),
    (['--config.scafold=rsa'], 'did you mean scaffold?'),
    (['--config.solver.kind=ids'], "solver.path = '': must be given"),
    (['--config.solver.roles=x'], 'each must be ROLE=MODEL@URL'),
    (['--config.scaffolds.rsa.merge=prov'], "did you mean 'prove'?"),
    (
      ['--config.scaffolds.rsa.merge={{proof}}'],
      "scaffolds.rsa.merge: expected a template with slots among ['problem'",
    ),
  ],
)
def test_a_wrong_command_line_is_told_before_anything_is_asked(
  solve, flags, message
):
  code, _, err = solve(*flags)
  assert code == cli.USAGE
  assert message in err


def test_the_problem_is_asked_for(solve):
  code, _, err = solve(problem=None)
  assert code == cli.USAGE
  assert '--problem=FILE is missing' in err


def test_without_a_workdir_one_is_named_after_problem_and_scaffold(
  solve, url, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  code, out, _ = solve('--scaffold=single', llm=url, workdir=None)
  assert code == cli.DONE
  (folder,) = (tmp_path / 'runs/solve').iterdir()
  assert folder.name.endswith('-single')
  assert str(folder.relative_to(tmp_path)) in out


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('solve') / 'model'
  bench.write_model(path)
  return path


SMALL = (
  '--scaffold=single',
  '--config.scaffolds.single.solve=Prove: {{problem}}',
  '--config.sampling.max_tokens=12',
  '--config.solver.dtype=float32',
  '--config.solver.max_prompt_tokens=84',
  '--config.solver.chat_style=instruct',
  '--config.solver.engine.num_slots=1',
  '--config.solver.engine.page_size=96',
  '--config.solver.engine.num_pages=0',
  '--config.solver.engine.prefill_buckets=96',
  '--config.solver.engine.kv_dtype=float32',
)


@pytest.mark.timeout(300)  # It compiles.
def test_a_folder_is_served_by_our_own_engine(solve, folder, tmp_path):
  code, out, _ = solve(
    *SMALL,
    '--scaffold=best_of_n',
    '--config.scaffolds.best_of_n.num_solutions=2',
    '--config.scaffolds.best_of_n.num_verifications=1',
    '--config.scaffolds.best_of_n.solve=Prove: {{problem}}',
    f'--config.scaffolds.best_of_n.verify=Is it right? {"x" * 200}',
    '--config.seed=2',  # Random weights may end at once; not with this one.
    llm=folder,
  )
  assert code == cli.DONE
  assert 'compiling for 96 tokens' in out
  trace = trace_of(tmp_path)
  solutions, verifications = trace['trace'][:2], trace['trace'][2:]
  assert trace['text'] in [entry['text'] for entry in solutions]
  for entry in solutions:
    assert 1 <= entry['usage']['completion_tokens'] <= 12
    assert entry['usage']['prompt_tokens'] > 10
  # A prompt that is too long is a failed call, and no bug.
  assert len(verifications) == 2
  for entry in verifications:
    assert entry['finish_reason'] == 'error'
    assert 'the engine holds max_length = 96 tokens' in entry['note']
  assert (trace['num_paid'], trace['usage']['failed']) == (2, 2)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_folder_is_known_by_its_weights(solve, folder, tmp_path):
  other = tmp_path / 'other'
  bench.write_model(other)
  traces = []
  for path in (folder, other):  # Equal weights in two places.
    assert solve(*SMALL, llm=path)[0] == cli.DONE
    traces.append(trace_of(tmp_path))
  first, second = traces
  assert (first['num_paid'], second['num_recalled']) == (1, 1)
  assert second['text'] == first['text']


def test_a_model_with_too_few_positions_is_refused(solve, folder, tmp_path):
  content = json.loads((folder / 'config.json').read_text())
  small = tmp_path / 'small'
  small.mkdir()
  for path in folder.iterdir():
    (small / path.name).symlink_to(path)
  (small / 'config.json').unlink()
  content['max_position_embeddings'] = 64
  (small / 'config.json').write_text(json.dumps(content))
  code, _, err = solve(*SMALL, llm=small)
  assert code == cli.USAGE
  assert 'expected a model of 96 positions, got one of 64' in err


def test_a_server_of_token_ids_is_sent_ids(solve, model, url, folder, tmp_path):
  def respond(body):
    choice = {'text': 'Four.', 'token_ids': [5, 6, 7], 'finish_reason': 'stop'}
    return scripted.answer(body={'choices': [choice]})

  model.respond = respond
  given = (
    *SMALL,
    '--config.solver.kind=ids',
    f'--config.solver.base_url={url}',
    f'--config.solver.path={folder}',
  )
  code, _, _ = solve(*given)
  assert code == cli.DONE
  (sent,) = model.asked
  assert all(isinstance(token, int) for token in sent['prompt'])
  assert sent['stop_token_ids']
  trace = trace_of(tmp_path)
  assert trace['text'] == 'Four.'
  assert trace['usage']['prompt_tokens'] == len(sent['prompt'])
  assert trace['usage']['completion_tokens'] == 3
  # Another style makes other ids of the same messages.
  assert solve(*given, '--config.solver.chat_style=thinking')[0] == cli.DONE
  assert model.asked[1]['prompt'] != sent['prompt']
