"""How the two kinds of workers are spoken to over a link."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grpc

from paceline.router import worker_wire
from paceline.router.links import Info, error_of
from paceline.router.pairing import TargetInfo
from paceline.runtime.text import TextCodec
from paceline.speculation.errors import InvalidRequest
from paceline.speculation.leases import Side
from paceline.speculation.messages import DraftResult, DraftTask, StepReport, VerifyResult, VerifyTask
from paceline.v1 import common_pb2 as common
from paceline.v1 import draft_pb2_grpc as draft_grpc
from paceline.v1 import target_pb2 as target
from paceline.v1 import target_pb2_grpc as target_grpc

MAX_TOKENIZER_BYTES = 64 * 1024 * 1024
MAX_CODECS = 64

OnDrafts = Callable[[str, Sequence[DraftResult], float], None]
OnVerdicts = Callable[[str, Sequence[VerifyResult], StepReport, float], None]


class Codecs:
    """Tokenizers of the targets seen, by fingerprint; at most MAX_CODECS, the oldest make room."""

    def __init__(self) -> None:
        self._held: dict[str, TextCodec] = {}

    def get(self, fingerprint: str) -> TextCodec | None:
        return self._held.get(fingerprint)

    async def fetch(self, stub: Any, info: TargetInfo, timeout_s: float) -> None:
        """Get a target's tokenizer unless it is known. A target that offers none (no fingerprint) is fine.

        Raises:
            InvalidRequest: it is not the tokenizer the target described, or too large.
        """
        wanted = info.tokenizer_fingerprint
        if not wanted or wanted in self._held:
            return
        files: dict[str, bytearray] = {}
        size = 0
        async for chunk in stub.FetchTokenizer(target.FetchTokenizerRequest(), timeout=timeout_s):
            size += len(chunk.data)
            if size > MAX_TOKENIZER_BYTES:
                raise InvalidRequest("tokenizer", expected=f"at most {MAX_TOKENIZER_BYTES} bytes", got=size)
            files.setdefault(chunk.name, bytearray()).extend(chunk.data)
        codec = TextCodec({name: bytes(data) for name, data in files.items()})
        if codec.fingerprint != wanted:
            raise InvalidRequest("tokenizer", expected=f"fingerprint {wanted}", got=codec.fingerprint)
        while len(self._held) >= MAX_CODECS:
            del self._held[next(iter(self._held))]
        self._held[wanted] = codec


class DraftDialect:
    """Draft workers."""

    side = Side.DRAFT

    def __init__(self, on_drafts: OnDrafts) -> None:
        self._on_drafts = on_drafts

    def stub(self, channel: grpc.aio.Channel) -> Any:
        return draft_grpc.DraftServiceStub(channel)  # type: ignore[no-untyped-call]

    async def meet(self, stub: Any, timeout_s: float) -> Info:
        """See Dialect."""
        try:
            return worker_wire.from_draft_description(await stub.Describe(common.DescribeRequest(), timeout=timeout_s))
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error

    def encode(self, router_id: str, tasks: Sequence[DraftTask]) -> Any:
        return worker_wire.to_draft_batch(router_id, tasks)

    def receive(self, address: str, message: Any, start: float) -> int:
        """See Dialect."""
        results = worker_wire.from_draft_results(message)
        self._on_drafts(address, results, start)
        return len(results)


class TargetDialect:
    """Target verifiers."""

    side = Side.TARGET

    def __init__(self, on_verdicts: OnVerdicts, codecs: Codecs) -> None:
        self._on_verdicts = on_verdicts
        self._codecs = codecs

    def stub(self, channel: grpc.aio.Channel) -> Any:
        return target_grpc.TargetServiceStub(channel)  # type: ignore[no-untyped-call]

    async def meet(self, stub: Any, timeout_s: float) -> Info:
        """See Dialect. Raises also InvalidRequest for a tokenizer that is not as described."""
        try:
            description = await stub.Describe(common.DescribeRequest(), timeout=timeout_s)
            info = worker_wire.from_target_description(description)
            await self._codecs.fetch(stub, info, timeout_s)
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from error
        return info

    def encode(self, router_id: str, tasks: Sequence[VerifyTask]) -> Any:
        return worker_wire.to_verify_batch(router_id, tasks)

    def receive(self, address: str, message: Any, start: float) -> int:
        """See Dialect."""
        results, step = worker_wire.from_verify_results(message)
        self._on_verdicts(address, results, step, start)
        return len(results)
