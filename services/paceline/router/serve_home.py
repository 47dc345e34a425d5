"""Where a router's Ray lives: a folder of its own, an environment of its own, and somebody who cleans up."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
from types import TracebackType

from paceline.router import serve_janitor

_MAX_FOLDER_CHARS = 40  # Ray puts unix sockets some 60 characters deeper, and their paths end at 107

# All of it is read when ray is imported, or by the processes Ray starts, which inherit it.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_PROMPT_ENABLED": "0",
    # Keeps Ray's own daemons on loopback: without a "cluster", the node's address is 127.0.0.1, on Linux as well.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Serve's replica-to-replica port listens on every interface and unpickles what it gets: it needs a token.
    "RAY_AUTH_MODE": "token",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",  # one event loop per replica: servers and router share it
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "SERVE_SOCKET_REUSE_PORT_ENABLED": "0",
}
_FOREIGN = ("RAY_ADDRESS", "RAY_AUTH_TOKEN_PATH", "RAY_NAMESPACE", "RAY_TMPDIR")  # would lead into somebody else's Ray


class Home:
    """The folder and environment of one Ray instance; on exit, or when this process dies, nothing of it is left."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="pl-", dir=_short(tempfile.gettempdir()))
        command = [sys.executable, "-I", "-S", serve_janitor.__file__, self.folder]
        self._janitor = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603
        self._janitor.wait()  # it goes on in a process of its own
        for name in _FOREIGN:
            os.environ.pop(name, None)
        os.environ.update(_ENVIRONMENT)
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # in the environment, so that none is written to $HOME
        os.environ[serve_janitor.MARK] = self.folder

    def __enter__(self) -> Home:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Have everything swept up; returns when it is."""
        stdin, stdout = self._janitor.stdin, self._janitor.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.close()
        stdout.read()  # ends with the janitor, which is bounded
        stdout.close()


def _short(folder: str) -> str:
    return folder if len(folder) <= _MAX_FOLDER_CHARS else "/tmp"  # noqa: S108 - mkdtemp makes its own in it
