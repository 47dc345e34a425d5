"""Spans: which request a token belongs to, which round committed it, which models proposed and verified it.

Services describe their work through seams of their own; what is here turns the descriptions into OpenTelemetry's spans
and figures.
"""
