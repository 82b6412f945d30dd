"""Adapters in peft's format: added into their parent's weights once, and from then on a folder like any other."""

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
    """Whether a folder holds an adapter alone."""
    return (path / ADAPTER_CONFIG).is_file() and not (path / "config.json").is_file()


def read_parent_name(folder: Path) -> str:
    """The model an adapter belongs to, by the name of its card or its hub id."""
    name = read_json_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not name or not (folder / ADAPTER_WEIGHTS).is_file():
        raise DataError(
            f"{folder} is no whole adapter", f"it needs {ADAPTER_WEIGHTS}, and {ADAPTER_CONFIG} naming its parent"
        )
    return str(name)


def get_merged_folder(folder: Path) -> Path:
    """Where its merged weights are kept."""
    facts = "\n".join((cached_sha256(folder / ADAPTER_WEIGHTS), cached_sha256(folder / ADAPTER_CONFIG)))
    return weights_cache.get_weights_folder(hashlib.sha256(facts.encode()).hexdigest()[:16])


def check_parent(folder: Path, fingerprint: str) -> None:
    """Refuse to add an adapter to other weights than it was trained beside."""
    told = read_json_object(folder / "training.json") if (folder / "training.json").exists() else {}
    if told and told["parent_fingerprint"] != fingerprint:
        raise DataError(
            f"{folder} was trained beside weights {told['parent_fingerprint'][:16]}, and those of {read_parent_name(folder)} "
            f"here are {fingerprint[:16]}",
            "fetch the parent's weights that it was trained beside",
        )


def merge_adapter(parent_folder: Path, adapter: Path, folder: Path) -> None:
    """Write parent plus adapter to `folder`; in float32, so that small changes are not rounded away."""
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    peft = import_peft()
    transformers_logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft still asks transformers by old names
        model: Any = AutoModel.from_pretrained(
            parent_folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
        config = peft.PeftConfig.from_pretrained(adapter)
        config.task_type = None  # whatever it was trained for, it is the backbone that is changed
        model = peft.PeftModel.from_pretrained(model, adapter, config=config).merge_and_unload()
    model.save_pretrained(folder, max_shard_size="1TB")
    spoken = adapter if (adapter / "tokenizer_config.json").exists() else parent_folder
    AutoTokenizer.from_pretrained(spoken, trust_remote_code=False).save_pretrained(folder)


def import_peft() -> Any:
    """The package peft."""
    try:
        import peft
    except ImportError as problem:
        raise MissingError("adapters need the package peft", "pip install 'retbench[train]'") from problem
    logging.getLogger("peft").setLevel(logging.WARNING)
    return peft
