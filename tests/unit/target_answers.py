"""What the scripted target writes."""

from __future__ import annotations

from tests.unit.target_kit import VOCAB, opening, plain

S1 = opening()
ANSWER = plain(S1)[0]  # what the target writes alone
WRONG = tuple((token + 1) % VOCAB for token in ANSWER)
