"""File systems: whether a folder is on a disk of this machine, or comes over a network."""

from collections.abc import Callable, Iterable
from pathlib import Path

from bench.errors import UsageError

NETWORK = {"nfs", "nfs3", "nfs4", "cifs", "smb2", "smb3", "smbfs", "afs", "afpfs", "webdav", "ncpfs", "9p"}
NETWORK |= {"ceph", "glusterfs", "lustre", "beegfs", "gpfs", "davfs", "sshfs", "s3fs", "gcsfuse", "rclone"}
"""Types that come over a network, also as `fuse.TYPE`."""


def network_kind(path: Path, mounts: Iterable[tuple[str, str]] | None = None) -> str | None:
    """The type of the network file system that `path` is on, or would be; None on a disk of this machine.

    `mounts`: where file systems are mounted, and their types; those of this machine if left out.
    """
    whole = path.absolute().resolve()
    found = [(Path(point), kind) for point, kind in (_mounts() if mounts is None else mounts)]
    over = [(len(point.parts), kind) for point, kind in found if whole.is_relative_to(point)]
    # Of two on one folder the later hides the earlier.
    kind = max(reversed(over), key=lambda of_depth: of_depth[0], default=(0, ""))[1]
    return kind if kind.lower().removeprefix("fuse.").split(".")[0] in NETWORK else None


def _mounts() -> list[tuple[str, str]]:
    import psutil

    return [(part.mountpoint, part.fstype) for part in psutil.disk_partitions(all=True)]


def refuse_network(
    file: Path,
    say: Callable[[str], None],
    *,
    force: bool,
    mounts: Iterable[tuple[str, str]] | None = None,
) -> None:
    """An SQLite database is not kept where its locks may not hold; raises UsageError, or warns by `force`."""
    kind = network_kind(file, mounts)
    if kind is None:
        return
    reason = f"{file}: is on {kind}, a network file system, where SQLite's locks may not hold"
    if not force:
        raise UsageError(
            f"{reason}; search in a folder of a local disk, give --storage with a server's URL, or --force"
        )
    say(f"Warning: {reason}: run one search at a time on it, and keep a copy.")
