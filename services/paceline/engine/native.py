"""The engine's own kernels: a few C++ files, built once per machine, called with the addresses of tensors.

They exist for float32 and bfloat16 on processors with AVX-512. Wherever they are missing (no compiler, another
processor, ``PACELINE_NATIVE=0``) the engine runs on torch alone, slower; which of the two fixes the bits, so it is part
of the numerics class.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from paceline.engine import models
from paceline.engine.machine import processor
from paceline.speculation.errors import Unavailable

_SOURCES = Path(__file__).parent / "kernels"
# No contraction and no reassociation: what is computed must be what is written, in that order.
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fopenmp", "-shared", "-fPIC")
_NEEDED = {
    torch.float32: frozenset({"avx512f", "avx512bw", "avx512vl"}),
    torch.bfloat16: frozenset({"avx512f", "avx512bw", "avx512vl", "avx512_bf16"}),
}
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
MAX_KEY_DIM = 1024  # room the kernels have for one rotated key


class LayerArguments(ctypes.Structure):
    """``Layer`` of attention.cpp."""

    _fields_ = [
        ("keys", ctypes.c_void_p), ("values", ctypes.c_void_p),
        ("heads", ctypes.c_long), ("kv_heads", ctypes.c_long), ("key_dim", ctypes.c_long),
        ("value_dim", ctypes.c_long), ("window", ctypes.c_long),
        ("scaling", ctypes.c_double), ("softcap", ctypes.c_double),
        ("query_norm", ctypes.c_void_p), ("key_norm", ctypes.c_void_p), ("eps", ctypes.c_double),
        ("whole", ctypes.c_long),
    ]  # fmt: skip


class LinearArguments(ctypes.Structure):
    """``Linear`` of kernels.h."""

    _fields_ = [
        ("weights", ctypes.c_void_p), ("scales", ctypes.c_void_p), ("bias", ctypes.c_void_p),
        ("bits", ctypes.c_long), ("group", ctypes.c_long),
    ]  # fmt: skip


class DecoderArguments(ctypes.Structure):
    """``Decoder`` of layers.cpp."""

    _fields_ = [
        ("attention", LayerArguments),
        ("inward", LinearArguments), ("outward", LinearArguments),
        ("widen", LinearArguments), ("narrow", LinearArguments),
        ("norms", ctypes.c_void_p * 2), ("eps", ctypes.c_double * 2),
        ("width", ctypes.c_long), ("inner", ctypes.c_long),
    ]  # fmt: skip


class InjectedArguments(ctypes.Structure):
    """``Injected`` of layers.cpp."""

    _fields_ = [("attention", LayerArguments), ("inward", LinearArguments)]


class StepArguments(ctypes.Structure):
    """``Step`` of attention.cpp."""

    _fields_ = [
        ("tiles", ctypes.c_void_p), ("pages", ctypes.c_void_p), ("count", ctypes.c_long), ("threads", ctypes.c_long),
    ]  # fmt: skip


class InputArguments(ctypes.Structure):
    """``Inputs`` of attention.cpp."""

    _fields_ = [
        ("query", ctypes.c_void_p), ("key", ctypes.c_void_p), ("value", ctypes.c_void_p),
        ("query_row", ctypes.c_long), ("query_head", ctypes.c_long), ("key_row", ctypes.c_long),
        ("key_head", ctypes.c_long), ("value_row", ctypes.c_long), ("value_head", ctypes.c_long),
        ("cos", ctypes.c_void_p), ("sin", ctypes.c_void_p), ("rotated", ctypes.c_void_p), ("out", ctypes.c_void_p),
    ]  # fmt: skip


class Kernels:
    """The kernels of one dtype. Tensors handed to them are contiguous unless said otherwise, and of that dtype."""

    def __init__(self, library: ctypes.CDLL, identity: str, dtype: torch.dtype) -> None:
        self.identity = identity  # of the source and its flags: equal identities compute the same bits
        self.dtype = dtype
        name = _NAMES[dtype]
        pointer, long, double = ctypes.c_void_p, ctypes.c_long, ctypes.c_double
        self._norm = _function(library, f"norm_{name}", pointer, pointer, double, pointer, long, long, long)
        self._gate = _function(library, f"gate_{name}", pointer, pointer, long, long, long)
        self._draw = _function(library, f"draw_{name}", *[pointer] * 4, *[long] * 3)
        self.attend = _function(library, f"attend_{name}", pointer, pointer, pointer)
        self._product = None
        self.layers = self.inject = None
        if dtype == torch.bfloat16:
            self._product = _function(library, "product", *[pointer] * 4, *[long] * 4)
            self.layers = _function(library, "layers", pointer, long, *[pointer] * 5, long)
            self.inject = _function(library, "inject", pointer, long, *[pointer] * 5, long, long)

    @property
    def has_products(self) -> bool:
        """Whether there are products at all."""
        return self._product is not None

    @property
    def multiplies(self) -> bool:
        """Whether a target's products should be these. Processors with matrix units (AMX) are better served by oneDNN,
        as far as there are many rows."""
        return self.has_products and "amx_bf16" not in processor().flags

    @property
    def multiplies_integers(self) -> bool:
        """Whether there are products of quantised weights, which those of oneDNN are not."""
        return self.has_products and "avx512vbmi" in processor().flags

    def product(self, rows: Tensor, linear: LinearArguments, residual: Tensor | None, out: Tensor) -> None:
        """out = residual + (rows · weightsᵀ + bias). rows: [N, k]; linear: of packed weights; out: [N, n]."""
        assert self._product is not None
        assert rows.is_contiguous(), rows.stride()
        self._product(
            rows.data_ptr(), ctypes.addressof(linear), None if residual is None else residual.data_ptr(),
            out.data_ptr(), rows.shape[0], rows.shape[1], out.shape[1], torch.get_num_threads(),
        )  # fmt: skip

    def norm(self, rows: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Llama's RMSNorm of rows [N, width]."""
        out = torch.empty_like(rows)
        self._norm(
            rows.data_ptr(), weight.data_ptr(), eps, out.data_ptr(), rows.shape[0], rows.shape[1],
            torch.get_num_threads(),
        )  # fmt: skip
        return out

    def gate(self, both: Tensor) -> Tensor:
        """silu(gate) · up, of rows [N, 2 * width] that hold gates, then ups → [N, width]."""
        rows, width = both.shape[0], both.shape[1] // 2
        out = both.new_empty(rows, width)
        self._gate(both.data_ptr(), out.data_ptr(), rows, width, torch.get_num_threads())
        return out

    def draw(self, logits: Tensor, places: Tensor, options: Tensor) -> Tensor:
        """Tokens of rows: logits [R, V]; places int64 and options float64 [R, 4], see draw.cpp → int64 [R]."""
        rows, vocab = logits.shape
        assert logits.is_contiguous(), logits.stride()
        tokens = torch.empty(rows, dtype=torch.int64)
        self._draw(
            logits.data_ptr(), places.data_ptr(), options.data_ptr(), tokens.data_ptr(), rows, vocab,
            torch.get_num_threads(),
        )  # fmt: skip
        return tokens


