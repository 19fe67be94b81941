"""What a run would need and take on hardware that is not at hand."""
