"""Benchmarks, what a run over one consists of, and how sure its score is."""
