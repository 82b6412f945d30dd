"""One file of a hub dataset repository, verified by the checksum that the hub lists; the others are not fetched."""

from dataclasses import dataclass
from pathlib import Path

from retbench.cards import pins
from retbench.corpora.dataset_source import StatusCallback
from retbench.corpora.hub_snapshots import (
    NEXT_STEP,
    DatasetSnapshot,
    compute_listing_fingerprint,
    get_repo_folder,
    list_repo_files,
    verify_file,
)
from retbench.errors import MissingError
from retbench.system.durable_files import move_into_place
from retbench.system.file_locks import hold_lock
from retbench.system.hub_errors import translate_hub_errors
from retbench.system.user_config import encode_path_part, require_disk_space


@dataclass(frozen=True)
class HubFile:
    """A file at the card's revision, else at the revision of the first fetch from its repository."""

    repo: str
    name: str  # with its folders in the repository
    pinned_revision: str | None = None

    @property
    def revision(self) -> str | None:
        """The revision; None before the first fetch."""
        return DatasetSnapshot(self.repo, self.pinned_revision).revision

    @property
    def file(self) -> Path:
        """The file in the cache, once it is complete."""
        folder = get_repo_folder(self.repo) / f"{encode_path_part(self.revision or 'unknown')}.files"
        return folder / encode_path_part(self.name)

    def is_fetched(self) -> bool:
        """Whether it was fetched and verified."""
        return self.revision is not None and self.file.exists()

    def fetch(self, log_status: StatusCallback) -> None:
        """Fetch and verify it; the first fetch pins the revision."""
        folder = get_repo_folder(self.repo)
        folder.mkdir(parents=True, exist_ok=True)
        with hold_lock(folder / "lock"):
            if self.is_fetched():
                return
            revision, files = list_repo_files(self.repo, self.revision)
            if self.name not in files:
                raise MissingError(f"{self.repo} has no file {self.name}", "check `member` in the task's card")
            size, checksum = files[self.name]
            require_disk_space(folder / revision, size)
            log_status(f"fetching {self.name} of {self.repo} at {revision[:12]}: {size / 1e6:,.1f} MB")
            partial = folder / f"{encode_path_part(revision)}.partial"
            _download(self.repo, revision, self.name, partial)
            verify_file(partial / self.name, size, checksum, f"{self.name} of {self.repo}")
            if not self.pinned_revision:
                pins.write_pin("datasets", self.repo, pins.Pin(revision, compute_listing_fingerprint(files)))
            file = HubFile(self.repo, self.name, revision).file
            file.parent.mkdir(parents=True, exist_ok=True)
            move_into_place(partial / self.name, file)


def _download(repo: str, revision: str, name: str, folder: Path) -> None:
    with translate_hub_errors(repo, NEXT_STEP, "datasets/"):
        from huggingface_hub import hf_hub_download

        hf_hub_download(repo, name, repo_type="dataset", revision=revision, local_dir=folder)
    if not (folder / name).is_file():
        raise MissingError(f"{name} of {repo} was not downloaded", "fetch again")
