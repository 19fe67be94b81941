"""The command lines of docs/pods.md are what they say."""

import pathlib
import re
import shlex
import shutil
import subprocess

import pytest
import yaml

from launch import container, grpo, jobset, queued_resource, sft

REPOSITORY = pathlib.Path(__file__).parents[2]
SCRIPTS = {'launch.sft': sft, 'launch.grpo': grpo}
PAGE = (REPOSITORY / 'docs' / 'pods.md').read_text(encoding='utf-8')


def lines_of(program):
  """Command lines of the page's indented blocks, continuations joined."""
  blocks = re.findall(r'(?:^ {4}.*\n)+', PAGE, re.M)
  text = ''.join(blocks).replace('\\\n', ' ')
  lines = [line.strip() for line in text.splitlines()]
  return [line for line in lines if line.startswith(f'{program} ')]


def test_the_launches_of_the_page_render(monkeypatch, capsys):
  monkeypatch.chdir(REPOSITORY)
  lines = lines_of('python -m')
  assert len(lines) >= 3
  for line in lines:
    _, _, name, *flags = shlex.split(line.replace('$IMAGE', 'registry/qed:1'))
    assert '--dry_run' in flags
    assert SCRIPTS[name].main([name, *flags]) == 0
    assert 'registry/qed:1' in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(1_800)  # gcloud takes seconds to start.
@pytest.mark.skipif(not shutil.which('gcloud'), reason='there is no gcloud')
def test_gcloud_takes_the_lines_of_the_page(tmp_path):
  lines = [x for x in lines_of('gcloud') if not x.startswith('gcloud auth')]
  assert len(lines) >= 8
  answers = dict.fromkeys(lines, 'active account')
  answers[f'{lines[0]} --no-such-flag'] = 'unrecognized arguments: --no-such'
  for line, answer in answers.items():
    done = subprocess.run(
      shlex.split(line),
      env={
        'PATH': '/usr/local/bin:/usr/bin:/bin',
        'HOME': str(tmp_path),
        'CLOUDSDK_CONFIG': str(tmp_path),
        'CLOUDSDK_CORE_DISABLE_PROMPTS': '1',
      },
      input='key',
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode != 0
    assert answer in done.stderr, (line, done.stderr)


def test_the_manifests_of_the_page_mount_what_pods_mount():
  text = re.search(r'^ {4}apiVersion: v1\n(?: {4}.*\n)+', PAGE, re.M)[0]
  claim, pod = yaml.safe_load_all(re.sub('^ {4}', '', text, flags=re.M))
  assert claim['spec']['accessModes'] == ['ReadWriteMany']
  volume = pod['spec']['volumes'][0]
  name = claim['metadata']['name']
  assert volume['persistentVolumeClaim']['claimName'] == name
  mounts = pod['spec']['containers'][0]['volumeMounts']
  assert [(mount['mountPath'], mount['subPath']) for mount in mounts] == [
    (f'{container.ROOT}/{folder}', folder) for folder in container.SHARED
  ]


def test_the_page_promises_no_more_than_was_tried():
  assert 'rendered and schema-checked' in ' '.join(PAGE.split())
  assert 'runs on' not in PAGE
  for module in (jobset, queued_resource):
    assert 'runs on' not in pathlib.Path(module.__file__).read_text()
