"""`qed demo --full`: what is taught is what scaffolds ask, and suffices."""

import asyncio
import contextlib
import json
import pathlib
import re

import numpy as np
import pytest

from qed import cli, demo_full, demo_results, solving
from qed.data import problems as files
from qed.miniature import checker, lessons, problems, teacher
from tests.scaffolds import scripted

MODES = {
  'Sum up.': 'summarize',
  'Check.': 'verify',
  'Rate.': 'rate',
  'Confirm.': 'confirm',
  'Mend.': 'correct',
  'Merge.': 'merge',
  'Choose.': 'select',
  'Keep.': 'consolidate',
  'Compare.': 'compare',
}


def read(prompt):
  """(role, chain, the lines after the problem) of a prompt."""
  mode = next((mode for mode in MODES if prompt.startswith(mode)), '')
  if mode == 'Confirm.':
    return 'confirm', None, prompt.removeprefix(mode + '\n').split('\n')
  found = re.search(r'Work modulo.*?Find .\.', prompt, re.DOTALL)
  lines = prompt[found.end() + 1 :].split('\n')
  return MODES.get(mode, 'reason'), problems.parse(found[0]), lines


def num_known(chain, lines):
  """The steps up to the value that a summary states."""
  (summary,) = lines
  return chain.names.index(summary[0]) if summary else 0


def answer(prompt, *, max_tokens=1_000):
  """What a model writes that has learnt everything, and never errs."""
  role, chain, lines = read(prompt)
  if role == 'confirm':
    lesson = lessons.confirm('\n'.join(lines))
  elif role == 'reason':
    lesson = lessons.reason(chain, chain.values, num_known(chain, lines))
  elif role == 'summarize':
    values = [line for line in lines if re.fullmatch('[a-z]=[0-9]', line)]
    return '\n</think>\n\n' + ''.join(values[-1:])
  else:
    # Only the last value of each is read.
    proofs = [
      [*chain.values[:-1], int(line[8])]
      for line in lines
      if line.startswith('Hence')
    ]
    exact = chain.values
    lesson = {
      'verify': lambda: lessons.verify(chain, proofs[0], exact),
      'rate': lambda: lessons.verify(
        chain, proofs[0], exact, role='rate', full=1
      ),
      'correct': lambda: lessons.correct(chain, proofs[0], '', exact),
      'merge': lambda: lessons.merge(chain, proofs),
      'select': lambda: lessons.select(chain, tuple(proofs), exact),
      'compare': lambda: lessons.compare(chain, tuple(proofs), exact),
      'consolidate': lambda: lessons.consolidate(chain, proofs, exact),
    }[role]()
  text = f'{lesson.reasoning}\n</think>\n\n{lesson.answer}'.lstrip('\n')
  # As the tokenizer has it, less the token that ends the turn.
  tokens = re.findall(
    r'</think>|Hence| ?[a-z]=(?:[a-z][+*])?|.', text, re.DOTALL
  )
  if len(tokens) >= max_tokens:
    return scripted.cut(''.join(tokens[:max_tokens]))
  return text


def config_of(name, **changes):
  changes = {f'scaffolds.{name}.{key}': x for key, x in changes.items()}
  return demo_full._config(
    'sft', pathlib.Path('runs'), {'scaffold': name, **changes}
  )


def solve(name, chain, respond, **changes):
  given = config_of(name, **changes)
  llm = scripted.Scripted(lambda asked: respond(asked.text))
  solution = asyncio.run(
    solving.SCAFFOLDS[name](
      problems.problem(chain),
      llm,
      scripted.setup(getattr(given.scaffolds, name), style='thinking'),
    )
  )
  return solution, llm


def noisy(seed):
  """A model that errs when it proves, and in nothing else."""
  rng = np.random.default_rng(seed)

  def respond(prompt):
    role, chain, lines = read(prompt)
    if role != 'reason':
      return answer(prompt)
    values = teacher.derive(chain, rng, error_rate=0.3)
    lesson = lessons.reason(chain, values, num_known(chain, lines))
    return f'{lesson.reasoning}\n</think>\n\n{lesson.answer}'.lstrip('\n')

  return respond


