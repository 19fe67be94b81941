"""Downloads from a local server in place of the public ones."""

import contextlib
import functools
import hashlib
import http.server
import shutil
import threading

import pytest

from qed import cli, fetch
from qed.evals import sources

pytestmark = pytest.mark.timeout(60)


class Handler(http.server.SimpleHTTPRequestHandler):
  def do_GET(self):
    self.server.asked.append(self.path)
    if self.path == '/gated':
      self.send_error(403)
    elif self.path == '/cut':
      self.send_response(200)
      self.send_header('Content-Length', '1000')
      self.end_headers()
      self.wfile.write(b'Problem ID,Problem\n')
    elif self.path == '/page':
      self.send_response(200)
      self.end_headers()
      self.wfile.write(b'<html>Sign in</html>')
    else:
      super().do_GET()

  def log_message(self, *arguments):
    pass


@pytest.fixture
def server(tmp_path):
  folder = tmp_path / 'public'
  folder.mkdir()
  handler = functools.partial(Handler, directory=str(folder))
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    server.folder, server.asked = folder, []
    server.url = f'http://127.0.0.1:{server.server_port}'
    with contextlib.ExitStack() as stack:
      stack.callback(thread.join)
      stack.callback(server.shutdown)
      yield server


@pytest.fixture
def published(server, shared_data):
  """The real file at another address."""
  shutil.copy(shared_data / 'imobench' / 'proofbench_v2.csv', server.folder)
  known = sources.SOURCES['imo_proofbench']
  return sources.Source(
    url=f'{server.url}/proofbench_v2.csv', file=known.file, sha256=known.sha256
  )


def test_a_published_file_is_downloaded_once_and_checked(
  published, server, tmp_path
):
  target = tmp_path / 'data' / 'deeper'
  path, found = sources.fetch('imo_proofbench', target, source=published)
  assert path == target / 'imo_proofbench_v2.csv'
  assert found.is_published is True
  assert hashlib.sha256(path.read_bytes()).hexdigest() == published.sha256
  again, same = sources.fetch('imo_proofbench', target, source=published)
  assert (again, same.items) == (path, found.items)
  assert server.asked == ['/proofbench_v2.csv']
  assert [entry.name for entry in target.iterdir()] == [path.name]


def test_other_bytes_are_refused_and_not_kept(published, server, tmp_path):
  with (server.folder / 'proofbench_v2.csv').open('a') as file:
    file.write('\n')
  with pytest.raises(sources.DownloadError, match='changed since'):
    sources.fetch('imo_proofbench', tmp_path / 'data', source=published)
  assert not [*(tmp_path / 'data').iterdir()]


@pytest.mark.parametrize(
  ('page', 'told'),
  [
    ('gated', '403.*accept terms'),
    ('missing', '404'),
    ('cut', 'expected 1000 bytes, got 19'),
    ('page', 'is not the benchmark'),
  ],
)
def test_what_is_no_benchmark_is_not_kept(server, tmp_path, page, told):
  source = sources.Source(url=f'{server.url}/{page}', file='file.csv')
  with pytest.raises(sources.DownloadError, match=told):
    sources.fetch('imo_proofbench', tmp_path / 'data', source=source)
  assert not [*(tmp_path / 'data').iterdir()]


def test_bytes_of_another_digest_are_refused(server, tmp_path):
  (server.folder / 'file.csv').write_text('Problem ID,Problem\n')
  source = sources.Source(
    url=f'{server.url}/file.csv', file='file.csv', sha256='0' * 64
  )
  with pytest.raises(sources.DownloadError, match='has changed since'):
    sources.fetch('imo_proofbench', tmp_path / 'data', source=source)
  assert not [*(tmp_path / 'data').iterdir()]


def test_nobody_there_is_told(tmp_path):
  source = sources.Source(url='http://127.0.0.1:9/file.csv', file='file.csv')
  with pytest.raises(sources.DownloadError, match='refused'):
    sources.fetch('imo_proofbench', tmp_path, source=source)


def test_a_file_that_is_there_but_wrong_is_left_as_it_is(published, tmp_path):
  path = tmp_path / published.file
  path.write_text('mine')
  with pytest.raises(sources.DownloadError, match='is not the benchmark'):
    sources.fetch('imo_proofbench', tmp_path, source=published)
  assert path.read_text() == 'mine'


def test_the_command_says_what_it_got(published, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sources.SOURCES, 'imo_proofbench', published)
  arguments = ['qed fetch', 'imo_proofbench', f'--to={tmp_path}']
  assert cli.run(fetch.main, arguments) == cli.DONE
  printed = capsys.readouterr().out
  assert '60 problems' in printed
  assert 'as published' in printed


def test_the_command_tells_a_wrong_name_before_it_downloads(capsys):
  assert cli.run(fetch.main, ['qed fetch', 'imo_proofbenhc']) == cli.USAGE
  assert 'did you mean imo_proofbench?' in capsys.readouterr().err


def test_every_public_benchmark_has_an_address():
  own = {'own_proofs', 'own_answers'}
  from qed.evals import benchmarks

  assert sources.SOURCES.keys() == benchmarks.FORMATS.keys() - own
  assert sources.SOURCES['matharena_imc_2025'].url == (
    'https://huggingface.co/datasets/MathArena/imc_2025/resolve/'
    'refs%2Fconvert%2Fparquet/default/train/0000.parquet'
  )
