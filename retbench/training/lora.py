"""LoRA adapters beside frozen weights (library peft), or full training of all weights: load, prepare, save."""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from retbench.cards.recipe import LoraSettings, Recipe
from retbench.engines import model_loader
from retbench.engines.adapters import import_peft
from retbench.engines.device import get_device
from retbench.errors import DataError
from retbench.training import row_dropout


def load_model(folder: Path, recipe: Recipe, head: bool = False) -> nn.Module:
    """Load the model to train: frozen weights in the recipe's dtype, or all of them in float32.

    Weights that will be sharded stay on the CPU: the whole model may not fit on one device.
    """
    options = model_loader.get_device_map_options(get_device()) if recipe.sharding == "none" else {}
    if head:
        return model_loader.load_language_model(folder, "float32", options)
    return model_loader.load_text_model(folder, recipe.dtype if recipe.lora else "float32", options)


def prepare_for_training(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Add adapters and gradient checkpointing; trained weights are float32 in any case."""
    torch.manual_seed(recipe.seed)  # for the random start of adapters
    if recipe.lora:
        model = _add_adapters(model, recipe.lora)
    if recipe.gradient_checkpointing:
        base: Any = model
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # its new name is younger than the oldest version we take
            options = {"use_reentrant": False, "context_fn": row_dropout.restore_row_seeds}
            base.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    row_dropout.replace_dropout(model)
    return model.train()


def _add_adapters(model: Any, settings: LoraSettings) -> nn.Module:
    peft = import_peft()
    _check_target_modules(model, settings)
    targets: Any = "all-linear" if settings.target_modules == ("all-linear",) else list(settings.target_modules)
    config = peft.LoraConfig(
        r=settings.r, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout, target_modules=targets
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft still asks transformers by an old name
        adapted: nn.Module = peft.get_peft_model(model, config)
    return adapted


def _check_target_modules(model: nn.Module, settings: LoraSettings) -> None:
    """Refuse a name that no layer has: peft adapts the others, and a part of the model would not be trained."""
    names = [f".{name}" for name, _ in model.named_modules()]
    missing = [
        target
        for target in settings.target_modules
        if target != "all-linear" and not any(name.endswith(f".{target}") for name in names)
    ]
    if missing:
        linear = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
        raise DataError(
            f"the model has no linear layer named {' or '.join(missing)}",
            f"""name some of: {", ".join(sorted(linear))}; or all: --set 'lora.target_modules=["all-linear"]'""",
        )


def get_trainable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that are trained, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def save_trained_weights(model: Any, folder: Path, parent: str, state: dict[str, Any] | None = None) -> None:
    """Write the adapters in peft's format, with the name of their parent, or the whole model.

    `state` holds the weights of a sharded model.
    """
    options: dict[str, Any] = {} if state is None else {"state_dict": state}
    if hasattr(model, "peft_config"):
        model.peft_config["default"].base_model_name_or_path = parent
        model.save_pretrained(folder, save_embedding_layers=False, **options)  # else peft asks the hub about the parent
        (folder / "README.md").unlink(missing_ok=True)  # peft writes an empty form
    else:
        model_loader.save_model_folder(model, folder, **options)
