"""A data set, ready for the Hub: what would be sent, and who would see it, is known before anything is."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.dataset import Example, read_contents
from bench.hub import check_name, explained, find_token
from bench.tables import no_bars

SPLIT_NAMES = {"train": "train", "dev": "validation", "test": "test"}
"""What a split is called here -> what it is called there; a data set without splits is all `train`."""
UNTOUCHED = {".gitattributes"}
"""Files of a repository into which nothing was uploaded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetUpload:
    """Pictures and captions, ready to be sent."""

    target: str
    private: bool
    num_bytes: int
    """Of the pictures, as they will be sent."""
    splits: dict[str, tuple[list[Path], list[str]]]
    """Pictures and captions by the name of the split."""
    token: str = field(repr=False)

    @property
    def num_images(self) -> int:
        return sum(len(captions) for _, captions in self.splits.values())

    def send(self) -> str:
        """The address of the new data set.

        Raises UsageError if the token is refused or the name taken, BenchError if the Hub cannot be reached.
        """
        with _quiet(), explained(self.target, self.token):
            self._create()
            self._tables().push_to_hub(self.target, private=self.private, token=self.token)
        return f"{self._api().endpoint}/datasets/{self.target}"

    def _create(self) -> None:
        """A new repository, or one that an upload which broke off has left empty."""
        from huggingface_hub.errors import HfHubHTTPError

        try:
            self._api().create_repo(self.target, repo_type="dataset", private=self.private)
        except HfHubHTTPError as error:
            if error.response.status_code != 409 or not self._is_ours():
                raise

    def _is_ours(self) -> bool:
        info = self._api().dataset_info(self.target)
        files = {file.rfilename for file in info.siblings or ()}
        return info.private == self.private and files <= UNTOUCHED

    def _tables(self) -> Any:
        import datasets

        return datasets.DatasetDict(
            {
                name: datasets.Dataset.from_dict(
                    {"image": [str(file) for file in files], "text": captions},
                    features=datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")}),
                )
                for name, (files, captions) in self.splits.items()
            }
        )

    def _api(self) -> Any:
        from huggingface_hub import HfApi

        return HfApi(token=self.token)


@contextmanager
def prepared(source: str, target: str, *, private: bool) -> Iterator[DatasetUpload]:
    """A checked data set as PNG files, of which nothing was sent yet; they are gone afterwards.

    The pictures are as they would be trained on: upright, in RGB, without what cameras write into a file,
    such as where it was taken. Raises UsageError for a name that is none or data that cannot be used,
    MissingError where there is no token.
    """
    check_name(target)
    token = find_token()
    contents = read_contents(source)
    contents.check()
    with tempfile.TemporaryDirectory() as folder:
        splits = {
            SPLIT_NAMES.get(name, "train"): _files(examples, Path(folder) / name)
            for name, examples in contents.splits.items()
        }
        num_bytes = sum(file.stat().st_size for files, _ in splits.values() for file in files)
        yield DatasetUpload(target=target, private=private, num_bytes=num_bytes, splits=splits, token=token)


def _files(examples: list[Example], folder: Path) -> tuple[list[Path], list[str]]:
    folder.mkdir()
    files = [folder / f"{index:05d}.png" for index in range(len(examples))]
    for example, file in zip(examples, files, strict=True):
        example.image().save(file)
    return files, [example.caption for example in examples]


@contextmanager
def _quiet() -> Iterator[None]:
    """Bars and notes of the libraries are not ours to show."""
    import datasets
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    bars, level = not are_progress_bars_disabled(), datasets.logging.get_verbosity()
    disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        with no_bars():
            yield
    finally:
        datasets.logging.set_verbosity(level)
        if bars:
            enable_progress_bars()
