"""Weights from the Hugging Face hub, at one fixed revision. Only `fetch` downloads; never pickles or code."""

import shutil
from pathlib import Path

from retbench.cards import pins
from retbench.cards.hub_errors import translate_hub_errors
from retbench.cards.model import ModelCard, WeightsSource
from retbench.cards.untrusted_fields import check_repository_files
from retbench.cards.user_config import require_disk_space
from retbench.engines import fingerprints, model_folders
from retbench.engines.weights_cache import OnMessage, PreparedWeights
from retbench.errors import DataError, MissingError

# Copies of the weights in other layouts, which would also match the patterns of wanted files.
IGNORED_PATTERNS = ("original/*", "onnx/*", "consolidated*", "*.index.*.json")
NEXT_STEP = "fetch on a machine that reaches huggingface.co and copy its cache here, or give --weights PATH"


def describe_source(weights: WeightsSource) -> str:
    """The source of the weights, in a few words."""
    return f"hub {weights.repo}"


def download_weights(card: ModelCard, weights: WeightsSource, work: Path, on_message: OnMessage) -> PreparedWeights:
    """Download one snapshot into `work`. An interrupted download continues."""
    repo, pin = str(weights.repo), pins.read_pin("models", card.name)
    revision, sizes = _list_files(repo, weights.revision or (pin.revision if pin else None), work)
    folder = work / revision
    require_disk_space(work, sum(sizes.values()))
    on_message(f"fetching {repo} at {revision[:12]}: {len(sizes)} files, {sum(sizes.values()) / 1e6:.0f} MB")
    _download_snapshot(repo, revision, folder)
    for name, size in sizes.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise MissingError(
                f"{name} of {repo} was not downloaded completely", "fetch again: finished files are kept"
            )
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # metadata of the downloader, not needed any more
    model_folders.check_folder(folder)
    fingerprint = fingerprints.compute_folder_fingerprint(folder)
    pins.write_pin("models", card.name, pins.Pin(revision, fingerprint))
    return PreparedWeights(folder, describe_source(weights), fingerprint, revision=revision)


def _list_files(repo: str, revision: str | None, work: Path) -> tuple[str, dict[str, int]]:
    """The resolved revision, and name and size of each file.

    Needed because `snapshot_download` returns an incomplete folder without an error when the hub does not answer.
    `model_info` fails at once then, while the file listing would retry five times.
    """
    with translate_hub_errors(repo, NEXT_STEP):
        from huggingface_hub import HfApi, snapshot_download

        resolved = str(HfApi().model_info(repo, revision=revision).sha)
        files = snapshot_download(
            repo,
            revision=resolved,
            local_dir=work,
            allow_patterns=list(model_folders.WANTED_PATTERNS),
            ignore_patterns=list(IGNORED_PATTERNS),
            dry_run=True,
        )
    check_repository_files(repo, resolved, (file.filename for file in files))
    if not any(file.filename.endswith(".safetensors") for file in files):
        raise DataError(
            f"{repo} has no safetensors, only formats that can run code", "convert it, or use another repository"
        )
    return resolved, {file.filename: file.file_size or 0 for file in files}


def _download_snapshot(repo: str, revision: str, folder: Path) -> None:
    with translate_hub_errors(repo, NEXT_STEP):
        from huggingface_hub import snapshot_download

        snapshot_download(
            repo,
            revision=revision,
            local_dir=folder,
            allow_patterns=list(model_folders.WANTED_PATTERNS),
            ignore_patterns=list(IGNORED_PATTERNS),
        )
