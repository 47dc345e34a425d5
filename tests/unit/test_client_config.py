"""The parts of the client that need no server: where it connects to, statuses, retries."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from paceline_client import InvalidRequestError, RetryPolicy
from paceline_client._config import Config
from paceline_client._errors import Failure
from paceline_client._retry import Retry
from paceline_client._targets import Targets


def load(address: Any = None, api_key: str | None = None, **environ: str) -> Config:
    return Config.load(address, api_key, 1.0, RetryPolicy(), environ)


def test_arguments_come_before_the_environment_and_that_before_defaults() -> None:
    assert load().addresses == ("127.0.0.1:9000",)
    assert load().metadata() == ()
    environ = {"PACELINE_ADDRESS": "a:1, b:2", "PACELINE_API_KEY": "from-env"}
    assert load(**environ).addresses == ("a:1", "b:2")
    assert load(**environ).metadata() == (("authorization", "Bearer from-env"),)
    config = load(["c:3"], "mine", **environ)
    assert config.addresses == ("c:3",)
    assert config.metadata("00-x") == (("authorization", "Bearer mine"), ("traceparent", "00-x"))


@pytest.mark.parametrize("address", ["[::1]:9000", "dns:///paceline:9000", "unix:/run/x.sock", "router.ns.svc:65535"])
def test_addresses_grpc_knows_are_taken(address: str) -> None:
    assert load(address).addresses == (address,)


@pytest.mark.parametrize(
    "address", ["", "host", "host:", ":1", "host:0", "host:65536", "http://host:1", "a:1,,b:2", "a b:1"]
)
def test_a_malformed_address_is_an_error_wherever_it_comes_from(address: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^address: expected host:port"):
        load(address)
    with pytest.raises(InvalidRequestError, match=r"^PACELINE_ADDRESS: expected host:port"):
        load(PACELINE_ADDRESS=address)


def test_an_empty_list_of_addresses_is_an_error() -> None:
    with pytest.raises(InvalidRequestError, match="at least one host:port"):
        load([])


@pytest.mark.parametrize("key", ["", " ", "se cret", "secret\n", "clé"])
def test_a_malformed_key_is_an_error_that_does_not_show_it(key: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^PACELINE_API_KEY: ") as caught:
        load(PACELINE_API_KEY=key)
    assert not key.strip() or key not in str(caught.value)
    with pytest.raises(InvalidRequestError, match=r"^api_key: "):
        load(None, key)


@pytest.mark.parametrize(
    "options", [{"attempts": -1}, {"attempts": 1.5}, {"total_attempts": 1001}, {"budget_s": -1}, {"max_delay_s": "1"}]
)
def test_a_retry_policy_is_checked(options: Any) -> None:
    with pytest.raises(InvalidRequestError, match=f"retry.{next(iter(options))}"):
        RetryPolicy(**options)


def test_a_policy_may_rule_out_any_attempt() -> None:
    lost = Failure(grpc.StatusCode.UNAVAILABLE)
    assert Retry(RetryPolicy(attempts=0), lambda: 0.0).failed(lost, 0.0) is None
    assert Retry(RetryPolicy(), lambda: 0.0).unary(lost, 0.0, deadline=0.05) is None
    assert Retry(RetryPolicy(), lambda: 0.0).unary(Failure(grpc.StatusCode.NOT_FOUND), 0.0, deadline=9.0) is None


def test_a_failing_server_is_left_once_however_many_calls_see_it() -> None:
    targets = Targets(["a", "b", "c"])
    index, _ = targets.current()
    targets.failed(index)
    targets.failed(index)  # another call that was on it
    assert targets.current() == (1, "b")
    targets.failed(1)
    targets.failed(2)
    assert targets.current() == (0, "a")


@pytest.mark.parametrize(
    ("text", "transient"),
    [
        ("Received RST_STREAM with error code 2", True),
        ("\x1b[36mray::Router()\x1b[39m (pid=1)\n  File serve/_private/proxy.py\nKeyError: 'x'", False),
        ("Traceback (most recent call last):\n  File proxy.py", False),
        ("internal error; the service's log has the details", False),
    ],
)
def test_internal_is_a_bug_unless_the_transport_says_it(text: str, transient: bool) -> None:
    assert Failure(grpc.StatusCode.INTERNAL, text).transient is transient
