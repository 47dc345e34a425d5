"""A target, a draft worker, a router and its two ingresses over fake engines, all in this process, on real sockets."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
from paceline.draft import assembly as drafting
from paceline.draft import service as draft_service
from paceline.draft.worker import DraftWorker
from paceline.router.auth import OPEN
from paceline.router.http import http_app
from paceline.router.ingress import grpc_ingress
from paceline.router.router import Router
from paceline.runtime.config import DraftConfig, EngineConfig, RouterConfig, TargetConfig
from paceline.runtime.server import WorkerServer
from paceline.runtime.worker import WorkerService
from paceline.target import assembly as verifying
from paceline.target import service as target_service
from paceline.target.feeder import Connect, insecure
from paceline_client import AsyncClient


def _silent(line: str) -> None:
    """Progress is told to nobody."""


@asynccontextmanager
async def small_cluster(
    target: str | EngineConfig | TargetConfig,
    draft: str | EngineConfig | DraftConfig,
    *,
    connect: Connect = insecure,
) -> AsyncIterator[tuple[httpx.AsyncClient, AsyncClient]]:
    """Both kinds of clients of a cluster of two models. ``connect`` is how the target reaches the draft worker."""
    async with AsyncExitStack() as stack:
        verifier = await stack.enter_async_context(_target(_target_config(target), connect))
        drafter = await stack.enter_async_context(_draft(_draft_config(draft)))
        config = RouterConfig(targets=(verifier,), drafts=(drafter,), draft_deadline_ms=5000)
        router = await Router.connect(config, rng=random.Random(3))
        stack.push_async_callback(router.close)
        ingress = grpc_ingress(router, OPEN, "127.0.0.1", 0, max_calls=64, shared=False)
        port = await ingress.start()
        stack.push_async_callback(ingress.stop, 0)
        transport = httpx.ASGITransport(app=http_app(router, OPEN))
        http = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://paceline"))
        client = await stack.enter_async_context(AsyncClient(f"127.0.0.1:{port}"))
        yield http, client


def _engine(model: str | EngineConfig) -> EngineConfig:
    return EngineConfig(model=model) if isinstance(model, str) else model


def _target_config(target: str | EngineConfig | TargetConfig) -> TargetConfig:
    return target if isinstance(target, TargetConfig) else TargetConfig(engine=_engine(target))


def _draft_config(draft: str | EngineConfig | DraftConfig) -> DraftConfig:
    if isinstance(draft, DraftConfig):
        return draft
    return DraftConfig(engine=_engine(draft), default_drafter="model")


@asynccontextmanager
async def _target(config: TargetConfig, connect: Connect) -> AsyncIterator[str]:
    loaded = await asyncio.to_thread(verifying.load, config, _silent)
    verifier = verifying.verifier_for(config, loaded, "target-1")
    description = verifying.describe(verifier, loaded)
    service = target_service.TargetService(
        verifier, loaded.engine, description, loaded.tokenizer_files, connect=connect
    )
    server = WorkerServer("127.0.0.1", 0, services=(target_service.SERVICE_NAME,), add=target_service.add_to(service))
    async with serving(server, service) as address:
        yield address


@asynccontextmanager
async def _draft(config: DraftConfig) -> AsyncIterator[str]:
    offered = await asyncio.to_thread(drafting.assemble, config, _silent)
    worker = DraftWorker([each.drafter for each in offered], config.default_drafter, incarnation="draft-1")
    service = draft_service.DraftService(worker, drafting.describe(config, offered, "draft-1"))
    server = WorkerServer("127.0.0.1", 0, services=(draft_service.SERVICE_NAME,), add=draft_service.add_to(service))
    async with serving(server, service) as address:
        yield address


@asynccontextmanager
async def serving(server: WorkerServer, service: WorkerService) -> AsyncIterator[str]:
    """A service that works and answers; its address."""
    port = await server.start()
    service.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await service.stop()
        await server.stop(0)
