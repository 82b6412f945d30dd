"""Weights from the Hugging Face hub: fetched only when asked, at one resolved revision, never a pickle, never code."""

import shutil
from pathlib import Path

from retbench.cards import pins
from retbench.cards.hub_errors import translate_hub_errors
from retbench.cards.model import ModelCard, WeightsSource
from retbench.cards.user_config import require_disk_space
from retbench.engines import fingerprints, model_folders
from retbench.engines.weights_cache import OnMessage, PreparedWeights
from retbench.errors import DataError, MissingError

# Second copies of the weights in other layouts, which the patterns of safe files would also match.
IGNORED_PATTERNS = ("original/*", "onnx/*", "consolidated*", "*.index.*.json")
NEXT_STEP = "fetch on a machine that reaches huggingface.co and bring its cache here, or give --weights PATH"


def describe_source(weights: WeightsSource) -> str:
    """Where the weights come from, in one phrase."""
    return f"hub {weights.repo}"


def download_weights(card: ModelCard, weights: WeightsSource, work: Path, on_message: OnMessage) -> PreparedWeights:
    """Fetch one snapshot into `work`; an interrupted one goes on where it stopped."""
    repo, pin = str(weights.repo), pins.read_pin("models", card.name)
    revision, sizes = _list_files(repo, weights.revision or (pin.revision if pin else None), work)
    folder = work / revision
    require_disk_space(work, sum(sizes.values()))
    on_message(f"fetching {repo} at {revision[:12]}: {len(sizes)} files, {sum(sizes.values()) / 1e6:.0f} MB")
    _download_snapshot(repo, revision, folder)
    for name, size in sizes.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise MissingError(f"{name} of {repo} did not arrive whole", "fetch again: what came is kept")
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the downloader's own notes, of no use once all is here
    model_folders.check_folder(folder)
    fingerprint = fingerprints.compute_folder_fingerprint(folder)
    pins.write_pin("models", card.name, pins.Pin(revision, fingerprint))
    return PreparedWeights(folder, describe_source(weights), fingerprint, revision=revision)


def _list_files(repo: str, revision: str | None, work: Path) -> tuple[str, dict[str, int]]:
    """The revision that is meant, and name and size of each file.

    Asked first, because `snapshot_download` by itself hands back a half-filled folder as if it were whole when the hub
    does not answer; and by `model_info`, which says so at once where the listing tries five times over.
    """
    with translate_hub_errors(repo, NEXT_STEP):
        from huggingface_hub import HfApi, snapshot_download

        resolved = str(HfApi().model_info(repo, revision=revision).sha)
        plan = snapshot_download(
            repo,
            revision=resolved,
            local_dir=work,
            allow_patterns=list(model_folders.WANTED_PATTERNS),
            ignore_patterns=list(IGNORED_PATTERNS),
            dry_run=True,
        )
    if not any(file.filename.endswith(".safetensors") for file in plan):
        raise DataError(f"{repo} has no safetensors, only formats that can run code", "convert it, or choose another")
    return resolved, {file.filename: file.file_size or 0 for file in plan}


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
