"""Who calls: API key -> tenant.

The keys file is YAML, one entry per key. A key stands there as it is, or as its SHA-256, so that the file need not
hold secrets:

    pk-live-1234: acme
    sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08: initech
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from paceline.runtime.config import RouterConfig
from paceline.speculation.errors import InvalidRequest, Unauthenticated

DEFAULT_TENANT = "default"
MAX_KEYS = 100_000
_KEY = re.compile(r"[\x21-\x7e]{8,512}")  # what fits in a header
_HASHED = re.compile(r"sha256:([0-9a-f]{64})")
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Keys:
    """The API keys known, by digest. With None, everyone is the default tenant."""

    def __init__(self, tenants: Mapping[str, str] | None) -> None:
        # Looked up by digest: how long a dictionary takes says nothing about a key nobody knows.
        self._tenants = tenants

    @property
    def required(self) -> bool:
        """Whether a call without a key is refused."""
        return self._tenants is not None

    def tenant(self, key: str) -> str:
        """The tenant of a key.

        Raises:
            Unauthenticated: keys are required, and this is none or one nobody knows.
        """
        if self._tenants is None:
            return DEFAULT_TENANT
        if not key:
            raise Unauthenticated("an API key is required: send 'authorization: Bearer KEY'")
        tenant = self._tenants.get(_digest(key))
        if tenant is None:
            raise Unauthenticated("the API key is not known")
        return tenant


OPEN = Keys(None)


def load_keys(config: RouterConfig) -> Keys:
    """The keys of a router's configuration.

    Raises:
        InvalidRequest: the file is missing, broken or empty; or there is none, and strangers could reach the router.
    """
    if config.api_keys_file:
        return Keys(_parse(_read(config.api_keys_file), config.api_keys_file))
    for field in ("grpc_host", "http_host"):
        host = getattr(config, field)
        if not is_loopback(host):
            raise InvalidRequest(
                "api_keys_file",
                expected=f"a file of API keys, as {field} is not on loopback",
                got="",
                hint=f"{field}={host}",
            )
    return OPEN


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _read(path: str) -> dict[Any, Any]:
    try:
        pairs = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest("api_keys_file", expected="a readable file", got=path, hint=str(error)) from error
    except yaml.YAMLError as error:  # its text quotes the file, which holds secrets: tell the place only
        mark = getattr(error, "problem_mark", None)
        hint = f"line {mark.line + 1}" if mark else ""
        raise InvalidRequest("api_keys_file", expected="valid YAML, each key once", got=path, hint=hint) from None
    if not isinstance(pairs, dict) or not pairs:
        raise InvalidRequest("api_keys_file", expected="a mapping of key to tenant, not empty", got=path)
    return pairs


class _UniqueKeys(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice: the second tenant would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.constructor.ConstructorError(problem="a key twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _parse(pairs: Mapping[Any, Any], path: str) -> dict[str, str]:
    """Tenants by digest. Errors count entries and never quote a key."""
    if len(pairs) > MAX_KEYS:
        raise InvalidRequest("api_keys_file", expected=f"at most {MAX_KEYS} keys", got=len(pairs), hint=f"in {path}")
    tenants: dict[str, str] = {}
    for number, (key, tenant) in enumerate(pairs.items(), start=1):
        where = f"api_keys_file, entry {number}"
        if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant):
            expected = "a tenant of at most 64 letters, digits and . _ -"
            raise InvalidRequest(where, expected=expected, got=tenant, hint=f"in {path}")
        digest = _digest_of(key)
        if digest is None:
            expected = "a key of 8 to 512 printable characters, or sha256: and 64 hexadecimal digits"
            raise InvalidRequest(where, expected=expected, got=f"the key of {tenant}", hint=f"in {path}")
        if tenants.setdefault(digest, tenant) != tenant:
            raise InvalidRequest(where, expected="a key of one tenant", got="a key given before", hint=f"in {path}")
    return tenants


def _digest_of(key: object) -> str | None:
    if not isinstance(key, str):
        return None
    hashed = _HASHED.fullmatch(key)
    if hashed:
        return hashed.group(1)
    return _digest(key) if _KEY.fullmatch(key) and not key.startswith("sha256:") else None
