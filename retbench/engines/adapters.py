"""Adapters (LoRA) in the format of peft, merged once into their parent's weights. The result is a model folder."""

import hashlib
import logging
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from retbench.cards.model import ModelCard
from retbench.cards.published_modules import ADAPTER_CONFIG, is_adapter_folder
from retbench.engines import weights_cache
from retbench.engines.fingerprints import read_json_object
from retbench.engines.time_limit import MAX_SECONDS, limit_seconds
from retbench.errors import DataError, MissingError
from retbench.system.checksums import cached_sha256
from retbench.system.installation import suggest_extra

ADAPTER_WEIGHTS = "adapter_model.safetensors"
MERGE = "2"  # grows when an adapter is merged to other weights than before: then cached folders are not used
BASE = "base_model.model."  # before every name in an adapter of peft


def read_parent_name(folder: Path) -> str:
    """The parent model of an adapter: a card name or a hub id."""
    name = read_json_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not name or not (folder / ADAPTER_WEIGHTS).is_file():
        raise DataError(
            f"{folder} is not a complete adapter",
            f"it needs {ADAPTER_WEIGHTS}, and {ADAPTER_CONFIG} with `base_model_name_or_path`",
        )
    return str(name)


def check_parents(folder: Path) -> None:
    """Raise an error if an adapter is, over other adapters, its own parent."""
    seen: set[Path] = set()
    while is_adapter_folder(folder):
        if folder.resolve() in seen:
            raise DataError(
                f"{folder} is an adapter over itself", f"correct `base_model_name_or_path` in {ADAPTER_CONFIG}"
            )
        seen.add(folder.resolve())
        folder = Path(read_parent_name(folder)).expanduser()


def get_merged_folder(folder: Path) -> Path:
    """The cache folder for the merged weights."""
    facts = "\n".join((cached_sha256(folder / ADAPTER_WEIGHTS), cached_sha256(folder / ADAPTER_CONFIG), MERGE))
    return weights_cache.get_weights_folder(hashlib.sha256(facts.encode()).hexdigest()[:16])


def check_base_adapter(card: ModelCard, folder: Path) -> None:
    """Check that an adapter over another adapter names that one as its parent, and not the model below both."""
    base = card.weights.base_adapter if card.weights else None
    parent = Path(read_parent_name(folder)).expanduser()
    if base and not is_adapter_folder(parent) and not (parent / "config.json").is_file():
        raise DataError(
            f"{card.name} is an adapter over the adapter {base}, but {ADAPTER_CONFIG} of {folder} names only {parent}",
            f"download {base} too, and write its folder as `base_model_name_or_path` into {folder / ADAPTER_CONFIG}",
        )


def check_parent(folder: Path, fingerprint: str) -> None:
    """Check that the parent weights are those the adapter was trained with."""
    training = read_json_object(folder / "training.json") if (folder / "training.json").exists() else {}
    if training and training["parent_fingerprint"] != fingerprint:
        raise DataError(
            f"{folder} was trained with weights {training['parent_fingerprint'][:16]}, but {read_parent_name(folder)} "
            f"has weights {fingerprint[:16]} here",
            "fetch the parent weights it was trained with",
        )


def merge_adapter(parent_folder: Path, adapter: Path, folder: Path) -> None:
    """Merge parent and adapter into `folder`; in float32, so that small changes are not lost by rounding."""
    from transformers import AutoTokenizer

    from retbench.engines import model_loader, page_retriever_adapters

    names = _read_names(adapter)
    if page_retriever_adapters.adapts_page_retriever(parent_folder, names):
        page_retriever_adapters.merge_page_retriever(parent_folder, adapter, folder)
    else:
        parent = model_loader.load_text_model(parent_folder, "float32")
        model = _load_adapter(parent, adapter, names).merge_and_unload()
        model_loader.save_model_folder(model, folder)
    tokenizer_folder = adapter if (adapter / "tokenizer_config.json").exists() else parent_folder
    AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=False).save_pretrained(folder)


def _read_names(adapter: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(adapter / ADAPTER_WEIGHTS, "pt") as stored:
            return list(stored.keys())
    except SafetensorError as problem:
        raise DataError(
            f"{adapter / ADAPTER_WEIGHTS} is damaged: {problem}", "copy or fetch the adapter again"
        ) from problem


def _load_adapter(parent: Any, adapter: Path, names: list[str]) -> Any:
    """The parent with the adapter beside its weights. Every weight of the adapter must have found its layer."""
    from retbench.engines import model_loader

    peft = import_peft()
    text_names = [name for name in names if not re.search(model_loader.TOWERS, name)]
    prefix = _find_layer_prefix(text_names, {name for name, _ in parent.named_modules()})
    config = peft.PeftConfig.from_pretrained(adapter)
    check_patterns(adapter, config, [name for name, _ in parent.named_modules()])
    config.task_type = None  # load it into the backbone, whatever task it was trained for
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses deprecated names of transformers
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error, below
        try:
            model = peft.PeftModel.from_pretrained(
                parent, adapter, config=config, key_mapping={f"^{re.escape(prefix)}": ""} if prefix else None
            )
        except (ValueError, RuntimeError) as problem:  # no such layer, or one of another shape
            raise DataError(
                f"{adapter} does not fit its parent: {str(problem).splitlines()[0]}",
                "give the parent it was trained on",
            ) from problem
    _check_all_used(adapter, {name.replace(BASE + prefix, BASE, 1) for name in names}, model, peft)
    return model


def check_patterns(adapter: Path, config: Any, layers: list[str]) -> None:
    """Raise an error for a regular expression of an adapter that takes for ever, before peft uses it."""
    values = [getattr(config, name, None) for name in ("target_modules", "exclude_modules")]
    patterns = [value for value in values if isinstance(value, str)]
    with limit_seconds(MAX_SECONDS, f"a pattern of layers in {adapter / ADAPTER_CONFIG}"):
        for pattern in patterns:
            try:
                any(re.fullmatch(pattern, layer) for layer in layers)
            except re.error as problem:
                raise DataError(f"{adapter / ADAPTER_CONFIG}: {problem}", "fetch the adapter again") from problem


def _find_layer_prefix(names: list[str], layers: set[str]) -> str:
    """What stands before the layers' names in an adapter trained on a whole language model (`model.`) or on a
    multimodal one (`model.language_model.`): the parent is loaded without its head.
    """
    found: Counter[str] = Counter()
    for name in names:
        parts = name.removeprefix(BASE).split(".")
        paths = [(start, end) for start in range(len(parts)) for end in range(len(parts), start + 1, -1)]
        match = next((start for start, end in paths if ".".join(parts[start:end]) in layers), None)
        if match is not None:
            found["".join(f"{part}." for part in parts[:match])] += 1
    return found.most_common(1)[0][0] if found else ""


def _check_all_used(adapter: Path, names: set[str], model: Any, peft: Any) -> None:
    from retbench.engines import model_loader

    expected = set(peft.get_peft_model_state_dict(model, save_embedding_layers=False))
    known = expected | {name.replace(".base_layer.", ".") for name in model.state_dict()}
    info = {"missing_keys": expected - names, "unexpected_keys": names - known, "mismatched_keys": ()}
    model_loader.check_loaded_weights(adapter, info, unused=(model_loader.TOWERS, model_loader.HEADS))


def import_peft() -> Any:
    """Import the package peft."""
    try:
        import peft
    except ImportError as problem:
        raise MissingError("adapters need the package peft", suggest_extra("train")) from problem
    logging.getLogger("peft").setLevel(logging.WARNING)
    return peft
