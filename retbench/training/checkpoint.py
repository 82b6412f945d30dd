"""Checkpoints: the trained weights, the optimiser and the step, each there completely or not at all.

    checkpoint-00000050/state.safetensors   trained weights and both moments of AdamW
    checkpoint-00000050/state.json          step, seconds so far, the best evaluation, the checksum of the tensors

A folder is written under a temporary name, flushed and renamed; only then the one before it is removed. Dropout and
data follow from seed and step, so this is all a resumed run needs, and one whose checkpoint is damaged starts at its
beginning and still ends the same.
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
from retbench.training.fsdp import gather_tensor, shard_like

log = logging.getLogger(__name__)

STATE_FILE, PROGRESS_FILE = "state.safetensors", "state.json"


@dataclass
class TrainingProgress:
    """How far a run is."""

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    best: float | None = None
    best_step: int | None = None


def save_checkpoint(folder: Path, tensors: dict[str, torch.Tensor], progress: TrainingProgress) -> None:
    """Write a checkpoint; a full disk leaves the one before untouched."""
    final = folder / f"checkpoint-{progress.step:08d}"
    work = final.with_suffix(".partial")
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        _write_files(work, tensors, progress)
        shutil.rmtree(final, ignore_errors=True)
        work.rename(final)
        flush_to_disk(folder)
    except (OSError, SafetensorError) as problem:  # safetensors has its own word for a full disk
        shutil.rmtree(work, ignore_errors=True)
        if not isinstance(problem, OSError) and not convert_to_resource_error(problem):
            raise
        raise ResourceError(
            f"{final} could not be written: {getattr(problem, 'strerror', None) or problem}",
            "make room and add --resume: the checkpoint before it is kept",
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
    weights: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer | None = None
) -> dict[str, torch.Tensor]:
    """Trained weights and the optimiser's moments, put together where they are shared out: every process must ask."""
    tensors = {f"weight:{name}": gather_tensor(weight.detach()).contiguous() for name, weight in weights.items()}
    moments = optimiser.state if optimiser else {}
    for name, weight in weights.items():
        for moment, value in moments.get(weight, {}).items():
            tensors[f"{moment}:{name}"] = gather_tensor(value).contiguous()
    return tensors


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob("checkpoint-*") if path.suffix != ".partial")


def load_checkpoint(
    folder: Path, weights: dict[str, nn.Parameter], optimiser: torch.optim.Optimizer
) -> TrainingProgress:
    """Take up the last checkpoint; without one, a run starts at its beginning."""
    found = [(place, progress) for place in list_checkpoints(folder) if (progress := _read_progress(place))]
    if not found:
        return TrainingProgress()
    place, progress = found[-1]
    tensors = load_file(place / STATE_FILE)
    restore_weights(tensors, weights)
    for name, weight in weights.items():
        moments = {key.split(":", 1)[0]: value for key, value in tensors.items() if key.endswith(f":{name}")}
        moments.pop("weight")
        optimiser.state[weight] = {key: v if key == "step" else shard_like(v, weight) for key, v in moments.items()}
    return progress


def _hash_file(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _read_progress(place: Path) -> TrainingProgress | None:
    """How far a checkpoint is; one that changed on the disk since is told and removed."""
    try:
        facts = json.loads((place / PROGRESS_FILE).read_text())
        checksum = facts.pop("sha256", None)  # the first checkpoints had none
        if checksum in (None, _hash_file(place / STATE_FILE)):
            return TrainingProgress(**facts)
    except (OSError, ValueError, TypeError, AttributeError):
        pass
    log.warning("%s is damaged: training goes on from before it", place.name)
    shutil.rmtree(place)
    return None


def restore_weights(tensors: dict[str, torch.Tensor], weights: dict[str, nn.Parameter]) -> None:
    """Give the weights the values of a checkpoint."""
    named = {key.removeprefix("weight:") for key in tensors if key.startswith("weight:")}
    if named != set(weights):
        raise DataError("the checkpoint holds other weights than this run trains", "use another --out")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(shard_like(tensors[f"weight:{name}"], weight))


def save_best_weights(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """The weights of the best evaluation so far."""
    work = folder / "best.partial"
    save_file(tensors, work)
    work.rename(folder / "best.safetensors")


def restore_best_weights(folder: Path, weights: dict[str, nn.Parameter]) -> None:
    """Go back to the best evaluation, if there was any."""
    if (folder / "best.safetensors").exists():
        restore_weights(load_file(folder / "best.safetensors"), weights)
