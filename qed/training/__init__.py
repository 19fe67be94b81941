"""The optimiser step, its state, checkpoints and metrics."""
