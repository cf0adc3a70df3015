"""Publish: an exported folder -> a model on the Hub; its name and who sees it are checked first."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bench
from bench.errors import UsageError
from bench.exported import PLACEHOLDER
from bench.hub import check_name, explained, find_token


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """A folder that is, or will be, ready to be sent."""

    folder: Path
    target: str
    private: bool
    is_new: bool
    """Whether the repository has to be made."""
    token: str

    @property
    def files(self) -> list[Path]:
        return [path for path in sorted(self.folder.rglob("*")) if path.is_file()]

    def __str__(self) -> str:
        size = sum(path.stat().st_size for path in self.files) / 1e6
        seen = "private" if self.private else "public"
        repository = f"a new {seen} model" if self.is_new else f"a {seen} model that exists"
        return f"{len(self.files)} files, {size:.1f} MB, to {self.target}, {repository}"

    def created(self) -> "Upload":
        """Make the repository, if it is new. Raises UsageError if the token may not, BenchError."""
        if self.is_new:
            with explained(self.target, self.token):
                _api(self.token).create_repo(self.target, private=self.private)
        return replace(self, is_new=False)

    def send(self) -> str:
        """Upload; returns the address. Raises UsageError if the token is refused, BenchError."""
        from huggingface_hub import CommitOperationAdd

        self.created()
        message = f"Upload with bench {bench.__version__}"
        with explained(self.target, self.token):
            api = _api(self.token)
            added = [CommitOperationAdd(self._name(path), self._content(path)) for path in self.files]
            api.create_commit(self.target, added, commit_message=message)
            return f"{api.endpoint}/{self.target}"

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _content(self, path: Path) -> bytes | Path:
        """The card says where it lies."""
        if self._name(path) != "README.md":
            return path
        return path.read_text(encoding="utf-8").replace(PLACEHOLDER, self.target).encode()


def prepared(folder: Path, target: str, *, private: bool) -> Upload:
    """What would be sent; the folder may be written later.

    Raises UsageError for a name that is none, or if the repository exists and more people see it than asked
    for; MissingError where there is no token; BenchError if the Hub cannot be reached.
    """
    check_name(target)
    token = find_token()
    with explained(target, token):
        is_private = _visibility(target, token)
    if is_private is False and private:
        raise UsageError(f"{target}: exists and is public; give --public to `bench push`, or another name")
    is_new = is_private is None
    return Upload(
        folder=folder,
        target=target,
        private=private if is_private is None else is_private,
        is_new=is_new,
        token=token,
    )


def _visibility(target: str, token: str) -> bool | None:
    """Whether a repository is private; None if there is none."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return bool(_api(token).model_info(target).private)
    except RepositoryNotFoundError as error:
        if error.response.status_code == 401:
            raise
        return None


def _api(token: str) -> Any:
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    return HfApi(token=token)
