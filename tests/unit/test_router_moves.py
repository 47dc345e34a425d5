"""An answer that moves to another numerics class under way, as HTTP clients see it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import replace

import httpx
import pytest
from paceline.router.auth import OPEN
from paceline.router.http import http_app
from paceline.router.ingress_fake import ScriptedRouter
from paceline.router.requests import Committed, Event, Request, Started


class Moving(ScriptedRouter):
    """After its first round it goes on in class "other"."""

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        started: Started | None = None
        async for event in super().generate(request):
            yield event
            if isinstance(event, Started):
                started = event
            elif isinstance(event, Committed) and started is not None:
                yield replace(started, numerics_class="other-class", class_changed=True, lease_epoch=3)
                started = None


@pytest.mark.parametrize("stream", [False, True])
async def test_a_move_across_classes_is_flagged_and_the_text_goes_on(stream: bool) -> None:
    transport = httpx.ASGITransport(http_app(Moving(), OPEN))
    async with httpx.AsyncClient(transport=transport, base_url="http://router") as http:
        body = {"prompt": "x", "stream": stream} | ({"stream_options": {"include_usage": True}} if stream else {})
        text = (await http.post("/v1/completions", json=body)).text
    chunks = [line.removeprefix("data: ") for line in text.splitlines() if line and "[DONE]" not in line]
    last = json.loads(chunks[-1])
    assert last["paceline"]["class_changed"] is True
    assert last["system_fingerprint"].startswith("fp_other")
