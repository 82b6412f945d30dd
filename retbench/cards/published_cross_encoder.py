"""What the files of a cross-encoder say, read without torch: its length limit, and whether it can be followed exactly.

A cross-encoder is a Hugging Face folder with a sequence classifier of one label, with or without the files of
sentence-transformers. What would change a score and is not followed (several labels, modules after the classifier, a
prompt) is an error that names it.
"""

from pathlib import Path
from typing import Any

from retbench.cards.published_kinds import CONFIG_FILE
from retbench.cards.published_method import (
    ARGUMENT_FIELDS,
    HARMLESS_ARGUMENTS,
    LARGEST_LENGTH,
    read_transformer_settings,
)
from retbench.cards.published_modules import read_module_types, read_optional_object
from retbench.errors import InapplicableError

CLASSIFIER, TASK = "ForSequenceClassification", "sequence-classification"
RISING_ACTIVATIONS = ("Identity", "Sigmoid", "Tanh")  # applied after the logit, they keep every order
UNKNOWN_LABELS = 2  # transformers' number of labels where the config has none


def require_cross_encoder(folder: Path) -> None:
    """Raise an error unless the folder is a sequence classifier of one label that is scored by its logit alone."""
    config, settings = read_optional_object(folder / "config.json"), read_transformer_settings(folder)
    prompts = read_optional_object(folder / CONFIG_FILE)
    default_prompt = (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name"))
    arguments = {name for field in ARGUMENT_FIELDS for name in settings.get(field) or {}} - HARMLESS_ARGUMENTS
    modules = [name.rpartition(".")[2] for name in read_module_types(folder)]
    problems = {
        f"its modules are {', '.join(modules)}": modules not in ([], ["Transformer"]),
        f"its task is {settings.get('transformer_task')}": settings.get("transformer_task", TASK) != TASK,
        f"it gives transformers the argument {next(iter(sorted(arguments)), '')}": bool(arguments),
        "it puts each pair into a chat": "message" in settings.get("modality_config", {}),
        "it puts texts into lower case by itself (do_lower_case)": bool(settings.get("do_lower_case")),
        f"it has a prompt, {default_prompt!r}": bool(default_prompt),
        f"its activation is {_read_activation(config)}": _read_activation(config) not in RISING_ACTIVATIONS,
    }
    for problem, is_found in problems.items():
        if is_found:
            raise InapplicableError(f"{folder} cannot be run as published: {problem}", "use another cross-encoder")
    _require_single_score(folder, config)


def _require_single_score(folder: Path, config: dict[str, Any]) -> None:
    (architecture, *_) = config.get("architectures") or ["unknown"]
    if not str(architecture).endswith(CLASSIFIER):
        raise InapplicableError(
            f"{folder} has no classification head: its architecture is {architecture}",
            "use pointwise:model=NAME with a language model, or a cross-encoder (retbench list models)",
        )
    labels = len(config.get("id2label") or ()) or config.get("num_labels") or UNKNOWN_LABELS
    if labels != 1:
        raise InapplicableError(
            f"{folder} has {labels} labels, so a pair has no single relevance score",
            "use a cross-encoder with one label (retbench list models)",
        )


def _read_activation(config: dict[str, Any]) -> str:
    """The name of the function after the logit; without one sentence-transformers takes the sigmoid."""
    name = (config.get("sentence_transformers") or {}).get("activation_fn")
    name = name or config.get("sbert_ce_default_activation_function")
    return str(name or "Sigmoid").rpartition(".")[2]


def read_pair_limit(folder: Path, window: int | None) -> int | None:
    """The most tokens of a pair: those of the folder, else of its tokenizer, and never more than the context window."""
    if limit := read_transformer_settings(folder).get("max_seq_length"):
        return int(limit)
    tokens = read_optional_object(folder / "tokenizer_config.json").get("model_max_length")
    limits = [int(limit) for limit in (tokens, window) if limit and 0 < limit < LARGEST_LENGTH]
    return min(limits, default=None)
