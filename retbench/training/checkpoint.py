"""Checkpoints: trained weights, optimizer state and progress, always complete.

    checkpoint-00000050/state.safetensors   trained weights and both moments of AdamW
    checkpoint-00000050/state.json          step, seconds so far, the best evaluation, the checksum of the tensors
    best-00000040/                          the same two files without moments: the weights of the best evaluation

A folder is written under a temporary name, flushed and renamed; only then the previous one is removed. Dropout and data
follow from seed and step, so a resumed training needs nothing else. If a checkpoint or the best weights that it names
are damaged, training starts from the beginning and gives the same result.
"""

import hashlib
import logging
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from retbench.errors import DataError, build_write_error, convert_to_resource_error
from retbench.system.checked_json import encode_checked_json, parse_checked_json
from retbench.system.durable_files import move_into_place
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
    _write_state(folder / f"checkpoint-{progress.step:08d}", tensors, progress)
    best = _get_best_folder(folder, progress)
    for old in (*list_checkpoints(folder)[:-1], *(path for path in folder.glob("best-*") if path != best)):
        shutil.rmtree(old)


def save_best_weights(folder: Path, tensors: dict[str, torch.Tensor], progress: TrainingProgress) -> None:
    """Write the weights of the best evaluation so far; those that the last checkpoint names stay until the next."""
    _write_state(folder / f"best-{progress.best_step:08d}", tensors, progress)


def _get_best_folder(folder: Path, progress: TrainingProgress) -> Path | None:
    return None if progress.best_step is None else folder / f"best-{progress.best_step:08d}"


def _write_state(final: Path, tensors: dict[str, torch.Tensor], progress: TrainingProgress) -> None:
    work = final.with_suffix(".partial")
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        _write_files(work, tensors, progress)
        shutil.rmtree(final, ignore_errors=True)
        move_into_place(work, final)
    except (OSError, SafetensorError) as problem:  # safetensors raises its own error on a full disk
        shutil.rmtree(work, ignore_errors=True)
        if not isinstance(problem, OSError) and not convert_to_resource_error(problem):
            raise
        next_step = "free disk space and add --resume: the previous checkpoint is kept"
        raise build_write_error(final, problem, next_step) from problem


def _write_files(folder: Path, tensors: dict[str, torch.Tensor], progress: TrainingProgress) -> None:
    save_file(tensors, folder / STATE_FILE)
    facts = {**asdict(progress), "sha256": _hash_file(folder / STATE_FILE)}
    (folder / PROGRESS_FILE).write_bytes(encode_checked_json(facts))


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
        step_device = weight.device if optimizer.defaults["fused"] else "cpu"  # where the optimizer counts steps
        optimizer.state[weight] = {
            key: value.to(step_device) if key == "step" else shard_like(value, weight) for key, value in moments.items()
        }
    return progress


def _hash_file(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _read_progress(checkpoint: Path) -> TrainingProgress | None:
    """The progress of a checkpoint; one that is damaged, or whose best weights are, is removed with a warning."""
    progress = _read_state(checkpoint)
    best = _get_best_folder(checkpoint.parent, progress) if progress else None
    damaged = checkpoint if progress is None else best if best and not _read_state(best) else None
    if damaged is None:
        return progress
    log.warning("%s is damaged: training continues from an earlier checkpoint or from the start", damaged.name)
    shutil.rmtree(checkpoint)
    return None


def _read_state(folder: Path) -> TrainingProgress | None:
    """The progress in a folder of state; None if one of its files is missing or damaged."""
    try:
        facts = parse_checked_json((folder / PROGRESS_FILE).read_bytes())
        checksum = facts.pop("sha256", None)  # the first checkpoints had none
        return TrainingProgress(**facts) if checksum in (None, _hash_file(folder / STATE_FILE)) else None
    except (OSError, ValueError, TypeError):
        return None


def restore_weights(tensors: dict[str, torch.Tensor], weights: dict[str, nn.Parameter]) -> None:
    """Copy the values of a checkpoint into the weights."""
    saved_names = {key.removeprefix("weight:") for key in tensors if key.startswith("weight:")}
    if saved_names != set(weights):
        raise DataError("the checkpoint has other weights than this training", "use another --out")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(shard_like(tensors[f"weight:{name}"], weight))


def restore_best_weights(folder: Path, weights: dict[str, nn.Parameter], progress: TrainingProgress) -> None:
    """Restore the weights of the best evaluation, if there was one."""
    best = _get_best_folder(folder, progress)
    if best is None:
        return
    if not _read_state(best):
        raise DataError(f"{best} is damaged", "add --resume: the training then starts from the beginning")
    restore_weights(load_file(best / STATE_FILE), weights)
