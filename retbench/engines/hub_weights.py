"""Weights from the Hugging Face hub, at one fixed revision. Only `fetch` downloads; never pickles or code."""

import shutil
from pathlib import Path

from retbench.cards import pins
from retbench.cards.model import ModelCard, WeightsSource
from retbench.cards.published_modules import find_backbone_folder
from retbench.cards.untrusted_fields import check_repository_files
from retbench.engines import adapters, fingerprints, model_folders
from retbench.engines.weights_cache import OnMessage, PreparedWeights
from retbench.errors import DataError, MissingError
from retbench.system.hub_errors import translate_hub_errors
from retbench.system.user_config import require_disk_space

# Copies of the weights in other layouts, which would also match the patterns of wanted files.
IGNORED_PATTERNS = ("original/*", "onnx/*", "consolidated*", "*.index.*.json")
NEXT_STEP = "fetch on a machine that reaches huggingface.co and copy its cache here, or give --weights PATH"


def describe_source(weights: WeightsSource) -> str:
    """The source of the weights, in a few words."""
    return f"hub {weights.repo}"


def download_weights(card: ModelCard, weights: WeightsSource, work: Path, on_message: OnMessage) -> PreparedWeights:
    """Download one snapshot into `work`. An interrupted download continues."""
    pin = pins.read_pin("models", card.name)
    revision, folder = _download_folder(
        str(weights.repo), weights.revision or (pin.revision if pin else None), work, on_message
    )
    backbone = find_backbone_folder(folder)
    model_folders.check_folder(backbone)
    fingerprint = fingerprints.compute_folder_fingerprint(backbone)
    pins.write_pin("models", card.name, pins.Pin(revision, fingerprint))
    return PreparedWeights(folder, describe_source(weights), fingerprint, revision=revision)


def download_adapted_weights(
    card: ModelCard, weights: WeightsSource, parent_folder: Path, work: Path, on_message: OnMessage
) -> PreparedWeights:
    """Download the adapters of a card and merge them into the parent's weights, the base adapter first."""
    pin, base_pin = pins.read_pin("models", card.name), pins.read_pin("models", weights.base_adapter or "")
    folder, revision = parent_folder, weights.revision or (pin.revision if pin else None)
    wanted = [(weights.base_adapter, base_pin.revision if base_pin else None)] if weights.base_adapter else []
    for repo, wanted_revision in [*wanted, (str(weights.repo), revision)]:
        revision, adapter = _download_folder(repo, wanted_revision, work, on_message)
        adapters.read_parent_name(adapter)  # raises if it is not complete
        merged = work / f"merged-{revision}"
        shutil.rmtree(merged, ignore_errors=True)  # of an interrupted merge
        on_message(f"merging {repo} into the weights of {card.parent}")
        adapters.merge_adapter(folder, adapter, merged)
        folder = merged
        if repo == weights.base_adapter:
            pins.write_pin("models", repo, pins.Pin(revision, fingerprints.compute_folder_fingerprint(merged)))
    fingerprint = fingerprints.compute_folder_fingerprint(folder)
    pins.write_pin("models", card.name, pins.Pin(str(revision), fingerprint))
    return PreparedWeights(folder, describe_source(weights), fingerprint, revision=revision)


def _download_folder(repo: str, revision: str | None, work: Path, on_message: OnMessage) -> tuple[str, Path]:
    """Download one repository into `work`; return its resolved revision and its folder."""
    resolved, sizes = _list_files(repo, revision, work)
    folder = work / resolved
    require_disk_space(work, sum(sizes.values()))
    on_message(f"fetching {repo} at {resolved[:12]}: {len(sizes)} files, {sum(sizes.values()) / 1e6:.0f} MB")
    _download_snapshot(repo, resolved, folder)
    for name, size in sizes.items():
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise MissingError(
                f"{name} of {repo} was not downloaded completely", "fetch again: finished files are kept"
            )
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # metadata of the downloader, not needed any more
    return resolved, folder


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
