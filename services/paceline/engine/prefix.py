"""Which page holds which content: keys chained over blocks of tokens, and the pages kept under them.

A key stands for a page's tokens *and* everything before them, because KV depends on both:

    key 0 = SHA-256(salt ‖ tokens of page 0)        key n = SHA-256(key n-1 ‖ tokens of page n)

The salt holds the numerics class, which fixes the bits, and the tenant: nobody can find out, by timing, what somebody
else's prompts begin with. The tenant is the authenticated one, never what a caller says.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Iterator, Sequence

SCHEMA = 1  # grows when the meaning of a key changes


def salt_of(numerics_class: str, tenant: str, *, page: int) -> bytes:
    """What the keys of one tenant start from, 32 bytes; ``page`` is the number of positions on a page."""
    return hashlib.sha256(repr((SCHEMA, numerics_class, page, tenant)).encode()).digest()


def extend(key: bytes, tokens: Sequence[int]) -> bytes:
    """The key of the page with these tokens after the page (or salt) with that key; 32 bytes.

    Tokens are unsigned 32-bit.
    """
    return hashlib.sha256(key + struct.pack(f"<{len(tokens)}I", *tokens)).digest()


def keys(salt: bytes, tokens: Sequence[int], *, page: int) -> Iterator[bytes]:
    """Keys of all full pages of a sequence, in order."""
    key = salt
    for start in range(0, len(tokens) - page + 1, page):
        key = extend(key, tokens[start : start + page])
        yield key


class PrefixIndex:
    """Pages by content, and which of them no session holds, in the order in which they may be evicted.

    Invariants: a content is on one page at most, a page has one content at most; idle pages have a content.
    """

    def __init__(self) -> None:
        self._pages: dict[bytes, int] = {}
        self._keys: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # least recently used first

    def __contains__(self, page: int) -> bool:
        return page in self._keys

    @property
    def idle(self) -> int:
        """How many pages are kept although no session holds them."""
        return len(self._idle)

    def is_idle(self, page: int) -> bool:
        """Whether a page is kept although no session holds it."""
        return page in self._idle

    def longest(self, salt: bytes, tokens: Sequence[int], *, page: int) -> tuple[list[int], list[bytes]]:
        """Pages of the longest known prefix of a sequence, and their keys."""
        pages, found = [], []
        for key in keys(salt, tokens, page=page):
            if key not in self._pages:
                break
            pages.append(self._pages[key])
            found.append(key)
        return pages, found

    def add(self, key: bytes, page: int) -> None:
        """Publish a page that a session holds. If the content is on another page already, that one stays."""
        assert page not in self._keys, page
        if key not in self._pages:
            self._pages[key], self._keys[page] = page, key

    def forget(self, page: int) -> None:
        """Nobody shall find a page's content any more. Pages without content are ignored."""
        key = self._keys.pop(page, None)
        if key is not None:
            del self._pages[key]
            self._idle.pop(page, None)

    def rest(self, page: int) -> None:
        """No session holds a page any more; it was the most recently used."""
        assert page in self._keys, page
        self._idle[page] = None

    def hold(self, page: int) -> None:
        """A session holds a page again."""
        self._idle.pop(page, None)

    def evict(self) -> int:
        """The least recently used idle page, whose content is forgotten. There must be one."""
        page = next(iter(self._idle))
        self.forget(page)
        return page

    def check_integrity(self) -> None:
        """Assert the invariants."""
        assert {page: key for key, page in self._pages.items()} == self._keys, "pages and contents do not match"
        assert self._idle.keys() <= self._keys.keys(), "an idle page has no content"
