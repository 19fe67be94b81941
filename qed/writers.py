"""The models that curation asks, behind endpoints, with all on record."""

from __future__ import annotations

import contextlib

from qed.config import WriterConfig
from qed.curation import asking
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
  endpoint = http.Endpoint.from_config(writer)
  client = await stack.enter_async_context(http.Http(endpoint))
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
