"""The models that curation asks, behind endpoints, with all on record."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib

from qed.config import JudgeConfig, WriterConfig
from qed.curation import asking, difficulty
from qed.grading import judge as judges
from qed.grading import verdicts
from qed.llm import bounded, chat, http
from qed.llm import journal as journals


async def model(
  writer: WriterConfig,
  journal: journals.Journal,
  stack: contextlib.AsyncExitStack,
) -> asking.Model:
  """A model of which no completion is paid for twice.

  Args:
    writer: where it is, and how it is sampled.
    journal: of all completions of the run.
    stack: closes the connections.
  """
  client = await stack.enter_async_context(http.Http(_endpoint(writer)))
  llm = bounded.Bounded(
    chat.Chat(client, effort=writer.effort, sends_seed=writer.sends_seed),
    writer.max_concurrency,
  )
  name = f'{writer.base_url} {writer.model} {writer.effort}'.strip()
  return asking.Model(
    llm=journals.Journaled(llm, journal, name),
    name=writer.model,
    sampling=writer.sampling,
  )


async def judge(
  section: JudgeConfig,
  record: pathlib.Path,
  stack: contextlib.AsyncExitStack,
) -> difficulty.Judge:
  """A judge of which no verdict is paid for twice.

  Args:
    section: where it is, and what it is asked.
    record: the file of its verdicts.
    stack: closes file and connections.
  """
  client = await stack.enter_async_context(http.Http(_endpoint(section)))
  store = stack.enter_context(verdicts.Verdicts(record))
  return judges.Judge(client.ask, section, store).grade


def _endpoint(section: WriterConfig | JudgeConfig) -> http.Endpoint:
  names = {field.name for field in dataclasses.fields(http.Endpoint)}
  shared = {name for name in names if hasattr(section, name)}
  return http.Endpoint(
    **{name: getattr(section, name) for name in shared},
    api_key=http.api_key(section.api_key_env),
    max_connections=section.max_concurrency,
  )
