"""The gRPC ingress: GenerationService over a router. It translates, calls, translates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import aclosing
from typing import Any

import grpc

from paceline.router.auth import Keys
from paceline.router.ingress_backend import Backend
from paceline.router.ingress_context import SLOW_READER_S, bearer_key, trace_of
from paceline.router.ingress_wire import from_generate, refuse_unknown, to_model, to_response
from paceline.router.requests import Request
from paceline.runtime.server import WorkerServer, abort
from paceline.speculation.errors import DeadlineExceeded
from paceline.v1 import generation_pb2 as generation
from paceline.v1 import generation_pb2_grpc as generation_grpc

SERVICE_NAME = generation.DESCRIPTOR.services_by_name["GenerationService"].full_name

Context = grpc.aio.ServicerContext[Any, Any]


class GenerationService(generation_grpc.GenerationServiceServicer):
    """The public API."""

    def __init__(self, backend: Backend, keys: Keys, *, slow_reader_s: float = SLOW_READER_S) -> None:
        self._backend, self._keys, self._slow_reader_s = backend, keys, slow_reader_s

    async def Generate(self, message: generation.GenerateRequest, context: Context) -> None:  # noqa: N802
        """One answer. Written rather than yielded: a cancelled call then closes the router's generator at once."""
        try:
            request = self._request(message, context)
            async with aclosing(self._backend.generate(request)) as events:
                async for event in events:
                    await self._write(context, to_response(event))
        except Exception as error:  # noqa: BLE001 - told to the caller as a status; a bug is logged
            await abort(context, error)

    async def ListModels(  # noqa: N802
        self, message: generation.ListModelsRequest, context: Context
    ) -> generation.ListModelsResponse:
        """What is served just now."""
        try:
            refuse_unknown(message)
            self._keys.tenant(bearer_key(_metadata(context)))
            return generation.ListModelsResponse(models=[to_model(model) for model in self._backend.models()])
        except Exception as error:
            await abort(context, error)
            raise  # abort always raises

    async def _write(self, context: Context, response: generation.GenerateResponse) -> None:
        """Send within bounds: a client that stops reading must not hold its session for ever."""
        try:
            async with asyncio.timeout(self._slow_reader_s):
                await context.write(response)
        except TimeoutError:
            raise DeadlineExceeded(f"the client read nothing for {self._slow_reader_s:g} s") from None

    def _request(self, message: generation.GenerateRequest, context: Context) -> Request:
        headers = _metadata(context)
        tenant = self._keys.tenant(bearer_key(headers))
        timeout_s = context.time_remaining()
        if timeout_s is not None and timeout_s <= 0:
            raise DeadlineExceeded("the deadline passed before the request was read")
        return from_generate(message, tenant=tenant, timeout_s=timeout_s, trace=trace_of(headers))


def grpc_ingress(backend: Backend, keys: Keys, host: str, port: int, *, max_calls: int, shared: bool) -> WorkerServer:
    """The gRPC server of one router; ``shared`` lets other replicas listen on the same port."""
    service = GenerationService(backend, keys)
    add: Callable[[grpc.aio.Server], None] = lambda server: (  # noqa: E731
        generation_grpc.add_GenerationServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    )
    return WorkerServer(host, port, services=(SERVICE_NAME,), add=add, max_concurrent_rpcs=max_calls, reuse_port=shared)


def _metadata(context: Context) -> Mapping[str, str]:
    """Text metadata of a call; keys arrive in lower case."""
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
