"""GRPO steps of TRL, timed: the other side of bench/grpo_step.py.

It runs in an environment of its own (bench/grpo_step.py says which) and must
not import qed: everything it needs comes from the folder that it is given.
"""

import argparse
import json
import pathlib
import time


def main() -> None:
  """Prints one JSON line: the seconds of every step."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('folder', type=pathlib.Path)
  folder = parser.parse_args().folder
  settings = json.loads((folder / 'settings.json').read_text(encoding='utf-8'))

  import datasets
  import torch
  import transformers
  import trl

  torch.set_num_threads(settings['num_threads'])
  transformers.logging.set_verbosity_error()
  model = transformers.AutoModelForCausalLM.from_pretrained(
    folder / 'model', dtype=torch.float32
  )
  prompts = [
    json.loads(line)['text']
    for line in (folder / 'prompts.jsonl').read_text('utf-8').splitlines()
  ]
  clock = _Clock()
  trainer = trl.GRPOTrainer(
    model=model,
    processing_class=transformers.AutoTokenizer.from_pretrained(
      folder / 'model'
    ),
    reward_funcs=lambda completion_ids, **_: [
      float(sum(ids) % 2) for ids in completion_ids
    ],
    train_dataset=datasets.Dataset.from_list(
      [{'prompt': text} for text in prompts]
    ),
    callbacks=[_callback(transformers, clock)],
    args=trl.GRPOConfig(
      output_dir=str(folder / 'trl'),
      use_cpu=True,
      bf16=False,
      gradient_checkpointing=False,
      per_device_train_batch_size=(
        settings['num_prompts'] * settings['group_size']
      ),
      num_generations=settings['group_size'],
      max_completion_length=settings['max_tokens'],
      generation_kwargs={'min_new_tokens': settings['max_tokens']},
      temperature=settings['temperature'],
      top_k=0,
      max_steps=settings['num_steps'],
      learning_rate=1e-6,
      lr_scheduler_type='constant',
      max_grad_norm=1.0,
      beta=0.0,
      epsilon=4.0,
      scale_rewards='none',
      loss_type='grpo',
      shuffle_dataset=False,
      save_strategy='no',
      report_to=[],
      logging_strategy='no',
      disable_tqdm=True,
      dataloader_pin_memory=False,
    ),
  )
  trainer.train()
  print(
    json.dumps(
      {
        'secs': clock.secs,
        'trl': trl.__version__,
        'torch': torch.__version__,
        'completion_tokens': trainer.state.num_input_tokens_seen,
      }
    )
  )


class _Clock:
  """The time between the ends of steps, the first from its beginning."""

  def __init__(self):
    self.secs, self.last = [], None


def _callback(transformers, clock):
  class Times(transformers.TrainerCallback):
    def on_train_begin(self, *args, **kwargs):
      clock.last = time.perf_counter()

    def on_step_end(self, *args, **kwargs):
      now = time.perf_counter()
      clock.secs.append(now - clock.last)
      clock.last = now

  return Times()


if __name__ == '__main__':
  main()
