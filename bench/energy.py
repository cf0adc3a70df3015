"""Energy that devices have used, where the machine counts it: NVIDIA GPUs, and Intel and AMD processors.

Sources: nvmlDeviceGetTotalEnergyConsumption of NVIDIA's management library (millijoules since its driver was
loaded, Volta and later), and the powercap interface of Linux (microjoules, which begin again at a limit).
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

POWERCAP = Path("/sys/class/powercap")


class Counter(NamedTuple):
    """One device's count, in joules; it begins again at `limit`, if there is one."""

    read: Callable[[], float | None]
    """None where it cannot be read."""
    limit: float | None = None


class Cost(NamedTuple):
    """What a search has taken, resumed parts added up."""

    seconds: float = 0.0
    """Wall-clock."""
    device_seconds: float = 0.0
    """The same, times the devices that were held."""
    joules: float | None = 0.0
    """That the devices used; None where any part was not counted."""

    def plus(self, other: "Cost") -> "Cost":
        joules = None if self.joules is None or other.joules is None else self.joules + other.joules
        return Cost(self.seconds + other.seconds, self.device_seconds + other.device_seconds, joules)


class Meter:
    """What counters have counted since it was made; None in sum where there is none."""

    def __init__(self, counters: Sequence[Counter]) -> None:
        self._counters = counters
        self._last = [counter.read() for counter in counters]
        self._sum: float | None = 0.0 if counters else None

    def joules(self) -> float | None:
        """To be asked at least once in each round of a counter that begins again: some tens of minutes."""
        for index, counter in enumerate(self._counters):
            last, now = self._last[index], counter.read()
            if self._sum is None or last is None or now is None:
                self._sum = None  # and stays so: what was missed is not known
                break
            passed = now - last
            self._sum += passed if passed >= 0 or counter.limit is None else passed + counter.limit
            self._last[index] = now
        return self._sum


def counters(device: str, number: int = 1) -> list[Counter]:
    """Of the first `number` GPUs that can be seen for "cuda", of the processors for "cpu"."""
    if device == "cuda":
        return _gpus(number)
    return _processors(POWERCAP) if device == "cpu" else []


def _processors(folder: Path) -> list[Counter]:
    """Whole packages that this user may read."""
    found = []
    for package in sorted(folder.glob("intel-rapl:[0-9]*")):
        if package.name.count(":") > 1:
            continue  # a part of one
        try:
            limit = int((package / "max_energy_range_uj").read_text()) / 1e6
            (package / "energy_uj").read_text()
        except (OSError, ValueError):
            continue
        found.append(Counter(partial(_microjoules, package / "energy_uj"), limit))
    return found


def _microjoules(file: Path) -> float | None:
    try:
        return int(file.read_text()) / 1e6
    except (OSError, ValueError):
        return None


def _gpus(number: int) -> list[Counter]:
    """None where it is not sure which ones CUDA means: it sorts by speed, the library by place."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        library.nvmlDeviceGetTotalEnergyConsumption  # noqa: B018  # which an old one lacks
    except (OSError, AttributeError):
        return []
    count = ctypes.c_uint()
    if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return []
    handles = [ctypes.c_void_p() for _ in range(count.value)]
    for index, handle in enumerate(handles):
        library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(len(handles))))).split(",")
    if not all(place.isdecimal() and int(place) < len(handles) for place in visible[:number]):
        return []
    if number < len(handles) and len({_name(library, handle) for handle in handles}) > 1:
        return []
    chosen = [handles[int(place)] for place in visible[:number]]
    if not all(_joules(library, handle) for handle in chosen):
        return []
    return [Counter(partial(_joules, library, handle)) for handle in chosen]


def _name(library: ctypes.CDLL, handle: ctypes.c_void_p) -> bytes:
    text = ctypes.create_string_buffer(96)
    library.nvmlDeviceGetName(handle, text, len(text))
    return text.value


def _joules(library: ctypes.CDLL, handle: ctypes.c_void_p) -> float | None:
    """None where the GPU does not count."""
    value = ctypes.c_ulonglong()
    failed = library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value))
    return None if failed else value.value / 1e3
