"""Drafters that run on the target's hidden states: DSpark and DFlash, one network in two configurations."""
