"""Config dictionaries; one file is one question."""
