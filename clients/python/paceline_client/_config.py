"""Where the servers are and who is calling: arguments first, then the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paceline_client._errors import InvalidRequestError
from paceline_client._options import check_timeout
from paceline_client._retry import RetryPolicy

DEFAULT_ADDRESS = "127.0.0.1:9000"
DEFAULT_TIMEOUT_S = 600.0
MODELS_TIMEOUT_S = 10.0

# A gRPC target URI is handed on as it is; its grammar is gRPC's.
_URI = re.compile(r"(?:dns|ipv4|ipv6|unix|unix-abstract|xds):\S+")
_HOST_PORT = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):(\d{1,5})")
_KEY = re.compile(r"[!-~]+")

CHANNEL_OPTIONS: tuple[tuple[str, Any], ...] = (
    # Retrying is this package's work: gRPC's own would repeat a request without what it knows.
    ("grpc.enable_retries", 0),
    # Started carries the prompt's tokens, which may be many.
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    # A machine that vanished answers nothing: notice within 70 s. Faster pings would be refused by servers and
    # ingresses that keep gRPC's defaults.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Come back as fast as the retry policy says, not after gRPC's own second; and give up connecting to an address
    # that swallows packets in time to try another.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.min_reconnect_backoff_ms", 5_000),
)


@dataclass(frozen=True, slots=True)
class Config:
    """Everything a client is set up with, checked."""

    addresses: tuple[str, ...]
    api_key: str
    timeout_s: float
    retry: RetryPolicy

    @classmethod
    def load(
        cls,
        address: str | Sequence[str] | None,
        api_key: str | None,
        timeout: float,
        retry: RetryPolicy,
        environ: Mapping[str, str] = os.environ,
    ) -> Config:
        """Take what is given, else PACELINE_ADDRESS and PACELINE_API_KEY, else the defaults.

        Raises:
            InvalidRequestError: a value, wherever it came from, is malformed.
        """
        field = "address"
        if address is None:
            address = environ.get("PACELINE_ADDRESS", DEFAULT_ADDRESS)
            field = "PACELINE_ADDRESS"
        key_field = "api_key"
        if api_key is None:
            api_key = environ.get("PACELINE_API_KEY")
            key_field = "PACELINE_API_KEY"
        if api_key is not None and not _KEY.fullmatch(api_key):
            # The key itself stays out of messages and logs.
            raise InvalidRequestError(
                f"{key_field}: expected printable ASCII without spaces, got {len(api_key)} characters that are not; "
                "leave it unset to send none"
            )
        return cls(_addresses(field, address), api_key or "", check_timeout(timeout), retry)

    def metadata(self, traceparent: str = "") -> tuple[tuple[str, str], ...]:
        """What goes along with every call."""
        out: tuple[tuple[str, str], ...] = ()
        if self.api_key:
            out += (("authorization", f"Bearer {self.api_key}"),)
        if traceparent:
            out += (("traceparent", traceparent),)
        return out


def _addresses(field: str, value: str | Sequence[str]) -> tuple[str, ...]:
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else list(value)
    if not parts:
        raise InvalidRequestError.of_field(field, expected="at least one host:port", got=value)
    for part in parts:
        if not isinstance(part, str) or not _valid(part):
            raise InvalidRequestError.of_field(
                field,
                expected="host:port, several separated by commas",
                got=part,
                hint=f"such as {DEFAULT_ADDRESS}",
            )
    return tuple(parts)


def _valid(address: str) -> bool:
    if _URI.fullmatch(address):
        return True
    host_port = _HOST_PORT.fullmatch(address)
    return host_port is not None and 0 < int(host_port[1]) < 65536
