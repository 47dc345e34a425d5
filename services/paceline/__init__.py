"""Paceline: distributed speculative decoding."""
