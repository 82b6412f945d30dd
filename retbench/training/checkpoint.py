"""Checkpoints: trained weights, optimizer state and progress, always complete.

    checkpoint-00000050/state.safetensors   trained weights and both moments of AdamW
    checkpoint-00000050/state.json          step, seconds so far, the best evaluation, the checksum of the tensors

A folder is written under a temporary name, flushed and renamed; only then the previous one is removed. Dropout and data
follow from seed and step, so a resumed training needs nothing else. If a checkpoint is damaged, training starts from
the beginning and gives the same result.
"""

import hashlib
import json
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from retbench.errors import DataError, ResourceError, convert_to_resource_error
from retbench.store.shard_store import flush_to_disk
from retbench.training.fsdp import gather_for_saving, shard_like

log = logging.getLogger(__name__)

STATE_FILE, PROGRESS_FILE = "state.safetensors", "state.json"


@dataclass
class TrainingProgress:
    """How far a training is. The field names are stored in checkpoints and model cards."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    best: float | None = None
    best_step: int | None = None


def save_checkpoint(folder: Path, tensors: dict[str, torch.Tensor], progress: TrainingProgress) -> None:
    """Write a checkpoint; if the disk is full, the previous one stays."""
    final = folder / f"checkpoint-{progress.step:08d}"
    work = final.with_suffix(".partial")
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        _write_files(work, tensors, progress)
        shutil.rmtree(final, ignore_errors=True)
        work.rename(final)
        flush_to_disk(folder)
    except (OSError, SafetensorError) as problem:  # safetensors raises its own error on a full disk
        shutil.rmtree(work, ignore_errors=True)
        if not isinstance(problem, OSError) and not convert_to_resource_error(problem):
            raise
        raise ResourceError(
            f"{final} could not be written: {getattr(problem, 'strerror', None) or problem}",
            "free disk space and add --resume: the previous checkpoint is kept",
        ) from problem
    for old in list_checkpoints(folder)[:-1]:
        shutil.rmtree(old)


def _write_files(folder: Path, tensors: dict[str, torch.Tensor], progress: TrainingProgress) -> None:
    save_file(tensors, folder / STATE_FILE)
    facts = {**asdict(progress), "sha256": _hash_file(folder / STATE_FILE)}
    (folder / PROGRESS_FILE).write_text(json.dumps(facts))
    for path in (*folder.iterdir(), folder):
        flush_to_disk(path)


def collect_state(
    weights: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer | None = None
) -> dict[str, torch.Tensor]:
    """Trained weights and the optimizer's moments for process 0, which writes them; every process must call this."""
    moments = optimizer.state if optimizer else {}
    tensors = [(f"weight:{name}", weight) for name, weight in weights.items()]
    for name, weight in weights.items():
        tensors += [(f"{moment}:{name}", value) for moment, value in moments.get(weight, {}).items()]
    return {name: tensor.contiguous() for name, tensor in gather_for_saving(tensors).items()}


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    return sorted(path for path in folder.glob("checkpoint-*") if path.suffix != ".partial")


def load_checkpoint(
    folder: Path, weights: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> TrainingProgress:
    """Restore the last undamaged checkpoint; without one, progress is zero."""
    checkpoints = [(path, progress) for path in list_checkpoints(folder) if (progress := _read_progress(path))]
    if not checkpoints:
        return TrainingProgress()
    path, progress = checkpoints[-1]
    tensors = load_file(path / STATE_FILE)
    restore_weights(tensors, weights)
    for name, weight in weights.items():
        moments = {key.split(":", 1)[0]: value for key, value in tensors.items() if key.endswith(f":{name}")}
        moments.pop("weight")
        optimizer.state[weight] = {
            key: value if key == "step" else shard_like(value, weight) for key, value in moments.items()
        }
    return progress


def _hash_file(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _read_progress(checkpoint: Path) -> TrainingProgress | None:
    """The progress of a checkpoint; a damaged one is removed with a warning."""
    try:
        facts = json.loads((checkpoint / PROGRESS_FILE).read_text())
        checksum = facts.pop("sha256", None)  # the first checkpoints had none
        if checksum in (None, _hash_file(checkpoint / STATE_FILE)):
            return TrainingProgress(**facts)
    except (OSError, ValueError, TypeError, AttributeError):
        pass
    log.warning("%s is damaged: training continues from an earlier checkpoint or from the start", checkpoint.name)
    shutil.rmtree(checkpoint)
    return None


def restore_weights(tensors: dict[str, torch.Tensor], weights: dict[str, nn.Parameter]) -> None:
    """Copy the values of a checkpoint into the weights."""
    saved_names = {key.removeprefix("weight:") for key in tensors if key.startswith("weight:")}
    if saved_names != set(weights):
        raise DataError("the checkpoint has other weights than this training", "use another --out")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(shard_like(tensors[f"weight:{name}"], weight))


def save_best_weights(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write the weights of the best evaluation so far."""
    work = folder / "best.partial"
    save_file(tensors, work)
    work.rename(folder / "best.safetensors")


def restore_best_weights(folder: Path, weights: dict[str, nn.Parameter]) -> None:
    """Restore the weights of the best evaluation, if there was one."""
    if (folder / "best.safetensors").exists():
        restore_weights(load_file(folder / "best.safetensors"), weights)
