"""The mathematics of the losses, as pure functions."""