@pytest.mark.parametrize('role', [*lessons.ALL])
def test_lessons_are_asked_as_scaffolds_ask(role):
  scaffolds = config_of('single').scaffolds
  drawn = lessons.draw(
    300,
    shares=lessons.ALL,
    max_steps=6,
    max_reviewed_steps=3,
    error_rate=0.2,
    seed=0,
  )
  chain, lesson = next(x for x in drawn if x[1].role == role)
  trace = demo_full._trace(chain, lesson, scaffolds)
  (message,) = trace.prompt_messages
  assert message.role == 'user'
  assert trace.proof == lesson.answer
  assert read(message.content)[0] == role
  # Nothing is fenced, and nothing is left out.
  assert re.search('-[0-9a-f]{12}>', message.content) is None
  for value in lesson.fields.values():
    texts = [value] if isinstance(value, str) else value.values()
    assert all(text in message.content for text in texts)


def test_every_prompt_of_a_scaffold_is_one_that_was_taught():
  scaffolds = config_of('single').scaffolds
  taught = set()
  for chain, lesson in lessons.draw(
    3_000,
    shares=lessons.ALL,
    max_steps=6,
    max_reviewed_steps=3,
    error_rate=0.2,
    seed=0,
  ):
    (message,) = demo_full._trace(chain, lesson, scaffolds).prompt_messages
    taught.add(_shape(message.content))
  chain = problems.draw(3, np.random.default_rng(2), is_brief=True)
  for name in solving.SCAFFOLDS:
    for seed in range(3):
      _, llm = solve(name, chain, noisy(seed))
      for asked in llm.asked:
        role, _, _ = read(asked.text)
        # A field of more proofs than a lesson has is of a known kind.
        if role not in ('merge', 'consolidate'):
          assert _shape(asked.text) in taught, asked.text


def _shape(text):
  """A text without its names and digits."""
  text = re.sub('[0-9]', '#', re.sub('[+*]', '+', text))
  text = re.sub(r'\b[a-z](?=[+=])|(?<=Find )[a-z]', 'x', text)
  return re.sub(r'(?<=[a-z]=)[a-z](?=[+])', 'x', text)


@pytest.mark.parametrize('name', [*solving.SCAFFOLDS])
def test_a_model_that_never_errs_earns_everything(name):
  chain = problems.draw(3, np.random.default_rng(1), is_brief=True)
  solution, _ = solve(name, chain, answer)
  assert checker.score(chain, solution.text) == 7
  unreadable = [x for x in solution.usage if x.startswith('unparseable')]
  assert not any(solution.usage[x] for x in unreadable)


@pytest.mark.parametrize(
  'name', ['best_of_n', 'rsa', 'selfcheck', 'deepseek_math', 'nomos']
)
def test_scaffolds_do_better_than_a_single_proof_of_a_model_that_errs(name):
  rng = np.random.default_rng(3)
  chains = problems.draw_distinct(20, (3,), rng, is_brief=True)
  means = []
  for scaffold in ('single', name):
    scores = [
      checker.score(chain, solve(scaffold, chain, noisy(seed))[0].text)
      for seed, chain in enumerate(chains)
    ]
    means.append(np.mean(scores) / 7)
  # A single proof is right with 0.7^3 = 0.34, and where errors cancel. To merge
  # is to count, and the others are told by a reviewer who never errs.
  assert means[0] < 0.6
  assert means[1] > (0.8 if name == 'rsa' else 0.9)


