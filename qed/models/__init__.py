"""Qwen3 as pure functions over one tree of weights."""
