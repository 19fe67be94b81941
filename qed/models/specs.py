"""Qwen3's configuration and the one declaration of every weight.

Shapes, initialisation, sharding, checkpoint layout and Hugging Face names are
all derived from `declare`. Matrices keep Hugging Face's orientation, outputs
before inputs, so that reading and writing a checkpoint is a reshape; on CPU
this orientation is also the faster one for the forward product.

Letters: `V` vocabulary, `D` model width, `L` layers, `N` query heads, `K`
key/value heads, `H` head size, `F` mlp width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Fields of a Hugging Face config that change the arithmetic in ways that this
# model does not implement, with the values that leave it unchanged.
_MUST_BE = {
  'model_type': ('qwen3',),
  'hidden_act': ('silu',),
  'attention_bias': (False,),
  'attention_dropout': (0, 0.0),
  'rope_scaling': (None,),
  'use_sliding_window': (False, None),
  'mlp_bias': (False,),
  'partial_rotary_factor': (1, 1.0),
}
# Fields that describe a checkpoint or its use and never reach the forward pass.
# Those that a round trip has to keep are in _CARRIED.
_CARRIED = (
  'bos_token_id',
  'eos_token_id',
  'pad_token_id',
  'max_position_embeddings',
)
# What transformers' Qwen3Config assumes where a file leaves a field out.
_ASSUMED = {
  'head_dim': 128,
  'rms_norm_eps': 1e-6,
  'tie_word_embeddings': False,
  'initializer_range': 0.02,
}
_WITHOUT_EFFECT = (
  'architectures',
  'dtype',
  'id2label',
  'label2id',
  'max_window_layers',  # Read only with a sliding window.
  'name_or_path',
  '_name_or_path',
  'output_attentions',
  'output_hidden_states',
  'problem_type',
  'return_dict',
  'sliding_window',  # Read only with use_sliding_window.
  'task_specific_params',
  'torch_dtype',
  'transformers_version',
  'use_cache',
  'chunk_size_feed_forward',
  'is_encoder_decoder',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """A dense Qwen3: every field but `carried` reaches the arithmetic."""

  vocab_size: int
  hidden_size: int
  intermediate_size: int
  num_hidden_layers: int
  num_attention_heads: int
  num_key_value_heads: int
  head_dim: int
  rope_theta: float
  rms_norm_eps: float
  tie_word_embeddings: bool
  initializer_range: float = 0.02  # Reaches `init` only.
  # Hugging Face fields that a round trip keeps and the model does not read
  # (special token ids, max_position_embeddings), as sorted (name, value) pairs.
  carried: tuple[tuple[str, Any], ...] = ()

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type == 'int' and (type(value) is not int or value < 1):
        raise ValueError(
          f'Qwen3 config: {field.name} must be a positive integer, '
          f'got {value!r}'
        )
      if field.type == 'float' and not (
        type(value) in (int, float) and value > 0
      ):
        raise ValueError(
          f'Qwen3 config: {field.name} must be a positive number, got {value!r}'
        )
      if field.type == 'bool' and type(value) is not bool:
        raise ValueError(
          f'Qwen3 config: {field.name} must be true or false, got {value!r}'
        )
    if self.num_attention_heads % self.num_key_value_heads:
      raise ValueError(
        f'Qwen3 config: num_attention_heads={self.num_attention_heads} must '
        f'be a multiple of num_key_value_heads={self.num_key_value_heads}'
      )
    if self.head_dim % 2:
      raise ValueError(
        f'Qwen3 config: head_dim must be even for rotary positions, '
        f'got {self.head_dim}'
      )

  @property
  def num_params(self) -> int:
    """Number of scalar weights; a tied head counts once."""
    return sum(
      math.prod(spec.shape)
      for spec in jax.tree.leaves(declare(self), is_leaf=is_spec)
    )

  @classmethod
  def from_hf(cls, hf: Mapping[str, Any]) -> Config:
    """Reads the content of a Hugging Face `config.json`.

    Args:
      hf: the parsed json; `rope_theta` may stand at the top or, as transformers
        5 writes it, in `rope_parameters`, where the nested one wins.

    Raises:
      ValueError: a field is missing, or asks for arithmetic that this model
        does not have; every such field is named.
    """
    faults = _unsupported(hf)
    values = {}
    for field in dataclasses.fields(cls):
      if field.name in ('carried', 'rope_theta'):
        continue
      value = hf.get(field.name)
      value = _ASSUMED.get(field.name) if value is None else value
      if value is None:
        faults.append(f'{field.name} is missing')
      values[field.name] = value
    nested = hf.get('rope_parameters') or {}
    values['rope_theta'] = nested.get('rope_theta', hf.get('rope_theta'))
    if values['rope_theta'] is None:
      # transformers falls back to 10000 in silence; that hides a broken file.
      faults.append('rope_theta is missing (also from rope_parameters)')
    if faults:
      raise ValueError(
        'cannot honour this Hugging Face config as a dense Qwen3: '
        + '; '.join(faults)
      )
    values['carried'] = tuple(
      (name, tuple(value) if isinstance(value, list) else value)
      for name in sorted(_CARRIED)
      if (value := hf.get(name)) is not None
    )
    return cls(**values)

  def to_hf(self) -> dict[str, Any]:
    """The content of a `config.json`, with the old and the new rope keys."""
    carried = {
      name: list(value) if isinstance(value, tuple) else value
      for name, value in self.carried
    }
    own = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name != 'carried'
    }
    return {
      'architectures': ['Qwen3ForCausalLM'],
      'model_type': 'qwen3',
      **own,
      **carried,
      'attention_bias': False,
      'attention_dropout': 0.0,
      'hidden_act': 'silu',
      'layer_types': ['full_attention'] * self.num_hidden_layers,
      'max_window_layers': self.num_hidden_layers,
      'rope_parameters': {
        'rope_type': 'default',
        'rope_theta': self.rope_theta,
      },
      'rope_scaling': None,
      'sliding_window': None,
      'use_cache': True,
      'use_sliding_window': False,
    }


def _unsupported(hf: Mapping[str, Any]) -> list[str]:
  """What `hf` asks for that the model cannot do, one phrase per field."""
  faults = []
  if 'model_type' not in hf:
    faults.append("model_type is missing (expected 'qwen3')")
  for name, accepted in _MUST_BE.items():
    if name in hf and hf[name] not in accepted:
      faults.append(f'{name}={hf[name]!r} (supported: {accepted[0]!r})')
  nested = hf.get('rope_parameters') or {}
  if nested.get('rope_type', 'default') != 'default':
    faults.append(
      f'rope_parameters.rope_type={nested["rope_type"]!r} '
      "(supported: 'default')"
    )
  faults += [
    f'rope_parameters.{name}={value!r} (not implemented)'
    for name, value in nested.items()
    if name not in ('rope_type', 'rope_theta')
  ]
  layer_types = hf.get('layer_types') or []
  other = sorted({kind for kind in layer_types if kind != 'full_attention'})
  if other:
    faults.append(f"layer_types has {other} (supported: 'full_attention')")
  known = {
    *_MUST_BE,
    *_CARRIED,
    *_WITHOUT_EFFECT,
    *(field.name for field in dataclasses.fields(Config)),
    'rope_parameters',
    'layer_types',
  } - {'carried'}
  # An unknown field that is off (None, False, 0, empty) changes nothing.
  faults += [
    f'{name}={value!r} (unknown field)'
    for name, value in hf.items()
    if name not in known and value
  ]
  return faults


def _published(
  layers, width, mlp, heads, tied, theta=1_000_000.0, length=40960
):
  return Config(
    vocab_size=151_936,
    hidden_size=width,
    intermediate_size=mlp,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=8,
    head_dim=128,
    rope_theta=theta,
    rms_norm_eps=1e-6,
    tie_word_embeddings=tied,
    carried=(
      ('bos_token_id', 151_643),
      ('eos_token_id', 151_645),
      ('max_position_embeddings', length),
    ),
  )


# The published dense models (their config.json). Base models differ from these
# only in max_position_embeddings (32,768) and the end-of-text id.
VARIANTS = {
  'qwen3-0.6b': _published(28, 1024, 3072, 16, True),
  'qwen3-1.7b': _published(28, 2048, 6144, 16, True),
  'qwen3-4b': _published(36, 2560, 9728, 32, True),
  'qwen3-4b-2507': _published(
    36, 2560, 9728, 32, True, theta=5_000_000.0, length=262_144
  ),
  'qwen3-8b': _published(36, 4096, 12_288, 32, False),
  'qwen3-14b': _published(40, 5120, 17_408, 40, False),
  'qwen3-32b': _published(64, 5120, 25_600, 64, False),
}


class ParamSpec(NamedTuple):
  """The single declaration of a weight.

  `axes` names each dimension for `sharding.RULES` (None: never sharded);
  `init` is 'normal' (standard deviation `initializer_range`) or 'ones';
  `hf_name` is the tensor in a checkpoint, with `{layer}` where it is stacked.
  """

  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  init: str
  hf_name: str


def is_spec(value: Any) -> bool:
  """Whether `value` is a leaf of the tree that `declare` returns."""
  return isinstance(value, ParamSpec)


def declare(config: Config) -> dict[str, Any]:
  """The tree of weights, each layer weight stacked on a leading axis of L."""
  V, D, F = config.vocab_size, config.hidden_size, config.intermediate_size
  N, K, H = (
    config.num_attention_heads,
    config.num_key_value_heads,
    config.head_dim,
  )

  def weight(shape, axes, hf_name):
    return ParamSpec(shape, axes, 'normal', hf_name + '.weight')

  def norm(size, hf_name):
    return ParamSpec((size,), (None,), 'ones', hf_name + '.weight')

  layer = {
    'attention_norm': norm(D, 'input_layernorm'),
    'q': weight((N, H, D), ('heads', None, 'embed'), 'self_attn.q_proj'),
    'k': weight((K, H, D), ('kv_heads', None, 'embed'), 'self_attn.k_proj'),
    'v': weight((K, H, D), ('kv_heads', None, 'embed'), 'self_attn.v_proj'),
    'o': weight((D, N, H), ('embed', 'heads', None), 'self_attn.o_proj'),
    'q_norm': norm(H, 'self_attn.q_norm'),
    'k_norm': norm(H, 'self_attn.k_norm'),
    'mlp_norm': norm(D, 'post_attention_layernorm'),
    'gate': weight((F, D), ('mlp', 'embed'), 'mlp.gate_proj'),
    'up': weight((F, D), ('mlp', 'embed'), 'mlp.up_proj'),
    'down': weight((D, F), ('embed', 'mlp'), 'mlp.down_proj'),
  }
  specs = {
    'embedding': weight((V, D), ('vocab', 'embed'), 'model.embed_tokens'),
    'layers': {
      name: ParamSpec(
        (config.num_hidden_layers, *spec.shape),
        ('layers', *spec.axes),
        spec.init,
        'model.layers.{layer}.' + spec.hf_name,
      )
      for name, spec in layer.items()
    },
    'final_norm': norm(D, 'model.norm'),
  }
  if not config.tie_word_embeddings:
    specs['head'] = weight((V, D), ('vocab', 'embed'), 'lm_head')
  return specs


def abstract(config: Config, dtype=jnp.float32) -> dict[str, Any]:
  """`declare` as a tree of jax.ShapeDtypeStruct."""
  return jax.tree.map(
    lambda spec: jax.ShapeDtypeStruct(spec.shape, dtype),
    declare(config),
    is_leaf=is_spec,
  )


def init(config: Config, key: jax.Array) -> dict[str, Any]:
  """Random float32 weights: normal matrices and unit norms.

  Every weight has a key of its own, folded in by its position in the tree, so
  that the values do not depend on how the initialisation is sharded.
  """
  leaves, tree = jax.tree.flatten(declare(config), is_leaf=is_spec)

  def draw(index: int, spec: ParamSpec) -> jax.Array:
    if spec.init == 'ones':
      return jnp.ones(spec.shape, jnp.float32)
    values = jax.random.normal(jax.random.fold_in(key, index), spec.shape)
    return values * config.initializer_range

  return jax.tree.unflatten(
    tree, [draw(index, spec) for index, spec in enumerate(leaves)]
  )
