"""Snapshots of hub dataset repositories in the cache: one revision each, with every file verified.

    collections/hub/<repository>/<revision>/        the files of the repository
    collections/hub/<repository>/<revision>.json    names, sizes and checksums; written last

After an interruption the next fetch continues with the missing files.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retbench.cards import pins
from retbench.cards.untrusted_fields import check_repository_files
from retbench.corpora.dataset_source import StatusCallback
from retbench.errors import DataError, MissingError
from retbench.system.durable_files import flush_to_disk, write_file_atomically
from retbench.system.file_locks import hold_lock
from retbench.system.hub_errors import translate_hub_errors
from retbench.system.user_config import encode_path_part, get_cache_folder, require_disk_space

CODE_PATTERNS = ("*.py", "*.sh", "*.ipynb")  # code in a dataset repository is never fetched
NEXT_STEP = (
    "fetch on a machine with access to huggingface.co and copy its cache here, or give a folder with --task FOLDER"
)


@dataclass(frozen=True)
class DatasetSnapshot:
    """One repository at the card's revision, else at the revision of the first fetch."""

    repo: str
    pinned_revision: str | None = None

    @property
    def revision(self) -> str | None:
        """The revision; None before the first fetch."""
        if self.pinned_revision:
            return self.pinned_revision
        pin = pins.read_pin("datasets", self.repo)
        return pin.revision if pin else None

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        return get_repo_folder(self.repo) / encode_path_part(self.revision or "unknown")

    def is_fetched(self) -> bool:
        """Whether all files were fetched."""
        return self.revision is not None and _get_manifest_file(self.folder).exists()

    def fetch(self, log_status: StatusCallback) -> None:
        """Fetch the missing files; without a network this fails before anything is written."""
        repo_folder = get_repo_folder(self.repo)
        repo_folder.mkdir(parents=True, exist_ok=True)
        with hold_lock(repo_folder / "lock"):
            if not self.is_fetched():
                self._fetch(repo_folder, log_status)

    def _fetch(self, repo_folder: Path, log_status: StatusCallback) -> None:
        revision, files = list_repo_files(self.repo, self.revision)
        total = sum(size for size, _ in files.values())
        require_disk_space(repo_folder / revision, total)
        log_status(f"fetching {self.repo} at {revision[:12]}: {len(files)} files, {total / 1e6:,.1f} MB")
        folder = repo_folder / encode_path_part(revision)
        _download(self.repo, revision, folder, sorted(files))
        for name, (size, checksum) in files.items():
            verify_file(folder / name, size, checksum, f"{name} of {self.repo}")
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the downloader's metadata
        flush_to_disk(folder)
        fingerprint = compute_listing_fingerprint(files)
        pins.write_pin("datasets", self.repo, pins.Pin(revision, fingerprint))
        manifest = {"files": dict(sorted(files.items())), "fingerprint": fingerprint}
        write_file_atomically(_get_manifest_file(folder), json.dumps(manifest, indent=1).encode())


def get_repo_folder(repo: str) -> Path:
    """Return the folder of a repository in the cache."""
    return get_cache_folder() / "collections" / "hub" / encode_path_part(repo)


def _get_manifest_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def list_repo_files(repo: str, revision: str | None) -> tuple[str, dict[str, tuple[int, str]]]:
    """Return the resolved revision, and the size and checksum of every data file as listed by the hub."""
    with translate_hub_errors(repo, NEXT_STEP, "datasets/"):
        from huggingface_hub import HfApi

        facts = HfApi().dataset_info(repo, revision=revision, files_metadata=True)
    files = {file.rfilename: file for file in facts.siblings or () if not _is_code(file.rfilename)}
    check_repository_files(repo, str(facts.sha), files)
    return str(facts.sha), {name: (file.size or 0, _read_checksum(file)) for name, file in files.items()}


def compute_listing_fingerprint(files: dict[str, tuple[int, str]]) -> str:
    """Hash what the hub lists for a revision: the same for a whole snapshot and for one file of it."""
    return hashlib.sha256(json.dumps(dict(sorted(files.items()))).encode()).hexdigest()


def _is_code(name: str) -> bool:
    return any(Path(name).match(pattern) for pattern in CODE_PATTERNS)


def _read_checksum(file: Any) -> str:
    """Return the SHA-256 of a large file, the git blob id of a small one."""
    return f"sha256:{file.lfs.sha256}" if file.lfs else f"git:{file.blob_id}"


def _download(repo: str, revision: str, folder: Path, names: list[str]) -> None:
    with translate_hub_errors(repo, NEXT_STEP, "datasets/"):
        from huggingface_hub import snapshot_download

        snapshot_download(
            repo, repo_type="dataset", revision=revision, local_dir=folder, ignore_patterns=list(CODE_PATTERNS)
        )
    missing = next((name for name in names if not (folder / name).is_file()), None)
    if missing:
        raise MissingError(f"{missing} of {repo} was not downloaded", "fetch again: finished files are kept")


def verify_file(file: Path, size: int, checksum: str, what: str) -> None:
    """Check a file's size and checksum; a wrong file is removed, so that the next fetch downloads it again."""
    kind, _, expected = checksum.partition(":")
    digest = hashlib.sha256() if kind == "sha256" else hashlib.sha1(usedforsecurity=False)
    if kind == "git":
        digest.update(b"blob %d\0" % file.stat().st_size)
    with file.open("rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    if file.stat().st_size != size or digest.hexdigest() != expected:
        actual = f"{file.stat().st_size:,} bytes, {kind} {digest.hexdigest()[:16]}"
        file.unlink()
        raise DataError(f"{what} is {actual}; the hub lists {size:,} bytes, {expected[:16]}", "fetch again")
