"""The doctor: looks at the machine and at a run folder, says what is wrong, and mends what it can.

Nothing that is damaged is deleted: it goes into the run's folder `damaged/`, and the next search makes it
again.
"""

import importlib.metadata
import os
import platform
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil
import torch

from bench import repair
from bench.cache import cache_folder
from bench.clean import Removal, remove, temporaries
from bench.errors import BenchError, UsageError, one_line
from bench.files import size_text
from bench.lock import locked
from bench.repair import DAMAGED, Damage
from bench.room import existing, free_bytes
from bench.run import Run
from bench.scoring.embed import fingerprint_of, scorer_fingerprint
from bench.shared import RECORD
from bench.sources import find_source

if TYPE_CHECKING:
    from packaging.requirements import Requirement

Level = Literal["ok", "warning", "problem"]
LITTLE = 5e9
"""Bytes of disk below which a search of a real model hardly fits."""
LITTLE_MEMORY = 4e9
PATIENCE = 3.0
"""Seconds to wait for the Hub."""
NETWORKED = {
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "sshfs", "fuse.sshfs", "9p", "afs", "lustre", "glusterfs",
    "fuse.glusterfs", "beegfs", "ceph", "fuse.ceph", "gpfs", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse",
}  # fmt: skip
"""File systems of other machines."""
BUNDLED = {
    "base": "9bc3944859565316dfca8dc5a401ef6978b74fba7c92e41a757b309f94ad910f",
    "scorer": "295b32c2614f0ee31bb00601b1f375573dd625e838ee8c490bf5b152927938c0",
    "judge": "2f3ea39a138cc3fb73305ce8dfc6d342b662c98c1ca9f16bd3e72850b14a4dda",
}
"""Fingerprints of the models in this package."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    level: Level
    found: str
    advice: str = ""
    """What to do; empty if nothing."""
    mend: Callable[[], str] | None = None
    """Does what can be done, and says it; the caller holds the run's lock."""


def examine(folder: Path, run: Path | None = None) -> list[Check]:
    """All checks: of the machine, of the folder that holds the runs, and of a run folder if one is given."""
    checks = [*_machine(), *_packages(), *_disks(folder), *_hub(), *_bundled()]
    if run is None:
        return checks
    try:
        with locked(run, ""):
            return [*checks, Check(name="lock", level="ok", found="no search works on it"), *_run(run)]
    except UsageError:
        found = "a search is working on it: its files change, and were not looked at"
        return [*checks, Check(name="lock", level="warning", found=found, advice="look again when it ends")]


def mend(run: Path) -> list[str]:
    """Mend what can be of a run folder, and say it. Raises UsageError while a search works on it."""
    said: list[str] = []
    with locked(run, "mend it when that has ended"):
        for check in _run(run):
            if check.mend:
                said.append(f"{check.name}: {check.mend()}")
    return said


# The machine


def _machine() -> Iterator[Check]:
    memory = psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check(name="processor", level="ok", found=f"{platform.machine()}, {cores} cores")
    found = f"{size_text(memory.available)} of {size_text(memory.total)} free"
    few = memory.available < LITTLE_MEMORY
    advice = "end what else holds memory, or search with fewer slots" if few else ""
    yield Check(name="memory", level="warning" if few else "ok", found=found, advice=advice)
    yield _gpu()


def _gpu() -> Check:
    if torch.cuda.is_available():
        devices = []
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            devices.append(f"{name}, {size_text(free)} of {size_text(total)} free")
        found = f"{'; '.join(devices)}; torch {torch.__version__} with CUDA {torch.version.cuda}"
        return Check(name="GPU", level="ok", found=found)
    if torch.backends.mps.is_available():
        return Check(name="GPU", level="ok", found=f"Apple's, torch {torch.__version__}")
    if shutil.which("nvidia-smi"):
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        return Check(
            name="GPU",
            level="warning",
            found=f"a driver of NVIDIA is there, but torch {torch.__version__} {built} and sees no GPU",
            advice="install a torch for the driver's CUDA; look at CUDA_VISIBLE_DEVICES and nvidia-smi",
        )
    return Check(name="GPU", level="ok", found=f"none, the processor is used; torch {torch.__version__}")


