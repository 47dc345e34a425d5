"""The Paceline client SDK: ``Client`` blocks, ``AsyncClient`` awaits; both survive the loss of a router.

with Client("127.0.0.1:9000") as client, client.stream("Once upon", max_tokens=64) as stream:
    for chunk in stream:
        print(chunk.text, end="")
print(stream.speculation.accepted_length)
"""

from paceline_client._async_client import AsyncClient, AsyncStream
from paceline_client._client import Client, Stream
from paceline_client._errors import (
    AuthenticationError,
    ConnectionLostError,
    DeadlineExceededError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PacelineError,
    ServerError,
    StreamClosedError,
    UnavailableError,
)
from paceline_client._options import GenerateOptions, Speculation
from paceline_client._retry import RetryPolicy
from paceline_client._types import (
    Chunk,
    Finish,
    FinishReason,
    Generation,
    Model,
    Partial,
    SpeculationMetrics,
    Started,
    Token,
    TokenLogprobs,
    TokenSource,
    Usage,
)

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "AuthenticationError",
    "Chunk",
    "Client",
    "ConnectionLostError",
    "DeadlineExceededError",
    "Finish",
    "FinishReason",
    "GenerateOptions",
    "Generation",
    "InvalidRequestError",
    "Model",
    "NotFoundError",
    "OverloadedError",
    "PacelineError",
    "Partial",
    "RetryPolicy",
    "ServerError",
    "Speculation",
    "SpeculationMetrics",
    "Started",
    "Stream",
    "StreamClosedError",
    "Token",
    "TokenLogprobs",
    "TokenSource",
    "UnavailableError",
    "Usage",
]
