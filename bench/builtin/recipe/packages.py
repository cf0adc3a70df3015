"""The pinned npm packages that the pictures and their names come from, and how they are fetched."""

import hashlib
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """One version of one npm package; `sha256` is the digest of its tarball."""

    name: str
    version: str
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One vendor's pictures: where they are, on which terms, and what the project does with them.

    A `base` set trains the base model; a `target` set is a style that a LoRA has to learn.
    `licence` is the licence of the drawings, which is not always the one that the package states.
    """

    name: str
    package: Package
    licence: str
    style: str
    role: Literal["base", "target"]
    num_kept: int


CLDR = Package(
    name="emojibase-data",
    version="17.0.0",
    sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
)

# Lists which glyphs are Microsoft's own. Its pictures are never used: they are near copies of fluent-3d,
# so a base model that had seen them would already know that target.
FLUENT_COLOR = Package(
    name="@iconify-json/fluent-emoji",
    version="1.2.7",
    sha256="8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
)

SOURCES = (
    Source(
        name="noto",
        package=Package(
            name="@iconify-json/noto",
            version="1.2.9",
            sha256="3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        ),
        licence="Apache-2.0",
        style="noto style",
        role="base",
        num_kept=1628,
    ),
    Source(
        name="twemoji",
        package=Package(
            name="@iconify-json/twemoji",
            version="1.2.5",
            sha256="19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        ),
        licence="CC-BY-4.0",
        style="twemoji style",
        role="base",
        num_kept=1623,
    ),
    Source(
        name="fluent-flat",
        package=Package(
            name="@iconify-json/fluent-emoji-flat",
            version="1.2.6",
            sha256="7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        ),
        licence="MIT",
        style="fluent flat style",
        role="base",
        num_kept=1586,
    ),
    Source(
        name="emojione",
        package=Package(
            name="@iconify-json/emojione",
            version="1.2.3",
            sha256="26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
        ),
        licence="CC-BY-4.0",
        style="emojione style",
        role="base",
        num_kept=1103,
    ),
    Source(
        name="fxemoji",
        package=Package(
            name="@iconify-json/fxemoji",
            version="1.2.2",
            sha256="f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef",
        ),
        # The package says Apache-2.0, which upstream grants for the code only: the drawings are CC BY 4.0.
        licence="CC-BY-4.0",
        style="fxemoji style",
        role="base",
        num_kept=831,
    ),
    Source(
        name="fluent-3d",
        package=Package(
            name="@lobehub/fluent-emoji-3d",
            version="1.1.0",
            sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        ),
        licence="MIT",
        style="glossy 3d style",
        role="target",
        num_kept=1561,
    ),
    Source(
        name="streamline",
        package=Package(
            name="@iconify-json/streamline-emojis",
            version="1.2.4",
            sha256="5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc",
        ),
        licence="CC-BY-4.0",
        style="outline cartoon style",
        role="target",
        num_kept=693,
    ),
)


def all_packages() -> Iterator[Package]:
    """Every package that the recipe reads."""
    yield CLDR
    yield FLUENT_COLOR
    for source in SOURCES:
        yield source.package


def unpacked(package: Package, cache: Path) -> Path:
    """The folder of the package's files under `cache`; what is not there yet is fetched and unpacked."""
    stem = f"{package.name.removeprefix('@').replace('/', '-')}-{package.version}"
    folder = cache / stem
    if not folder.is_dir():
        tarball = cache / f"{stem}.tgz"
        if not tarball.is_file():
            _fetch(package, cache)
        _check(package, tarball)
        partial = cache / f"{stem}.partial"
        with tarfile.open(tarball) as archive:
            archive.extractall(partial, filter="data")
        partial.rename(folder)
    return folder / "package"


def _fetch(package: Package, cache: Path) -> None:
    """Leave the package's tarball in `cache`, by the npm client as the user has set it up."""
    cache.mkdir(parents=True, exist_ok=True)
    subprocess.run(["npm", "pack", "--silent", f"{package.name}@{package.version}"], cwd=cache, check=True)


def _check(package: Package, tarball: Path) -> None:
    digest = hashlib.sha256(tarball.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise ValueError(f"{tarball.name}: expected SHA-256 {package.sha256}, got {digest}")
