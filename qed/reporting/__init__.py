"""What a run did, as a page: plots and a viewer of graded proofs."""
