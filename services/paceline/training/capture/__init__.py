"""Capture: prompts in, the target's own answers and its hidden states out, as a target cache.

Two phases, which may be run apart. *Answers*: the engine answers prompts in large batches, plain decoding, and every
finished turn is appended to a file. *States*: prompt and answer are fed to the target once more, as a prompt, and the
hidden states of chosen layers go to the cache. The engine's steps being deterministic, both are functions of (target,
prompt, recipe) alone: batches, restarts and the number of processes change nothing.
"""
