import pathlib

from launch import container

REPOSITORY = pathlib.Path(__file__).parents[2]


def test_the_image_is_as_executors_expect_it():
  text = (REPOSITORY / 'launch' / 'Dockerfile').read_text()
  lines = [line.split() for line in text.splitlines() if line.strip()]
  words = {line[0] for line in lines}
  assert {'FROM', 'COPY', 'RUN', 'USER', 'WORKDIR'} <= words
  assert [line[1] for line in lines if line[0] == 'WORKDIR'] == [container.ROOT]
  assert [line[1] for line in lines if line[0] == 'USER'] == ['1000']
  assert '://' not in text
  for line in lines:
    for source in line[1:-1] if line[0] == 'COPY' else ():
      assert source.startswith('--') or (REPOSITORY / source).exists(), source
