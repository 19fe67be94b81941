"""Train a small model to prove hard theorems."""
