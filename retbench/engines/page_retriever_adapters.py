"""Adapters of page retrievers (ColQwen, ColPali), merged with their vision tower and projection.

Published adapters were saved by several versions of transformers, which name the same layers differently: the names are
put into those of today first. Then every tensor must have found its layer, and every layer that the adapter's config
names must have its tensors. A projection may be adapted like any other layer, or be in the adapter as a whole.
"""

import json
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import copyfile
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from retbench.cards.published_modules import ADAPTER_CONFIG
from retbench.cards.published_page_retriever import (
    ARCHITECTURE_BY_TYPE,
    LAYOUTS,
    PageRetrieverLayout,
    find_page_retriever,
)
from retbench.cards.vision_config import PROCESSOR_FILES
from retbench.engines import model_loader
from retbench.engines.adapters import ADAPTER_WEIGHTS, BASE, check_patterns, import_peft
from retbench.engines.fingerprints import read_json_object
from retbench.engines.token_layers import read_weight
from retbench.errors import DataError

LORA = ".lora_"
WRAPPERS = (".base_layer.", ".modules_to_save.")  # of peft, in the names of weights that are not LoRA
NEXT_STEP = f"give the parent it was trained on: `base_model_name_or_path` in {ADAPTER_CONFIG}"


@dataclass(frozen=True)
class AdapterTensor:
    """A tensor of an adapter: the layer it belongs to, in the file and in the model, and the rest of its name."""

    stored_name: str
    stored_layer: str
    layer: str
    end: str
    value: torch.Tensor

    @property
    def is_lora(self) -> bool:
        """Whether it is a part of a LoRA; else it replaces a weight of the parent."""
        return self.end.startswith(LORA)


def adapts_page_retriever(parent_folder: Path, names: Iterable[str]) -> bool:
    """Whether an adapter with these tensors makes a page retriever of its parent."""
    projections = {layout.projection for layout in LAYOUTS.values()}
    return bool(find_page_retriever(parent_folder)) or any(projections & set(name.split(".")) for name in names)


