"""Scores of proofs: the judge, its verdicts on record, and rewards."""
