"""Problems, prompts, tokens, samples and packed rows, on the host."""
