"""Snapshots of dataset repositories: fetched only when asked, at one revision, every file checked, in one cache folder.

    collections/hub/<repository>/<revision>/        the files as the hub has them
    collections/hub/<repository>/<revision>.json    names, sizes and checksums; written last, so it means complete

A file fetched before an interruption is kept; the next fetch goes on from there.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from retbench.cards import pins
from retbench.cards.hub_errors import translate_hub_errors
from retbench.cards.user_config import cache_folder, encode_path_part, require_disk_space
from retbench.corpora.dataset_source import StatusCallback
from retbench.errors import DataError, MissingError

CODE_PATTERNS = ("*.py", "*.sh", "*.ipynb")  # a dataset is data; what could run is not even fetched
NEXT_STEP = (
    "fetch on a machine that reaches huggingface.co and bring its cache here, or give a folder with --task FOLDER"
)


@dataclass(frozen=True)
class DatasetSnapshot:
    """One repository at the revision that is meant: the card's, else that of the first fetch."""

    repo: str
    pinned_revision: str | None = None

    @property
    def revision(self) -> str | None:
        """The revision, if it is known yet."""
        if self.pinned_revision:
            return self.pinned_revision
        pin = pins.read_pin("datasets", self.repo)
        return pin.revision if pin else None

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return _repo_folder(self.repo) / encode_path_part(self.revision or "unknown")

    def is_fetched(self) -> bool:
        """Whether everything was fetched."""
        return self.revision is not None and _manifest_file(self.folder).exists()

    def fetch(self, say: StatusCallback) -> None:
        """Fetch what is missing; without a network this fails before anything is written."""
        shelf = _repo_folder(self.repo)
        shelf.mkdir(parents=True, exist_ok=True)
        with FileLock(shelf / "lock"):
            if not self.is_fetched():
                self._fetch(shelf, say)

    def _fetch(self, shelf: Path, say: StatusCallback) -> None:
        revision, files = _list_repo_files(self.repo, self.revision)
        total = sum(size for size, _ in files.values())
        require_disk_space(shelf / revision, total)
        say(f"fetching {self.repo} at {revision[:12]}: {len(files)} files, {total / 1e6:,.1f} MB")
        folder = shelf / encode_path_part(revision)
        _download(self.repo, revision, folder, sorted(files))
        for name, (size, checksum) in files.items():
            _verify_file(folder / name, size, checksum, f"{name} of {self.repo}")
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the downloader's own notes
        listed = {name: [size, checksum] for name, (size, checksum) in sorted(files.items())}
        fingerprint = hashlib.sha256(json.dumps(listed).encode()).hexdigest()
        pins.write_pin("datasets", self.repo, pins.Pin(revision, fingerprint))
        _manifest_file(folder).write_text(json.dumps({"files": listed, "fingerprint": fingerprint}, indent=1))


def _repo_folder(repo: str) -> Path:
    return cache_folder() / "collections" / "hub" / encode_path_part(repo)


def _manifest_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def _list_repo_files(repo: str, revision: str | None) -> tuple[str, dict[str, tuple[int, str]]]:
    """The resolved revision, and of every data file its size and checksum as the hub states them."""
    with translate_hub_errors(repo, NEXT_STEP, "datasets/"):
        from huggingface_hub import HfApi

        facts = HfApi().dataset_info(repo, revision=revision, files_metadata=True)
    files = {file.rfilename: file for file in facts.siblings or () if not _is_code(file.rfilename)}
    return str(facts.sha), {name: (file.size or 0, _read_checksum(file)) for name, file in files.items()}


def _is_code(name: str) -> bool:
    return any(Path(name).match(pattern) for pattern in CODE_PATTERNS)


def _read_checksum(file: Any) -> str:
    """Large files carry their SHA-256, small ones the name git gives their content."""
    return f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}"


def _download(repo: str, revision: str, folder: Path, names: list[str]) -> None:
    with translate_hub_errors(repo, NEXT_STEP, "datasets/"):
        from huggingface_hub import snapshot_download

        snapshot_download(
            repo, repo_type="dataset", revision=revision, local_dir=folder, ignore_patterns=list(CODE_PATTERNS)
        )
    lost = next((name for name in names if not (folder / name).is_file()), None)
    if lost:
        raise MissingError(f"{lost} of {repo} did not arrive", "fetch again: what came is kept")


def _verify_file(file: Path, size: int, checksum: str, what: str) -> None:
    """A file that is not what the hub says is removed, so that the next fetch brings it anew."""
    kind, _, wanted = checksum.partition(":")
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(usedforsecurity=False)
    if kind == "git":
        digest.update(b"blob %d\0" % file.stat().st_size)
    with file.open("rb") as content:
        while piece := content.read(1 << 20):
            digest.update(piece)
    if file.stat().st_size != size or digest.hexdigest() != wanted:
        found = f"{file.stat().st_size:,} bytes, {kind} {digest.hexdigest()[:16]}"
        file.unlink()
        raise DataError(f"{what} is {found}; the hub says {size:,} bytes, {wanted[:16]}", "fetch again")
