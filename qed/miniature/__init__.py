"""A proof domain small enough to watch the recipe on two cores."""
