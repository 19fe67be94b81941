"""Packaging: version ranges and extras; requirements.txt is the exact lock."""

import pathlib

import setuptools

# jax and flax move together: a release of one is tried against a release of
# the other, so they are bounded as a pair per Python version.
CORE = [
  'absl-py>=2.3',
  'etils>=1.12',
  'flax>=0.12.8',
  'grain>=0.2.18',
  'httpx2>=2.16',
  'huggingface-hub>=2.4',
  'jax>=0.10.2',
  'jinja2>=3.1',
  'math-verify>=0.9',
  'matplotlib>=3.10',
  'ml-collections>=1.1',
  'ml-dtypes>=0.5',
  'numpy>=2.0',
  'openai>=3.50',
  'optax>=0.2.8',
  'orbax-checkpoint>=0.12.8',
  'protobuf>=6',
  'pyyaml>=6',
  'rapidfuzz>=3.14',
  'rich>=14',
  'safetensors>=0.8',
  'sentencepiece>=0.2.3',
  'starlette>=1.0',
  'tensorboardX>=2.6.2',
  'tokenizers>=0.22',
  'transformers>=5.20,<6',
  'uvicorn>=0.50',
]

EXTRAS = {
  'cuda': ['jax[cuda12]'],
  'dev': [
    'hypothesis>=6.150',
    'kubeflow-trainer-api==2.3.0',
    'pyarrow>=20',
    'pytest>=9',
    'pytest-asyncio>=1.3',
    'pytest-timeout>=2.4',
    'pytest-xdist>=3.8',
    'ruff==0.17.5',
  ],
  'hf': ['datasets>=5', 'pyarrow>=20'],
  'jetstream': ['google-jetstream==0.2.2'],
  'parity': ['torch==2.13.0'],
  'tpu': ['jax[tpu]'],
  'wandb': ['wandb>=0.30'],
  'xm': ['xmanager>=0.8.5'],
}

setuptools.setup(
  name='qed',
  version='0.1.0',
  description='Train a small model to prove hard theorems, in JAX.',
  long_description=pathlib.Path('README.md').read_text(encoding='utf-8')
  if pathlib.Path('README.md').exists()
  else '',
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=setuptools.find_packages(
    include=['qed', 'qed.*', 'experiments', 'launch']
  ),
  package_data={
    'qed': [
      'data/texts/*.md',
      'reporting/assets/*.*',
      'reporting/assets/katex/*',
      'reporting/assets/katex/fonts/*',
    ]
  },
  install_requires=CORE,
  extras_require=EXTRAS,
  entry_points={'console_scripts': ['qed = qed.cli:main']},
)
