"""The mathematics and state machines of speculative decoding, free of I/O, clocks and global randomness.

Import the modules themselves: some need torch (``noise``, ``sampling``), and routers must never load it.
"""