def _packages() -> Iterator[Check]:
    """Against the lowest versions that bench was tested with."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        about = importlib.metadata.metadata("bench")
        listed = importlib.metadata.requires("bench") or []
    except importlib.metadata.PackageNotFoundError:
        advice = "install it with pip to have its packages looked at"
        yield Check(name="packages", level="warning", found="bench itself is not installed", advice=advice)
        return
    python = platform.python_version()
    fits = python in SpecifierSet(about["Requires-Python"])
    found = python if fits else f"{python}, and bench needs {about['Requires-Python']}"
    advice = "" if fits else "make another virtual environment, with that"
    yield Check(name="Python", level="ok" if fits else "problem", found=found, advice=advice)
    wanted = [Requirement(text) for text in listed]
    wrong = wrong_versions(each for each in wanted if not each.marker or each.marker.evaluate({"extra": ""}))
    found = "; ".join(wrong) or "all are there, as new as is needed"
    advice = "pip install -U those, or bench again with its constraints.txt" if wrong else ""
    yield Check(name="packages", level="problem" if wrong else "ok", found=found, advice=advice)


def wrong_versions(requirements: "Iterable[Requirement]") -> list[str]:
    """Packages that are missing or too old, each in words."""
    wrong = []
    for wanted in requirements:
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            wrong.append(f"{wanted.name} is {version}, needs {wanted.specifier}")
    return wrong


def _disks(folder: Path) -> Iterator[Check]:
    for name, path in (("disk of runs", folder), ("disk of the cache", cache_folder())):
        free, kind = free_bytes(path), file_system(path)
        found = f"{path.absolute()}: {size_text(free)} free, {kind}"
        if kind in NETWORKED and name == "disk of runs":
            yield Check(
                name=name,
                level="warning",
                found=f"{found}: a network file system, where SQLite's locks and the run's lock are not sure",
                advice="keep runs on a local disk, and start one search at a time on a run",
            )
        elif free < LITTLE:
            advice = "bench clean RUN, or a lower BENCH_CACHE_LIMIT, frees some"
            yield Check(name=name, level="warning", found=found, advice=advice)
        else:
            yield Check(name=name, level="ok", found=found)


def file_system(path: Path) -> str:
    """The kind of file system that holds a path, or would."""
    place = existing(path).resolve()
    mounts = {Path(each.mountpoint): each.fstype for each in psutil.disk_partitions(all=True)}
    return next((mounts[parent] for parent in (place, *place.parents) if parent in mounts), "unknown")


def _hub() -> Iterator[Check]:
    from huggingface_hub import constants, get_token

    said = "there is one" if get_token() else "none: needed only to upload, or for gated models"
    yield Check(name="Hub token", level="ok", found=said)
    if constants.HF_HUB_OFFLINE:
        yield Check(name="Hub", level="ok", found="not asked: HF_HUB_OFFLINE is set")
        return
    address = constants.ENDPOINT
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError) as error:
        found = f"{address} cannot be reached: {one_line(error)}"
        advice = "HF_HUB_OFFLINE=1 does without, where all is on this machine; else see to the network"
        yield Check(name="Hub", level="warning", found=found, advice=advice)
        return
    yield Check(name="Hub", level="ok", found=f"{address} answers")


def _bundled() -> Iterator[Check]:
    judge = Path(str(files("bench"))) / "builtin" / "judge"
    given: dict[str, Callable[[], str]] = {
        "base": lambda: find_source("emoji-xl").fingerprint(),
        "scorer": lambda: scorer_fingerprint("bundled"),
        "judge": lambda: fingerprint_of(judge, "config.json", "model.safetensors"),
    }
    wrong = [name for name, fingerprint in given.items() if _fingerprint(fingerprint) != BUNDLED[name]]
    if wrong:
        found = f"not as shipped: {', '.join(wrong)}"
        yield Check(name="bundled models", level="problem", found=found, advice="install bench again")
    else:
        yield Check(name="bundled models", level="ok", found="base, scorer and judge are whole")


def _fingerprint(compute: Callable[[], str]) -> str:
    try:
        return compute()
    except (BenchError, OSError) as error:
        return one_line(error)


# A run


def _run(path: Path) -> Iterator[Check]:
    try:
        run = Run.open(path)
    except BenchError as error:
        advice = "put a copy of it back; without it nothing else can be told"
        yield Check(name="run.json", level="problem", found=str(error), advice=advice)
        return
    found = f"begun {run.metadata.created[:10]} on {run.metadata.device}"
    yield Check(name="run.json", level="ok", found=found)
    # Each may be mended before the next is looked at: the study is made again from files that are whole.
    damaged = repair.damages(run)
    yield _files(run, damaged)
    trouble = repair.trouble_of_study(run)
    yield _study(run, trouble)
    if not trouble and not damaged:
        yield _stale(run)
    yield _leftovers(run)
    yield _winner(run, damaged)


def _study(run: Run, trouble: str | None) -> Check:
    if trouble is None:
        found = "whole" if (run.path / repair.STUDY).exists() else "none in this folder"
        if (run.path / RECORD).exists():
            found = "shared with other machines: its database is not looked at"
        return Check(name="study.db", level="ok", found=found)

    def again() -> str:
        repair.rebuild(run, ())
        return f"set aside into {DAMAGED}/, and made again from the folders of the trials"

    advice = "--fix makes it again from the folders of the trials"
    return Check(name="study.db", level="problem", found=trouble, advice=advice, mend=again)


def _files(run: Run, damaged: Sequence[Damage]) -> Check:
    if not damaged:
        return Check(name="files", level="ok", found="all that is recorded can be read")

    def aside() -> str:
        repair.set_all_aside(run, damaged)
        paths = ", ".join(str(damage.path.relative_to(run.path)) for damage in damaged)
        return f"{paths}: set aside into {DAMAGED}/; the same bench search makes it again"

    found = "; ".join(damage.reason for damage in damaged)
    advice = "--fix sets it aside, so that the same bench search makes it again"
    return Check(name="files", level="problem", found=found, advice=advice, mend=aside)


def _stale(run: Run) -> Check:
    stale = repair.stale(run)
    if not stale:
        return Check(name="trials", level="ok", found=f"{len(run.trials())}, none left running")
    found = f"left running by a search that ended: {', '.join(stale)}"
    advice = "the same bench search goes on with them"
    if not repair.unsettled(run):
        return Check(name="trials", level="warning", found=found, advice=advice)

    def settle() -> str:
        return f"{', '.join(repair.settle(run))}: the study knows how they ended"

    advice = f"{advice}; --fix tells the study of those that have ended"
    return Check(name="trials", level="warning", found=found, advice=advice, mend=settle)


def _leftovers(run: Run) -> Check:
    left = list(temporaries(run.path))
    if not left:
        return Check(name="leftovers", level="ok", found="none")

    def clear() -> str:
        remove([Removal.of_temporary(path) for path in left])
        return f"{len(left)} temporary files removed"

    found = f"{len(left)} temporary files of processes that were killed"
    return Check(
        name="leftovers", level="warning", found=found, advice="--fix or bench clean removes them", mend=clear
    )


def _winner(run: Run, damaged: Sequence[Damage]) -> Check:
    names = ("adapter.safetensors", "training_config.yaml")
    if any(damage.path.name in ("result.json", "winner") for damage in damaged) or run.result() is None:
        return Check(name="winner", level="ok", found="none yet: the search has not ended")
    missing = [f"winner/{name}" for name in names if not (run.path / "winner" / name).exists()]
    if not missing:
        return Check(name="winner", level="ok", found="its adapter and configuration are there")
    found = f"missing: {', '.join(missing)}"
    return Check(name="winner", level="problem", found=found, advice="the same bench search writes it again")
