"""What the files of a cross-encoder say, read without torch: its length limit, and whether it can be followed exactly.

A cross-encoder is a Hugging Face folder with a sequence classifier of one label, with or without the files of
sentence-transformers; or a language model that answers yes or no, whose prompt is the folder's chat template or in the
card. What would change a score and is not followed (several labels, modules after the classifier) is an error that
names it.
"""

from pathlib import Path
from typing import Any

from retbench.cards.published_kinds import CONFIG_FILE, is_cross_encoder
from retbench.cards.published_method import (
    ARGUMENT_FIELDS,
    HARMLESS_ARGUMENTS,
    LARGEST_LENGTH,
    read_sequence_limit,
    read_transformer_settings,
)
from retbench.cards.published_modules import list_modules, read_architectures, read_module_types, read_optional_object
from retbench.errors import DataError, InapplicableError

CLASSIFIER, LANGUAGE_MODEL = "ForSequenceClassification", "ForCausalLM"
TASKS = {CLASSIFIER: "sequence-classification", LANGUAGE_MODEL: "text-generation"}
MODULES = {CLASSIFIER: ([], ["Transformer"]), LANGUAGE_MODEL: ([], ["Transformer"], ["Transformer", "LogitScore"])}
CHAT_OPTIONS = ("add_generation_prompt", "enable_thinking")  # of a chat template, as far as we follow them
RISING_ACTIVATIONS = ("Identity", "Sigmoid", "Tanh")  # applied after the logit, they keep every order
UNKNOWN_LABELS = 2  # transformers' number of labels where the config has none


def require_cross_encoder(folder: Path, has_prompt: bool = False) -> None:
    """Raise an error unless the folder can be scored as published.

    That is a sequence classifier of one label, scored by its logit alone, or a language model that answers yes or no;
    with `has_prompt` the card has its prompt.
    """
    kind = _require_known_kind(folder, has_prompt)
    config, settings = read_optional_object(folder / "config.json"), read_transformer_settings(folder)
    arguments = {name for field in ARGUMENT_FIELDS for name in settings.get(field) or {}} - HARMLESS_ARGUMENTS
    modules = [name.rpartition(".")[2] for name in read_module_types(folder)]
    is_prompted = has_prompt or reads_chat(folder)
    unknown = sorted(arguments - {"chat_template"} if is_prompted else arguments)
    problems = {
        f"its modules are {', '.join(modules)}": modules not in MODULES[kind],
        f"its task is {settings.get('transformer_task')}": settings.get("transformer_task", TASKS[kind]) != TASKS[kind],
        f"it gives transformers the argument {next(iter(unknown), '')}": bool(unknown),
        "it gives its chat template options that are not known": not has_prompt and not _are_options_known(settings),
        "its chat has texts in parts (structured messages)": _read_message_format(settings) == "structured",
        "it puts texts into lower case by itself (do_lower_case)": bool(settings.get("do_lower_case")),
        f"it has a prompt, {read_default_prompt(folder)!r}": bool(read_default_prompt(folder)) and not is_prompted,
        f"its activation is {_read_activation(config)}": _read_activation(config) not in RISING_ACTIVATIONS,
    }
    for problem, is_found in problems.items():
        if is_found:
            raise InapplicableError(f"{folder} cannot be run as published: {problem}", "use another cross-encoder")
    if kind == CLASSIFIER:
        _require_single_score(folder, config)


def _require_known_kind(folder: Path, has_prompt: bool) -> str:
    """A classifier, or a language model that says how it reads a pair; of any other the states are no score."""
    (architecture, *_) = read_architectures(folder) or ("unknown",)
    if architecture.endswith(CLASSIFIER):
        return CLASSIFIER
    if is_language_model(folder) and (has_prompt or is_cross_encoder(folder)):
        return LANGUAGE_MODEL
    raise InapplicableError(
        f"{folder} has no classification head: its architecture is {architecture}",
        "use pointwise:model=NAME with a language model, a cross-encoder (retbench list models), or a card with "
        "[pair_prompt]",
    )


def is_language_model(folder: Path) -> bool:
    """Whether the folder is a language model, which answers yes or no."""
    (architecture, *_) = read_architectures(folder) or ("unknown",)
    return architecture.endswith(LANGUAGE_MODEL)


def reads_chat(folder: Path) -> bool:
    """Whether the folder puts a pair into its chat template."""
    return is_language_model(folder) or "message" in (read_transformer_settings(folder).get("modality_config") or {})


def read_chat_options(folder: Path) -> dict[str, bool]:
    """The options that the folder gives to its chat template."""
    return {name: bool(value) for name, value in _find_chat_options(read_transformer_settings(folder)).items()
            if name in CHAT_OPTIONS}  # fmt: skip


def _are_options_known(settings: dict[str, Any]) -> bool:
    options = _find_chat_options(settings)
    return all(name in (*CHAT_OPTIONS, "restore_suffix") and isinstance(value, bool) for name, value in options.items())


def _find_chat_options(settings: dict[str, Any]) -> dict[str, Any]:
    options = (settings.get("processing_kwargs") or {}).get("chat_template") or {}
    return options if isinstance(options, dict) else {"chat_template": options}


def _read_message_format(settings: dict[str, Any]) -> str | None:
    message = (settings.get("modality_config") or {}).get("message") or {}
    return message.get("format") if isinstance(message, dict) else None


def read_default_prompt(folder: Path) -> str | None:
    """The text that sentence-transformers puts before every pair, or gives to the chat template as instruction."""
    prompts = read_optional_object(folder / CONFIG_FILE)
    return (prompts.get("prompts") or {}).get(prompts.get("default_prompt_name")) or None


def read_answer_ids(folder: Path) -> tuple[int, int | None] | None:
    """The tokens of yes and no in the folder's LogitScore module; None if it has none."""
    module = next((module for module in list_modules(folder) if module.kind == "LogitScore"), None)
    if module is None:
        return None
    yes, no = module.settings.get("true_token_id"), module.settings.get("false_token_id")
    if not isinstance(yes, int) or not isinstance(no, int | None):
        raise DataError(
            f"{folder / module.path / 'config.json'}: true_token_id is {yes!r} and false_token_id is {no!r}",
            "fetch the folder again",
        )
    return yes, no


def _require_single_score(folder: Path, config: dict[str, Any]) -> None:
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
    if limit := read_sequence_limit(folder, read_transformer_settings(folder)):
        return limit
    tokens = read_optional_object(folder / "tokenizer_config.json").get("model_max_length")
    limits = [int(limit) for limit in (tokens, window) if limit and 0 < limit < LARGEST_LENGTH]
    return min(limits, default=None)
