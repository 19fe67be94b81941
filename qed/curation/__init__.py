"""From raw forum problems to a training set: one stage per file."""
