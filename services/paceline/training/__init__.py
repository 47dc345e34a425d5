"""Training of hidden-state drafters."""