@pytest.mark.parametrize(
  ('num_steps', 'num_turns'),
  [(1, 1), (3, 2), (2, 1), (4, 2), (5, 2), (6, 3), (8, 3), (9, 4)],
)
def test_a_long_chain_takes_its_turns(num_steps, num_turns):
  def respond(prompt):
    return answer(prompt, max_tokens=max_tokens)

  max_tokens = demo_full._turns(pathlib.Path('runs'), 'rc')[
    'turns=1'
  ].sampling.max_tokens
  chain = problems.draw(num_steps, np.random.default_rng(4), is_brief=True)
  scores = []
  for turns in range(1, 7):
    solution, llm = solve('reasoning_cache', chain, respond, num_turns=turns)
    assert len(llm.asked) == 2 * turns - 1
    scores.append(checker.score(chain, solution.text))
  assert all(score < 7 for score in scores[: num_turns - 1])
  assert scores[num_turns - 1 :] == [7] * (7 - num_turns)


def test_the_summary_has_turns_and_scaffolds_of_all_models(
  tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(demo_full, '_NUM_TURNS', 3)
  rng = np.random.default_rng(5)
  for name, sizes in (('held_out', (3,)), ('long', (4, 6))):
    chains = problems.draw_distinct(4, sizes, rng, is_brief=True)
    files.write_jsonl(
      tmp_path / f'{name}.jsonl', [problems.problem(chain) for chain in chains]
    )
  (tmp_path / 'seconds.json').write_text('{"sft": 2.0, "turns: rl": 1.0}')
  for name in ('rl', 'rc'):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'evaluations.jsonl').write_text(
      ''.join(
        json.dumps({'step': step, 'scores': {'a': [7, 0], 'b': [score, 7]}})
        + '\n'
        for step, score in ((0, 0), (40, 7))
      )
    )

  @contextlib.asynccontextmanager
  async def opened(config, *, sampling, workdir):
    # The one that was trained on states of the cache never errs.
    errs = noisy(0) if 'rl' in config.path else None

    def respond(asked):
      if errs and read(asked.text)[0] == 'reason':
        return errs(asked.text)
      return answer(asked.text, max_tokens=sampling.max_tokens)

    llm = scripted.Scripted(respond)
    llm.num_paid = llm.num_recalled = 0
    yield solving.Opened(
      llm={'solver': llm},
      style={'solver': 'thinking'},
      stop_token_ids=(),
      identity=config.path,
      failures=(),
      bounds=(scripted.Scripted(respond),),
    )

  monkeypatch.setattr(solving, 'opened', opened)
  for name in ('rl', 'rc'):
    assert demo_full._evaluate(tmp_path, name, demo_full._turns) == cli.DONE
  scaffolds = demo_full._scaffolds
  assert demo_full._evaluate(tmp_path, 'sft', scaffolds) == cli.DONE
  demo_full._check_signal(tmp_path)
  found = demo_results.write_summary(tmp_path, max_turns=3)
  assert json.loads((tmp_path / 'summary.json').read_text()) == found
  # (7 + 0 + 0 + 7) / 28 at first, (7 + 0 + 7 + 7) / 28 in the end.
  assert found['sft']['mean'] == pytest.approx(0.5)
  assert found['grpo']['mean'] == found['rc']['mean'] == pytest.approx(0.75)
  by_turn = found['turns']['rc']
  assert [row['mean'] for row in by_turn.values()] == [0, 0.5, 1]
  assert by_turn['2']['by_steps'] == {'4': 1.0, '6': 0.0}
  assert by_turn['3']['n'] == 4
  for turn, row in found['rc_less_rl'].items():
    expected = by_turn[turn]['mean'] - found['turns']['rl'][turn]['mean']
    assert row['mean'] == pytest.approx(expected)
  assert {*found['scaffolds']} == {*solving.SCAFFOLDS}
  assert all(row['mean'] == 1 for row in found['scaffolds'].values())
  assert found['seconds'] == 3
  page = demo_results.write_page(tmp_path)
  assert 'turns=3' in page.read_text()
  demo_results.plot(found, page.parent)
  for name in ('turns', 'scaffolds'):
    assert '<svg' in (page.parent / f'{name}.svg').read_text()
  capsys.readouterr()
  demo_results.print_tables(found)
  assert 'nomos' in capsys.readouterr().out
