"""The model that learns in miniature: a Qwen3 of a quarter million weights."""

# Its config.json, but for what a tokenizer decides.
CONFIG = {
  'model_type': 'qwen3',
  'hidden_size': 64,
  'intermediate_size': 192,
  'num_hidden_layers': 4,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 32,
  # Positions differ by at most a few hundred; a larger base learns to copy
  # from the statement far more slowly.
  'rope_theta': 100.0,
  'rms_norm_eps': 1e-6,
  'tie_word_embeddings': True,
  'max_position_embeddings': 512,
}
MAX_VOCAB_SIZE = 460
