"""A GenerationService that answers by script, for tests of the command line."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import grpc
from paceline.runtime.process import READY_PREFIX
from paceline.v1 import common_pb2, generation_pb2
from paceline.v1.generation_pb2_grpc import GenerationServiceServicer, add_GenerationServiceServicer_to_server

ACCEPTED, CORRECTED, BONUS, TARGET_ONLY = 1, 2, 3, 4

Script = Callable[[generation_pb2.GenerateRequest, Any], Iterator[generation_pb2.GenerateResponse]]


def started() -> generation_pb2.GenerateResponse:
    return generation_pb2.GenerateResponse(
        started=generation_pb2.Started(
            request_id="r1",
            session_id="s1",
            model="m",
            numerics_class="c",
            prompt_token_ids=[1, 2],
            seed=7,
            lease_epoch=1,
        )
    )


def tokens(index: int, text: str, *sources: int, drafted: int = 0) -> generation_pb2.GenerateResponse:
    return generation_pb2.GenerateResponse(
        tokens=generation_pb2.Tokens(
            index=index,
            token_ids=[100 + index + offset for offset in range(len(sources))],
            sources=sources,  # type: ignore[arg-type]
            proposer_model_id="d",
            verifier_model_id="m",
            text=text,
            round_id=index + 1,
            drafter="ngram",
            drafted=drafted,
            verified=drafted,
            accepted=sources.count(ACCEPTED),
            lease_epoch=1,
        )
    )


def completed(count: int) -> generation_pb2.GenerateResponse:
    return generation_pb2.GenerateResponse(
        completed=generation_pb2.Completed(
            finish=common_pb2.Finish(reason=common_pb2.FINISH_REASON_STOP),
            usage=generation_pb2.Usage(prompt_tokens=2, completion_tokens=count),
            speculation=generation_pb2.SpeculationMetrics(
                rounds=3,
                verify_rounds=2,
                drafted_tokens=8,
                verified_tokens=6,
                accepted_tokens=3,
                corrected_tokens=1,
                bonus_tokens=1,
                target_only_tokens=1,
                per_round_verified=[4, 2],
                per_round_accepted=[1, 2],
            ),
        )
    )


def answer(request: generation_pb2.GenerateRequest, context: Any) -> Iterator[generation_pb2.GenerateResponse]:
    """Six tokens in three rounds."""
    yield started()
    yield tokens(0, "One", TARGET_ONLY)
    yield tokens(1, " two three", ACCEPTED, CORRECTED, drafted=4)
    yield tokens(3, " four five six", ACCEPTED, ACCEPTED, BONUS, drafted=4)
    yield completed(6)


class Scripted(GenerationServiceServicer):
    """Serves on a free port while its context is open."""

    def __init__(self, script: Script = answer) -> None:
        self.script = script
        self.requests: list[generation_pb2.GenerateRequest] = []
        self.keys: list[str] = []
        self.cancelled = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(4))
        add_GenerationServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait()

    def Generate(  # noqa: N802  # the wire's name
        self, request: generation_pb2.GenerateRequest, context: Any
    ) -> Iterator[generation_pb2.GenerateResponse]:
        self.requests.append(request)
        self.keys += [value for key, value in context.invocation_metadata() if key == "authorization"]
        context.add_callback(self.cancelled.set)
        yield from self.script(request, context)

    def ListModels(  # noqa: N802  # the wire's name
        self, request: generation_pb2.ListModelsRequest, context: Any
    ) -> generation_pb2.ListModelsResponse:
        model = generation_pb2.ModelInfo(
            id="m", numerics_class="c" * 20, context_length=2048, drafters=["ngram", "model"], targets=1, drafts=2
        )
        return generation_pb2.ListModelsResponse(models=[model])


SERVICE = f"""
import json, os, signal, socket, sys, time
service = sys.argv[1]
with open(sys.argv[sys.argv.index("--config") + 1]) as file:
    values = dict(line.rstrip().split(": ", 1) for line in file if ": " in line and line[0].isalpha())
if values.get("default_drafter") == "refuse":
    sys.exit([print("default_drafter: expected a known drafter, got 'refuse'", file=sys.stderr), 2][1])
stubborn = values.get("default_drafter") == "stubborn"
signal.signal(signal.SIGTERM, signal.SIG_IGN if stubborn else lambda *_: sys.exit(0))
asked = values["grpc_port" if service == "router" else "port"]
if "--set" in sys.argv:
    asked = sys.argv[sys.argv.index("--set") + 1].removeprefix("port=")
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(asked)))
listener.listen()
address = "127.0.0.1:%d" % listener.getsockname()[1]
if "--announce" in sys.argv:
    address = sys.argv[sys.argv.index("--announce") + 1]
ready = dict(service=service, address=address, pid=os.getpid(), incarnation="i", model_id="m")
ready |= dict(http="0.0.0.0:8123", pids=[1]) if service == "router" else dict()
print("{READY_PREFIX}" + json.dumps(ready), flush=True)
time.sleep(120)
"""


def service_commands(folder: Path) -> dict[str, tuple[str, ...]]:
    """``ClusterSpec.commands`` for services that only listen."""
    script = folder / "service.py"
    script.write_text(SERVICE)
    return {service: ("-S", str(script), service) for service in ("target", "draft", "router")}
