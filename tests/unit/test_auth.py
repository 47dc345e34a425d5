"""API keys: who is who, and what a keys file may say."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from paceline.router.auth import OPEN, is_loopback, load_keys
from paceline.runtime.config import RouterConfig
from paceline.speculation.errors import InvalidRequest, Unauthenticated

SECRET = "pk-live-12345678"
DIGEST = hashlib.sha256(SECRET.encode()).hexdigest()


def config_of(folder: Path, text: str) -> RouterConfig:
    path = folder / "keys.yaml"
    path.write_text(text, encoding="utf-8")
    return RouterConfig(api_keys_file=str(path))


@pytest.mark.parametrize("entry", [SECRET, f"sha256:{DIGEST}"])
def test_a_key_has_its_tenant(tmp_path: Path, entry: str) -> None:
    keys = load_keys(config_of(tmp_path, f'"{entry}": acme\nother-key-1: initech\n'))
    assert keys.required
    assert keys.tenant(SECRET) == "acme"
    assert keys.tenant("other-key-1") == "initech"
    for stranger in ("", "nobody", DIGEST, f"sha256:{DIGEST}", SECRET + " ", "\ud800"):
        with pytest.raises(Unauthenticated) as caught:
            keys.tenant(stranger)
        assert not stranger or stranger not in str(caught.value)


def test_without_a_file_everyone_is_the_default_tenant() -> None:
    keys = load_keys(RouterConfig())
    assert keys is OPEN
    assert (keys.required, keys.tenant(""), keys.tenant("x")) == (False, "default", "default")


@pytest.mark.parametrize("field", ["grpc_host", "http_host"])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "router.example"])
def test_strangers_need_keys(field: str, host: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{field} is not on loopback"):
        load_keys(RouterConfig.model_validate({field: host}))


def test_loopback() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("", "0.0.0.0", "10.0.0.1", "localhost.example"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a mapping of key to tenant, not empty"),
        ("{}", "a mapping of key to tenant, not empty"),
        (f"- {SECRET}", "a mapping of key to tenant"),
        (f"{SECRET}: [a", "valid YAML, each key once"),
        (f"{SECRET}: a\n{SECRET}: b", "valid YAML, each key once.*line 2"),
        (f"{SECRET}: a\n'sha256:{DIGEST}': b", "entry 2: expected a key of one tenant"),
        ("short: a", "entry 1: expected a key of 8 to 512"),
        ("12345678: a", "entry 1: expected a key of 8 to 512"),
        (f"'{SECRET} x': a", "entry 1: expected a key of 8 to 512"),
        ("'sha256:zz': a", "entry 1: expected a key of 8 to 512"),
        (f"{SECRET}: 5", "entry 1: expected a tenant"),
        (f"{SECRET}: a b", "entry 1: expected a tenant"),
        (f"{SECRET}: ", "entry 1: expected a tenant"),
    ],
)
def test_a_wrong_file_is_told_without_its_secrets(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        load_keys(config_of(tmp_path, text))
    assert SECRET not in str(caught.value)
    assert DIGEST not in str(caught.value)


def test_a_missing_file_is_told() -> None:
    with pytest.raises(InvalidRequest, match="api_keys_file: expected a readable file"):
        load_keys(RouterConfig(api_keys_file="/nowhere/keys.yaml"))