def kernels(dtype: torch.dtype, device: torch.device) -> Kernels | None:
    """The kernels for a dtype; None where the engine has to do without."""
    if device.type != "cpu" or os.environ.get("PACELINE_NATIVE", "1") == "0":
        return None
    if dtype not in _NEEDED or not _NEEDED[dtype] <= processor().flags:
        return None
    loaded = library()
    return None if loaded is None else Kernels(*loaded, dtype)


@lru_cache(maxsize=1)
def library() -> tuple[ctypes.CDLL, str] | None:
    """The library and its identity, built first if need be."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None or {path.name for path in _openmp()} != {"libgomp.so.1"}:
        return None  # a second OpenMP runtime in the process would fight torch's for the processors
    sources = sorted(_SOURCES.iterdir())
    digest = hashlib.sha256("\0".join(_FLAGS).encode())
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    identity = digest.hexdigest()[:16]
    digest.update(" ".join([processor().model, *sorted(processor().flags)]).encode())  # -march=native goes by both
    command = [compiler, *_FLAGS, *(str(source) for source in sources if source.suffix == ".cpp")]

    def build(staging: Path) -> Path:
        target = staging / "built"
        target.mkdir()
        models.run_tool([*command, "-o", str(target / "kernels.so")], "cannot build the native kernels")
        return target

    try:
        folder = models.built(models.cache_root() / f"native-{digest.hexdigest()[:16]}", build, lambda line: None)
        library = ctypes.CDLL(str(folder / "kernels.so"))
    except (Unavailable, OSError):
        return None
    return (library, identity) if len(set(_openmp())) == 1 else None


def _openmp() -> Iterator[Path]:
    """The OpenMP runtimes in this process."""
    maps = Path("/proc/self/maps")
    for line in maps.read_text().splitlines() if maps.is_file() else []:
        path = Path(line.split(maxsplit=5)[-1])
        if path.name.startswith(("libgomp", "libomp", "libiomp")):
            yield path


def _function(library: ctypes.CDLL, name: str, *types: type) -> ctypes._NamedFuncPointer:
    function: ctypes._NamedFuncPointer = library[f"paceline_{name}"]
    function.argtypes = types
    function.restype = None
    return function
