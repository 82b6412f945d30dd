"""Adapters (LoRA) in the format of peft, merged once into their parent's weights. The result is a model folder."""

import hashlib
import logging
import warnings
from pathlib import Path
from typing import Any

from retbench.cards.checksums import cached_sha256
from retbench.engines import weights_cache
from retbench.engines.fingerprints import read_json_object
from retbench.errors import DataError, MissingError

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter_folder(path: Path) -> bool:
    """Whether a folder holds an adapter without the weights of a model."""
    return (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file()


def read_parent_name(folder: Path) -> str:
    """The parent model of an adapter: a card name or a hub id."""
    name = read_json_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not name or not (folder / ADAPTER_WEIGHTS).is_file():
        raise DataError(
            f"{folder} is not a complete adapter",
            f"it needs {ADAPTER_WEIGHTS}, and {ADAPTER_CONFIG} with `base_model_name_or_path`",
        )
    return str(name)


def get_merged_folder(folder: Path) -> Path:
    """The cache folder for the merged weights."""
    facts = "\n".join((cached_sha256(folder / ADAPTER_WEIGHTS), cached_sha256(folder / ADAPTER_CONFIG)))
    return weights_cache.get_weights_folder(hashlib.sha256(facts.encode()).hexdigest()[:16])


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
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    peft = import_peft()
    transformers_logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses deprecated names of transformers
        model: Any = AutoModel.from_pretrained(
            parent_folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        config = peft.PeftConfig.from_pretrained(adapter)
        config.task_type = None  # load it into the backbone, whatever task it was trained for
        model = peft.PeftModel.from_pretrained(model, adapter, config=config).merge_and_unload()
    model.save_pretrained(folder, max_shard_size="1TB")
    tokenizer_folder = adapter if (adapter / "tokenizer_config.json").exists() else parent_folder
    AutoTokenizer.from_pretrained(tokenizer_folder, trust_remote_code=False).save_pretrained(folder)


def import_peft() -> Any:
    """Import the package peft."""
    try:
        import peft
    except ImportError as problem:
        raise MissingError("adapters need the package peft", "pip install 'retbench[train]'") from problem
    logging.getLogger("peft").setLevel(logging.WARNING)
    return peft
