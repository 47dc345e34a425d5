"""Benchmarks: every figure quoted anywhere is printed by something here."""
