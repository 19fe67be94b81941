"""From a definition to running programs: work units and what executes them."""