def merge_page_retriever(parent_folder: Path, adapter: Path, folder: Path) -> None:
    """Write parent and adapter as one model folder, without its tokenizer; in float32, as every merge."""
    settings = read_json_object(parent_folder / "config.json")
    layout = find_page_retriever(parent_folder)
    if layout is None:
        settings["architectures"] = [_choose_architecture(parent_folder, settings)]
        layout = LAYOUTS[settings["architectures"][0]]
    tensors = _read_tensors(adapter)
    model: Any = model_loader.load_whole_model(parent_folder, "float32")
    setattr(model, layout.projection, _build_projection(parent_folder, adapter, layout, tensors))
    _replace_weights(adapter, model, [tensor for tensor in tensors if not tensor.is_lora])
    merged = _merge_lora(adapter, model, [tensor for tensor in tensors if tensor.is_lora])
    weights = {
        name if name.startswith(layout.projection) else layout.weights_prefix + name: value.contiguous()
        for name, value in merged.state_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    settings = {key: value for key, value in settings.items() if key != "torch_dtype"} | {"dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    _copy_processor(parent_folder, adapter, folder)


def _choose_architecture(parent_folder: Path, settings: dict[str, Any]) -> str:
    model_type = str(settings.get("model_type"))
    if model_type not in ARCHITECTURE_BY_TYPE:
        raise DataError(
            f"{parent_folder} is a model of the type {model_type}, and its adapter one of a page retriever",
            NEXT_STEP,
        )
    return ARCHITECTURE_BY_TYPE[model_type]


def _read_tensors(adapter: Path) -> list[AdapterTensor]:
    tensors = []
    for stored_name, value in load_file(adapter / ADAPTER_WEIGHTS).items():
        name = stored_name
        for wrapper in WRAPPERS:
            name = name.replace(wrapper, ".")
        at = name.find(LORA) if LORA in name else name.rfind(".")
        stored_layer = name[:at].removeprefix(BASE)
        tensors.append(AdapterTensor(stored_name, stored_layer, _rename(stored_layer), name[at:], value))
    return tensors


def _rename(layer: str) -> str:
    """The name of a layer in the model as it is loaded."""
    for pattern, target in model_loader.PAGE_RETRIEVER_NAMES.items():
        renamed = re.sub(pattern, target, f"{layer}.", count=1)
        if renamed != f"{layer}.":
            return renamed.removesuffix(".")
    return layer


def _build_projection(
    parent_folder: Path, adapter: Path, layout: PageRetrieverLayout, tensors: list[AdapterTensor]
) -> nn.Linear:
    """The projection: as in the adapter if it has all of it, else as in the parent."""
    whole = [tensor for tensor in tensors if tensor.layer == layout.projection and not tensor.is_lora]
    own = {tensor.end.removeprefix("."): tensor.value for tensor in whole}
    stored = set(model_loader.read_weight_names(parent_folder))
    parts = {}
    for part in ("weight", "bias"):
        name = f"{layout.projection}.{part}"
        if part not in own and name not in stored:
            raise DataError(f"{parent_folder} has no {name}, and its adapter {adapter} has not all of it", NEXT_STEP)
        parts[part] = own[part].float() if part in own else read_weight(parent_folder, name)
    rows, columns = parts["weight"].shape
    projection = nn.Linear(columns, rows)
    projection.load_state_dict(parts)
    return projection


def _replace_weights(adapter: Path, model: Any, tensors: list[AdapterTensor]) -> None:
    """Put the weights that an adapter has as a whole into the model."""
    weights = dict(model.named_parameters())
    for tensor in tensors:
        found = weights.get(tensor.layer + tensor.end)
        if found is None or found.shape != tensor.value.shape:
            problem = "no weight" if found is None else "a weight of another shape"
            raise DataError(f"{adapter} has {tensor.stored_name}, for which its parent has {problem}", NEXT_STEP)
        found.data.copy_(tensor.value)


def _merge_lora(adapter: Path, model: Any, tensors: list[AdapterTensor]) -> Any:
    if not tensors:
        return model
    peft = import_peft()
    config = _build_config(adapter, model, tensors, peft)
    given = {f"{BASE}{tensor.layer}{tensor.end}": tensor for tensor in tensors}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses deprecated names of transformers
        adapted = peft.get_peft_model(model, config)
        expected = set(peft.get_peft_model_state_dict(adapted, save_embedding_layers=False))
        _refuse(adapter, "has no", expected - set(given))
        _refuse(adapter, "has", set(given) - expected, ", which its config does not explain")
        try:
            peft.set_peft_model_state_dict(adapted, {name: tensor.value for name, tensor in given.items()})
        except (ValueError, RuntimeError) as problem:  # tensors of another rank or width
            raise DataError(f"{adapter} does not fit its parent: {_shorten(problem)}", NEXT_STEP) from problem
        return adapted.merge_and_unload()


def _build_config(adapter: Path, model: Any, tensors: list[AdapterTensor], peft: Any) -> Any:
    """The adapter's config for exactly the layers that have tensors, whatever they are called in the file."""
    config = peft.PeftConfig.from_pretrained(adapter)
    if not isinstance(config, peft.LoraConfig):
        raise DataError(f"{adapter} is an adapter of the kind {config.peft_type}", "use one of the kind LORA")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Embedding))}
    stored = {tensor.layer: tensor.stored_layer for tensor in tensors}
    unknown = {stored[name] for name in set(stored) - set(layers)}
    _refuse(adapter, "changes", unknown, ", which its parent does not have")
    check_patterns(adapter, config, list(layers))
    named = {name for name in layers if peft.tuners.tuners_utils.check_target_module_exists(config, name)}
    _refuse(adapter, "has no tensors of", named - set(stored), ", which its config names")
    patterns = {
        field: {
            re.escape(layer): values[key]
            for layer, name in stored.items()
            if (key := peft.utils.other.get_pattern_key(values, name)) in values
        }
        for field in ("rank_pattern", "alpha_pattern")
        if (values := getattr(config, field) or {})
    }
    exact = "|".join(re.escape(name) for name in sorted(stored))
    return replace(
        config, target_modules=f"(?:{exact})", exclude_modules=None, layers_to_transform=None, layers_pattern=None,
        modules_to_save=None, bias="none", task_type=None, inference_mode=True, base_model_name_or_path=None,
        **patterns,
    )  # fmt: skip


def _refuse(adapter: Path, problem: str, names: set[str], end: str = "") -> None:
    if names:
        raise DataError(f"{adapter} {problem} {model_loader.format_names(sorted(names))}{end}", NEXT_STEP)


def _shorten(problem: Exception) -> str:
    return " ".join(str(problem).split())[:200]


def _copy_processor(parent_folder: Path, adapter: Path, folder: Path) -> None:
    """Copy the settings of the image processor: the adapter's if it has any, because it may have another resolution."""
    source = adapter if any((adapter / name).is_file() for name in PROCESSOR_FILES) else parent_folder
    for name in PROCESSOR_FILES:
        if (source / name).is_file():
            copyfile(source / name, folder / name)
