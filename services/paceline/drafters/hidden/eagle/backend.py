"""An EAGLE-3 drafter as it is served: contexts of the target's features, drafts written behind them and cut off again.

Row i of a context wants the token after position i, which the draft worker may learn after the features of i. So the
last features wait: rows are turned into keys and values as soon as their token is known, once each. The newest row is
the one that predicts. What is drafted after it has rows of its own making, whose keys and values give way to those of
the target's features when they come.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from paceline.drafters.hidden.attention import ContextCache
from paceline.drafters.hidden.backend import BlockAsk, Drafting, Piece
from paceline.drafters.hidden.eagle.network import EagleDrafter
from paceline.drafters.hidden.layers import Attend
from paceline.engine.pages import BlockTable


@dataclass(slots=True)
class _Context:
    """A session. Invariants: the cache's first ``rows`` are of the target's features, what is behind them was drafted;
    ``features`` are there of all positions without such a row, and of the last."""

    features: Tensor  # [n, H], of positions length - n .. length - 1
    length: int = 0
    rows: int = 0
    cache: ContextCache = field(default_factory=ContextCache)

    def waiting(self, end: int) -> Tensor:
        """Features of positions rows .. end - 1."""
        first = self.length - len(self.features)
        return self.features[self.rows - first : end - first]

    def settle(self, keys: Tensor, values: Tensor) -> None:
        """Take on the keys and values, [n, kv heads, d], of the next rows."""
        self.cache.cut(self.rows)
        self.cache.append(keys[None], values[None])
        self.rows += len(keys)
        kept = max(1, self.length - self.rows)
        if kept < len(self.features):
            self.features = self.features[-kept:].clone()


class EagleBackend:
    """See Backend. On torch alone, for any device and dtype. The pages only count.

    Args:
        network: in eval mode; used as it is.
        tokens: positions of all contexts together.
    """

    def __init__(self, network: EagleDrafter, tokens: int) -> None:
        self._network = network
        self._table = BlockTable(tokens)
        self._contexts: dict[str, _Context] = {}

    @property
    def dtype(self) -> torch.dtype:
        return self._network.dtype

    @property
    def least(self) -> int:
        return 1  # the row that predicts is one of the target's features

    def reserve(self, session_id: str, positions: int) -> bool:
        return self._table.reserve(session_id, positions) is not None

    def free(self, session_id: str) -> None:
        self._table.free(session_id)
        self._contexts.pop(session_id, None)

    def append(self, pieces: Sequence[Piece]) -> None:
        wanted = []
        for piece in pieces:
            context = self._contexts.setdefault(piece.session_id, _Context(piece.features[:0]))
            assert piece.start == context.length, (piece.session_id, piece.start, context.length)
            context.features = torch.cat((context.features, piece.features))
            context.length += len(piece.features)
            wanted.append((context, piece.tokens, min(context.length, len(piece.tokens)) - 1))
        self._settle(wanted)

    def begin(self, asks: Sequence[BlockAsk]) -> Drafting:
        contexts = [self._contexts[ask.session_id] for ask in asks]
        assert all(ask.position == context.length for ask, context in zip(asks, contexts, strict=True)), asks
        self._settle([(each, ask.tokens, each.length - 1) for ask, each in zip(asks, contexts, strict=True)])
        return _Drafting(self._network, contexts)

    def _settle(self, wanted: Sequence[tuple[_Context, Sequence[int], int]]) -> None:
        """Compute rows of contexts, given their sessions' tokens, up to an end each."""
        wanted = [each for each in wanted if each[0].rows < each[2]]
        if not wanted:
            return
        tokens = [token for context, known, end in wanted for token in known[context.rows + 1 : end + 1]]
        features = torch.cat([context.waiting(end) for context, _, end in wanted])
        positions = torch.cat([torch.arange(context.rows, end) for context, _, end in wanted])
        device = features.device
        keys, values = self._network.keys_values(torch.tensor(tokens, device=device), features, positions.to(device))
        counts = [end - context.rows for context, _, end in wanted]
        parts = zip(wanted, torch.split(keys, counts), torch.split(values, counts), strict=True)
        for (context, _, _), own_keys, own_values in parts:
            context.settle(own_keys, own_values)


class _Drafting:
    """See Drafting. Step 0 computes the row of each context's last features, and it stays; the others are drafted."""

    def __init__(self, network: EagleDrafter, contexts: Sequence[_Context]) -> None:
        self._network, self._contexts = network, contexts
        for context in contexts:
            context.rows = context.length - 1  # of a repeated ask, the last row comes again
            context.cache.cut(context.rows)
        self._hidden = torch.stack([context.features[-1] for context in contexts])
        self._positions = torch.tensor([context.rows for context in contexts], device=self._hidden.device)

    @property
    def steps(self) -> int:
        return self._network.config.draft_tokens

    def logits(self, step: int, previous: Tensor, active: Sequence[int]) -> Tensor:
        places = torch.tensor(active, device=self._hidden.device)
        contexts = [self._contexts[place] for place in active]
        attend = _writing([context.cache for context in contexts])
        rows = self._network.rows(
            previous.to(places.device), self._hidden[places], self._positions[places] + step, attend
        )
        self._hidden[places] = rows
        if step == 0:
            for context in contexts:
                context.rows = context.length
        return self._network.head(rows)

    def confidence(self, before: Tensor) -> Tensor | None:
        del before
        return None


def _writing(caches: Sequence[ContextCache]) -> Attend:
    """Attention of one row per session, which joins its cache and reads it."""

    def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        heads, dim = queries.shape[1:]
        kv_heads = keys.shape[1]
        asked = (queries * dim**-0.5).view(-1, kv_heads, heads // kv_heads, dim)
        out = torch.empty_like(asked)
        for place, cache in enumerate(caches):
            cache.append(keys[None, place : place + 1], values[None, place : place + 1])
            seen_keys, seen_values = cache.layer(layer)
            scores = torch.matmul(asked[place], seen_keys.permute(1, 2, 0))
            shares = torch.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
            torch.matmul(shares, seen_values.transpose(0, 1), out=out[place])
        return out.view(-1, heads, dim)

    return attend
