"""A request's options at work on drafts, as they are on the target's own samples: the two agree only if both shape."""

from __future__ import annotations

from collections.abc import Sequence

from paceline.drafters.interface import DraftSession
from paceline.engine.grammar import Grammars
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.params import SamplingParams
from paceline.speculation.shaping import GrammarState, Shaping, shaping_of


class DraftShaping:
    """What options do, for the sessions of one drafter.

    Args:
        vocab_size: of the target.
        eos: its end tokens.
        grammars: compiles them; without it drafts are not held to grammars.
    """

    def __init__(self, *, vocab_size: int, eos: Sequence[int], grammars: Grammars | None = None) -> None:
        self._vocab_size, self._eos, self._grammars = vocab_size, tuple(eos), grammars

    def ends(self, sampling: SamplingParams) -> frozenset[int]:
        """Tokens after which drafting is a waste. In rejection mode it goes on: a draft that ends early comes early,
        and whether a draft comes in time must not depend on what was drawn."""
        return frozenset() if sampling.rejects else sampling.ends(self._eos)

    def at(self, session: DraftSession, shaping: Shaping | None, base_len: int) -> Shaping | None:
        """A session's shaping where an ask stands; None if its options ask for none.

        Args:
            shaping: where it stood before, which is brought forward; None makes it anew.
        """
        if shaping is not None and shaping.length <= base_len:
            shaping.commit(session.tokens[shaping.length : base_len])
            return shaping
        tokens = session.tokens[:base_len]
        return shaping_of(
            session.sampling, tokens, prompt_len=session.prompt_len, vocab_size=self._vocab_size, eos=self._eos,
            grammar=self._grammar(session, tokens),
        )  # fmt: skip

    def _grammar(self, session: DraftSession, tokens: Sequence[int]) -> GrammarState | None:
        """Drafts that cannot be held to the grammar are drafts all the same: its errors are the target's to tell."""
        asked = session.sampling.grammar
        if asked is None or self._grammars is None:
            return None
        try:
            return self._grammars.state(asked, tokens[session.prompt_len :])
        except InvalidRequest:
            return None
