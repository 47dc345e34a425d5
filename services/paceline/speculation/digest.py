"""The digest of a token prefix, by which two processes notice that they disagree about a session."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

DIGEST_BYTES = 8


class PrefixDigest:
    """BLAKE2b-64 over tokens as little-endian uint32, extended as tokens are committed.

    Extending is O(new tokens); the value does not depend on how the tokens were cut into calls.
    """

    __slots__ = ("_hash", "_value")

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._hash = hashlib.blake2b(digest_size=DIGEST_BYTES)
        self._value: bytes | None = None
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens (each in 0 … 2^32 - 1)."""
        words = array("I", tokens)
        if words.itemsize != 4:  # pragma: no cover - no such platform is supported
            raise RuntimeError("array('I') is not 32 bits wide here")
        self._hash.update(words.tobytes())
        self._value = None

    @property
    def value(self) -> bytes:
        """The digest of all tokens so far, 8 bytes."""
        if self._value is None:
            self._value = self._hash.digest()
        return self._value
