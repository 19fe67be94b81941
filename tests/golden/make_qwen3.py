"""Writes qwen3.npz: what transformers' Qwen3 gives for the shared cases.

  .venv/bin/python -m tests.golden.make_qwen3     (needs the extra `parity`)

Run it again only when a case in qwen3_cases.py changes; a new release of
transformers that gives other numbers is news, not a reason.
"""

import pathlib

import numpy as np
import torch
import transformers

from tests.golden import qwen3_cases as cases

PATH = pathlib.Path(__file__).with_name('qwen3.npz')


def reference_model(config, seed=0, dtype=torch.float32):
  """transformers' model with the weights of the case."""
  torch.set_default_dtype(torch.float32)
  model = transformers.Qwen3ForCausalLM(
    transformers.Qwen3Config.from_dict(dict(config))
  )
  named = {
    name: torch.from_numpy(values)
    for name, values in cases.weights(config, seed).items()
  }
  missing, unexpected = model.load_state_dict(named, strict=False)
  assert not unexpected, unexpected
  assert set(missing) <= {'lm_head.weight'}, missing
  model.tie_weights()
  return model.to(dtype).eval()


def reference_logits(model, tokens, positions):
  """float32 [n, V] for one document."""
  output = model(
    input_ids=torch.from_numpy(tokens)[None].long(),
    position_ids=torch.from_numpy(positions)[None].long(),
    use_cache=False,
  )
  return output.logits[0].float()


def reference_gradients(model, documents):
  """Summed next-token loss over documents: gradient by tensor name."""
  model.zero_grad()
  for tokens, positions in documents:
    logits = reference_logits(model, tokens, positions)
    targets = torch.from_numpy(np.roll(tokens, -1)).long()
    torch.nn.functional.cross_entropy(
      logits, targets, reduction='sum'
    ).backward()
  return {
    name: parameter.grad.numpy() for name, parameter in model.named_parameters()
  }


def main():
  golden = {}
  for name, config in cases.CONFIGS.items():
    model = reference_model(config)
    documents = cases.documents(config)
    for index, document in enumerate(documents):
      with torch.no_grad():
        logits = reference_logits(model, *document)
      golden[f'{name}/logits/{index}'] = logits.numpy()
    if name in cases.WITH_GRADIENTS:
      for tensor, value in reference_gradients(model, documents).items():
        golden[f'{name}/gradient/{tensor}'] = value
  np.savez_compressed(PATH, **golden)
  print(f'{PATH}: {len(golden)} arrays, {PATH.stat().st_size:,} bytes')


if __name__ == '__main__':
  main()
