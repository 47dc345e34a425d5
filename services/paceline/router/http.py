"""The OpenAI-compatible HTTP ingress: routes over a router."""

from __future__ import annotations

import os
import secrets
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from paceline.router.auth import Keys
from paceline.router.http_answers import CHAT, COMPLETION, Dialect
from paceline.router.http_body import read_json
from paceline.router.http_errors import Json, error_response
from paceline.router.http_requests import Wanted
from paceline.router.http_stream import Answering
from paceline.router.ingress_backend import Backend
from paceline.router.ingress_context import REQUEST_ID_HEADER, bearer_key, checked_request_id, trace_of
from paceline.router.requests import SEED_BITS, Model, Request, SamplingRequest
from paceline.speculation.errors import NotFound

Handler = Callable[[HttpRequest], Awaitable[ASGIApp]]


def http_app(backend: Backend, keys: Keys) -> Starlette:
    """The application of one router."""
    api = _Api(backend, keys)
    return Starlette(
        routes=[
            Route("/v1/completions", _Endpoint(api.completions), methods=["POST"]),
            Route("/v1/chat/completions", _Endpoint(api.chat), methods=["POST"]),
            Route("/v1/models", _Endpoint(api.models), methods=["GET"]),
            Route("/v1/models/{model:path}", _Endpoint(api.model), methods=["GET"]),
            Route("/healthz", _Endpoint(api.healthz), methods=["GET"]),
            Route("/readyz", _Endpoint(api.readyz), methods=["GET"]),
            Route("/internal/status", _Endpoint(api.status), methods=["GET"]),
        ],
        exception_handlers={HTTPException: _no_route},
    )


class _Endpoint:
    """A handler as an ASGI application; its errors become OpenAI's bodies."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._handler(HttpRequest(scope, receive))
        except ClientDisconnect:
            return  # while sending the body
        except Exception as error:  # noqa: BLE001 - told to the caller; a bug is logged
            response = error_response(error)
        await response(scope, receive, send)


async def _no_route(request: HttpRequest, error: Exception) -> Response:
    assert isinstance(error, HTTPException), error
    got = f"{request.method} {request.url.path[:200]}"
    message = f"{got}: no such method here" if error.status_code == 405 else f"{got}: no such path here"
    body = {"error": {"message": message, "type": "not_found_error", "param": None, "code": "unknown_url"}}
    return Json(body, status_code=error.status_code, headers=error.headers)


class _Api:
    def __init__(self, backend: Backend, keys: Keys) -> None:
        self._backend, self._keys = backend, keys
        self._created = int(time.time())

    async def completions(self, request: HttpRequest) -> ASGIApp:
        return await self._generate(request, COMPLETION)

    async def chat(self, request: HttpRequest) -> ASGIApp:
        return await self._generate(request, CHAT)

    async def _generate(self, request: HttpRequest, dialect: Dialect) -> ASGIApp:
        tenant = self._tenant(request)  # first: strangers don't get their bodies read
        request_id = checked_request_id(request.headers.get(REQUEST_ID_HEADER, ""), REQUEST_ID_HEADER)
        request_id = request_id or uuid.uuid4().hex  # made here, so that refusals carry one, too
        try:
            wanted = dialect.parse(await read_json(request))
        except Exception as error:  # noqa: BLE001 - as in _Endpoint
            return error_response(error, {REQUEST_ID_HEADER: request_id})
        asked = Request(
            request_id=request_id,
            model=wanted.model,
            text=wanted.text,
            messages=wanted.messages,
            tokens=wanted.tokens,
            sampling=self._seeded(wanted),
            speculation=wanted.speculation,
            tenant=tenant,
            trace=trace_of(request.headers),
        )
        return Answering(self._backend, asked, wanted, dialect)

    def _seeded(self, wanted: Wanted) -> SamplingRequest:
        """Several choices share a seed, which is then drawn here rather than by the router for each."""
        if wanted.n == 1 or wanted.sampling.seed is not None:
            return wanted.sampling
        return replace(wanted.sampling, seed=secrets.randbits(SEED_BITS))

    async def models(self, request: HttpRequest) -> ASGIApp:
        self._tenant(request)
        return Json({"object": "list", "data": [self._model(model) for model in self._backend.models()]})

    async def model(self, request: HttpRequest) -> ASGIApp:
        self._tenant(request)
        wanted = request.path_params["model"]
        for model in self._backend.models():
            if model.model_id == wanted:
                return Json(self._model(model))
        raise NotFound(f"model {wanted[:200]!r} is not served here")

    async def healthz(self, request: HttpRequest) -> ASGIApp:
        """This process serves: whoever restarts it for its own good asks here."""
        return Json({"status": "ok"})

    async def readyz(self, request: HttpRequest) -> ASGIApp:
        """It has a target to serve with: whoever routes clients to it asks here."""
        if any(model.targets for model in self._backend.models()):
            return Json({"status": "ok"})
        return Json({"status": "waiting for a target"}, status_code=503)

    async def status(self, request: HttpRequest) -> ASGIApp:
        """For the command line and for people; every replica on the port tells its own."""
        self._tenant(request)
        models = [self._model(model) for model in self._backend.models()]
        return Json({"pid": os.getpid(), "models": models, "stats": dict(self._backend.stats())})

    def _tenant(self, request: HttpRequest) -> str:
        return self._keys.tenant(bearer_key(request.headers))

    def _model(self, model: Model) -> dict[str, object]:
        more = {
            "fingerprint": model.fingerprint,
            "numerics_class": model.numerics_class,
            "context_length": model.context_length,
            "drafters": list(model.drafters),
            "targets": model.targets,
            "drafts": model.drafts,
        }
        return {
            "id": model.model_id,
            "object": "model",
            "created": self._created,
            "owned_by": "paceline",
            "paceline": more,
        }
