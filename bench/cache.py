"""A folder of tensors kept by content: what was computed once from the same inputs is read back.

One file a value, named by the hash of all that decides it. All runs and processes of a machine share the
folder: files are replaced whole, the least recently used go first when it grows over its limit, and a file
that is missing, torn or foreign is computed again. It can be deleted at any time.
"""

import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from pydantic import ByteSize, TypeAdapter, ValidationError

import bench
from bench.errors import UsageError
from bench.files import replacing

Tensors = dict[str, torch.Tensor]

LIMIT = "20GB"
SUFFIX = ".safetensors"
KEY = "inputs"
"""Of a file's metadata: the hash that the file is named by."""
MAX_WAIT = 600
"""Seconds to wait for another process that computes the same."""
ABANDONED = 24 * 3600
"""Seconds after which an unfinished file was left by a process that died."""
PACKAGES = ("diffusers", "transformers", "open_clip_torch", "torch-fidelity", "timm", "numpy", "pillow")
"""That compute what is kept, beside torch, which is known by its build, and `bench` itself."""


def cache_folder() -> Path:
    """`$BENCH_CACHE`, else the user's cache folder."""
    if folder := os.environ.get("BENCH_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bench"


def cache_limit() -> int:
    """Bytes that the folder may hold: `$BENCH_CACHE_LIMIT`, such as 20GB. Raises UsageError."""
    text = (os.environ.get("BENCH_CACHE_LIMIT") or LIMIT).strip()
    try:
        size = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        size = -1
    if size < 0 or (size and text.isdigit()):  # 20 would be bytes, and was hardly meant so
        raise UsageError(f"BENCH_CACHE_LIMIT={text}: allowed is a size such as 500MB or 20GB, or 0 for none")
    return size


def cached(inputs: Sequence[Any], compute: Callable[[], Tensors], device: torch.device) -> Tensors:
    """`compute()`, or what it returned before for the same `inputs`; the tensors are on `device`.

    `inputs` (plain JSON) are a tag with the version of the algorithm and the fingerprints of all that it
    computes from. How `device` rounds and the versions of the libraries are added here. `compute` must not
    call `cached`: two processes could wait for each other. A file that cannot be read or written is computed
    again, or not kept: the cache only saves time. Raises UsageError for a limit that is no size.
    """
    limit, key = cache_limit(), _key(inputs, device)
    file = cache_folder() / f"{key}{SUFFIX}"
    if (known := _read(file, device)) is not None:
        return known
    with _alone(file):
        # Another process may have computed it meanwhile.
        if (known := _read(file, device)) is not None:
            return known
        # Contiguous as those that are read back: convolutions on another layout round otherwise.
        tensors = {name: tensor.contiguous() for name, tensor in compute().items()}
        _write(file, tensors, limit)
    return tensors


def cached_array(
    inputs: Sequence[Any], compute: Callable[[], NDArray[Any]], device: torch.device
) -> NDArray[Any]:
    """`cached` for an array in main memory that `device` computes."""
    computed: list[NDArray[Any]] = []

    def tensors() -> Tensors:
        computed.append(np.ascontiguousarray(compute()))
        return {"array": torch.from_numpy(computed[0])}

    known = cached([*inputs, "array"], tensors, device)["array"]
    return computed[0] if computed else known.cpu().numpy()


# What decides a value beside its inputs


def _key(inputs: Sequence[Any], device: torch.device) -> str:
    everything = {"inputs": inputs, "arithmetic": _arithmetic(device), "versions": _versions()}
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def _arithmetic(device: torch.device) -> list[Any]:
    """All that decides how a device rounds: two kinds of device, or numbers of threads, differ."""
    if device.type == "cuda":
        cublas: Any = torch.backends.cuda.matmul
        cudnn: Any = torch.backends.cudnn
        precisions = [cublas.fp32_precision, cudnn.conv.fp32_precision]
        return [device.type, torch.cuda.get_device_name(device), cudnn.version(), *precisions]
    onednn: Any = torch.backends.mkldnn
    precisions = [onednn.matmul.fp32_precision, onednn.conv.fp32_precision]
    return [device.type, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads(), *precisions]


def _versions() -> list[str]:
    return [bench.__version__, torch.__version__, *(_version(package) for package in PACKAGES)]


@cache
def _version(package: str) -> str:
    return importlib.metadata.version(package)


# Files


def _read(file: Path, device: torch.device) -> Tensors | None:
    """None if it is not there, torn, or not what its name says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as content:
            if (content.metadata() or {}).get(KEY) != file.stem:
                return None
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, RuntimeError):
        return None  # torch's error is a RuntimeError where the file goes between opening and mapping
    with suppress(OSError):
        os.utime(file)  # used now: what was not used for longest goes first
    # A copy lies where the allocator puts it: products of tensors aligned otherwise round otherwise.
    return {name: tensor.to(device, copy=True) for name, tensor in tensors.items()}


def _write(file: Path, tensors: Tensors, limit: int) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if sum(tensor.nbytes for tensor in tensors.values()) > limit:
        return
    with suppress(OSError, SafetensorError):
        with replacing(file) as temporary:
            save_file({name: tensor.cpu() for name, tensor in tensors.items()}, temporary, {KEY: file.stem})
        _evict(file, limit)


def _evict(written: Path, limit: int) -> None:
    """Remove the files that were not used for longest until the rest fits; never `written` itself."""
    found = [(path, stat) for path in written.parent.iterdir() if (stat := _stat(path))]
    kept = [(path, stat) for path, stat in found if path.suffix == SUFFIX]
    size = sum(stat.st_size for _, stat in kept)
    for path, stat in sorted(kept, key=lambda entry: entry[1].st_mtime_ns):
        if size > limit and path != written:
            _remove(path)
            size -= stat.st_size
    for path, stat in found:
        if path.suffix in {".tmp", ".lock"} and time.time() - stat.st_mtime > ABANDONED:
            _remove(path)


def _stat(path: Path) -> os.stat_result | None:
    """None if another process has removed it."""
    try:
        return path.stat()
    except OSError:
        return None


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """While another process computes the same, wait for it; a lock that fails costs only work."""
    lock = FileLock(file.with_suffix(".lock"))
    with suppress(OSError, NotImplementedError):  # a Timeout is an OSError
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=MAX_WAIT)
    try:
        yield
    finally:
        lock.release()
        _remove(file.with_suffix(".lock"))
