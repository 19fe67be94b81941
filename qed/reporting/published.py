"""Figures of the QED-Nano report, to stand beside ours and never among them.

All are percentages of 7 points by Gemini 3 Pro as the judge (IMO-AnswerBench:
percent of right answers, compared by a model). None was measured here. Its
tables do not agree with each other where they overlap: three turns of the
reasoning cache are 44.0 % in Table 2 and 40.0 % in Table 6.
"""

from __future__ import annotations

JUDGE = 'Gemini 3 Pro'

# Table 1: (model, scaffold) -> benchmark -> (mean, standard deviation over 3
# runs or None). Which split of ProofBench it has is not said.
MAIN: dict[tuple[str, str], dict[str, tuple[float, float | None]]] = {
  (model, scaffold): {
    'imo_proofbench': (imo, imo_std),
    'proofbench': (proof, proof_std),
    **({'imo_answerbench': (answer, None)} if answer is not None else {}),
  }
  for model, scaffold, imo, imo_std, proof, proof_std, answer in (
    ('Qwen3-4B-Thinking-2507', 'single', 20.4, 2.6, 19.5, 0.9, 55.8),
    ('QED-Nano SFT', 'single', 39.5, 2.9, 33.3, 0.5, 57.5),
    ('QED-Nano', 'single', 40.0, 0.6, 44.9, 3.4, 67.5),
    ('QED-Nano', 'deepseek_math', 54.0, 3.7, 54.4, 2.4, None),
    ('QED-Nano', 'rsa', 56.9, 5.9, 62.6, 4.0, 76.5),
    ('Qwen3-30B-A3B-Thinking-2507', 'single', 27.6, 1.0, 26.1, 2.4, 67.0),
    ('Qwen3-235B-A22B-Thinking-2507', 'single', 34.1, 0.7, 33.7, 1.1, 70.5),
    ('Nomos-1', 'single', 40.3, 3.5, 28.3, 3.9, 49.0),
    ('GPT-OSS-20B', 'single', 38.3, 1.2, 38.4, 3.9, 61.5),
    ('GPT-OSS-120B', 'single', 43.1, 3.2, 47.5, 1.7, 70.5),
    ('DeepSeek-Math-V2', 'single', 57.9, 2.0, 60.6, 0.1, 75.8),
    ('Gemini 3 Pro', 'single', 58.7, 2.9, 66.7, 3.1, 83.2),
  )
}

# Table 2, of QED-Nano on IMO-ProofBench: (scaffold, turns of the reasoning
# cache or 1) -> (percent, tokens of a problem).
SCAFFOLDS: dict[tuple[str, int], tuple[float, int]] = {
  ('single', 1): (40.0, 93_690),
  ('reasoning_cache', 3): (44.0, 237_379),
  ('deepseek_math', 1): (54.0, 1_605_879),
  ('rsa', 1): (56.9, 2_045_764),
}

# Table 6, of the same: turns of the reasoning cache -> (percent, tokens).
TURNS: dict[int, tuple[float, int]] = {
  3: (40.0, 261_892),
  5: (42.4, 434_367),
  7: (54.0, 578_928),
}

# Of Tables 2 and 6.
MODEL, BENCHMARK, NUM_PROBLEMS = 'QED-Nano', 'imo_proofbench', 60
