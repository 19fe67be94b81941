"""Generating text: sampling, the engine and what drives it."""
