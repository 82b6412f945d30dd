"""The method of a published embedder: what a sentence-transformers folder says about prompts, pooling and similarity.

A folder without a card of ours is run as its own files say: `modules.json` and the folder of each module, `prompts` and
`default_prompt_name`, `similarity_fn_name`, and the length limit. What a method cannot express is an error that names
it, never left out. `published_sparse.py` and `published_late_interaction.py` read what is special in those kinds; a
cross-encoder is a reranker.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from retbench.cards.method import DESCRIPTIVE_FIELDS, ROLES, Method, Pooling, Similarity
from retbench.cards.model import DefaultMethod, ModelCard
from retbench.cards.published_kinds import CONFIG_FILE, find_folder_kind, is_cross_encoder
from retbench.cards.published_late_interaction import read_late_interaction
from retbench.cards.published_modules import (
    MODULES_FILE,
    PublishedModule,
    find_backbone_folder,
    read_modules,
    read_optional_object,
)
from retbench.cards.published_page_retriever import find_page_retriever, read_page_retriever
from retbench.cards.published_sparse import read_sparse_settings
from retbench.cards.vision_config import describe_bare_model, get_language_settings
from retbench.errors import DataError

METHOD_NAME = "as-published"
TRANSFORMER_FILES = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
DOCUMENT_PROMPTS = ("document", "passage", "corpus")
POOLINGS: dict[str, Pooling] = {"cls": "first", "mean": "mean", "weightedmean": "weighted", "lasttoken": "last"}
PLAIN_MODULES = ("Transformer", "Pooling", "Normalize", "Dropout")
LARGEST_LENGTH = 1_000_000  # tokenizers without a limit have one far above

# Arguments of transformers in the config of the Transformer module that change no float32 vector.
HARMLESS_ARGUMENTS = {"dtype", "torch_dtype", "attn_implementation", "trust_remote_code", "padding_side", "token"}
ARGUMENT_FIELDS = ("model_args", "tokenizer_args", "config_args", "model_kwargs", "processor_kwargs", "config_kwargs",
                   "processing_kwargs")  # fmt: skip


@dataclass(frozen=True)
class PublishedModel:
    """The method of a folder, its length limit, and notes about what is not used."""

    method: Method
    max_length: int | None
    notes: tuple[str, ...]


def is_published(folder: Path) -> bool:
    """Whether a folder says how its model is used: by modules of sentence-transformers, or as Stanford's ColBERT."""
    return (folder / MODULES_FILE).is_file() or find_folder_kind(folder) == "multi-vector"


def read_published_model(folder: Path) -> PublishedModel:
    """Read the method of a sentence-transformers folder; raise an error for what a method cannot express."""
    builders = {"sparse": _build_sparse_model, "multi-vector": _build_late_interaction_model}
    try:
        return builders.get(find_folder_kind(folder), _build_published_model)(folder)
    except (AttributeError, TypeError, ValueError) as problem:  # a field of another type
        raise _make_error(folder, f"one of its config files is damaged: {problem}") from problem


def _build_published_model(folder: Path) -> PublishedModel:
    config = read_optional_object(folder / CONFIG_FILE)
    transformer = read_transformer_settings(folder)
    modules = read_modules(folder)
    _check_transformer(folder, transformer)
    prompts = {str(name): str(text or "") for name, text in (config.get("prompts") or {}).items()}
    used = _choose_prompts(prompts, config.get("default_prompt_name"))
    _check_prompts(folder, modules, [prompts[name] for name in used.values()])
    prefixes = {role: prompts[name] for role, name in used.items()}
    method = Method(
        METHOD_NAME, _describe_modules(modules), "exact", "the folder's own files for sentence-transformers",
        _choose_pooling(modules), query=prefixes.get("query", "") + "{text}",
        document=prefixes.get("document", "") + "{text}", similarity=_read_similarity(folder, config, modules),
    )  # fmt: skip
    unused = sorted(name for name, text in prompts.items() if text and name not in used.values())
    notes = (f"Prompts that a search does not use: {', '.join(unused)}.",) if unused else ()
    return PublishedModel(method, _read_max_length(folder, transformer), notes)


def _build_sparse_model(folder: Path) -> PublishedModel:
    config, backbone = read_optional_object(folder / CONFIG_FILE), find_backbone_folder(folder)
    transformer = read_transformer_settings(backbone)
    fields_of_kind = read_sparse_settings(folder, config, transformer)
    _check_arguments(folder, transformer)
    prompts = {str(name): str(text or "") for name, text in (config.get("prompts") or {}).items()}
    return _build_model_of_kind(folder, fields_of_kind, prompts, config, _read_max_length(backbone, transformer))


def _build_late_interaction_model(folder: Path) -> PublishedModel:
    config, transformer = read_optional_object(folder / CONFIG_FILE), read_transformer_settings(folder)
    if layout := find_page_retriever(folder):
        own_fields = read_page_retriever(folder, layout)
        return _build_model_of_kind(folder, own_fields, {}, config, _read_max_length(folder, transformer))
    fields_of_kind, prompts = read_late_interaction(folder, config, transformer)
    lengths = dict.fromkeys(("query_length", "document_length", "query_expansion"))
    _check_transformer(folder, {**transformer, **lengths})
    return _build_model_of_kind(folder, fields_of_kind, prompts, config, _read_max_length(folder, transformer))


def _build_model_of_kind(
    folder: Path, fields_of_kind: dict[str, Any], prompts: dict[str, str], config: dict[str, Any], length: int | None
) -> PublishedModel:
    used = _choose_prompts(prompts, config.get("default_prompt_name"))
    _check_prompts(folder, [], [prompts[name] for name in used.values()])
    templates: dict[str, Any] = {role: prompts.get(used.get(role, ""), "") + "{text}" for role in ROLES}
    source = "the folder's own files"
    return PublishedModel(
        Method(name=METHOD_NAME, fidelity="exact", source=source, **{**templates, **fields_of_kind}), length, ()
    )


def describe_published_card(card: ModelCard, folder: Path) -> ModelCard:
    """A card that names no method gets that of the folder, or `mean`. A method that cannot be followed is an error
    when it is used: another one can still be named. A cross-encoder gets its kind."""
    if card.method is not None or card.kind == "cross-encoder":
        return card
    if is_cross_encoder(folder):
        return replace(card, kind="cross-encoder")
    if not is_published(folder):
        return describe_bare_model(card, folder)
    try:
        published = read_published_model(folder)
    except DataError as problem:
        reason = problem.cause.removeprefix(f"{folder} ").replace(str(folder), folder.name)
        return replace(card, method=DefaultMethod(METHOD_NAME), notes=(*card.notes, f"The folder {reason}."))
    return replace(
        card,
        method=DefaultMethod(METHOD_NAME, published.method),
        max_length=card.max_length or published.max_length,
        notes=(*card.notes, *published.notes),
    )


def follow_published_model(method: Method, folder: Path) -> Method:
    """The method `as-published` with prompts and pooling of a folder, where the user changed neither."""
    if method.name.partition(":")[0] != METHOD_NAME or not is_published(folder):
        return method
    changed = {
        field.name: getattr(method, field.name)
        for field in fields(Method)
        if field.name not in (*DESCRIPTIVE_FIELDS, "name")
        and getattr(method, field.name) not in (field.default, "model")
    }
    published = read_published_model(folder).method
    return replace(published, name=method.name, fidelity="ours", **changed) if changed else published


def _choose_prompts(prompts: dict[str, str], default: Any) -> dict[str, str]:
    """The names of the prompts of both roles. A folder that has none for either role uses its default prompt."""
    chosen = {
        role: next((name for name in names if prompts.get(name)), None)
        for role, names in (("query", ("query",)), ("document", DOCUMENT_PROMPTS))
    }
    if not any(chosen.values()) and prompts.get(str(default)):
        return {"query": str(default), "document": str(default)}
    return {role: name for role, name in chosen.items() if name}


def _check_prompts(folder: Path, modules: list[PublishedModule], prompts: list[str]) -> None:
    if any("{text}" in prompt or "{instruction}" in prompt for prompt in prompts):
        raise _make_error(folder, "a prompt contains a placeholder of our templates")
    for module in modules:
        modes = module.get_pooling_modes()
        if any(prompts) and module.settings.get("include_prompt") is False and modes != ("lasttoken",):
            raise _make_error(folder, "its pooling leaves out the tokens of the prompt (include_prompt = false)")


def _choose_pooling(modules: list[PublishedModule]) -> Pooling:
    """Our own pooling if the modules are a transformer and one pooling, else the modules themselves."""
    modes = [mode for module in modules for mode in module.get_pooling_modes()]
    is_plain = len(modes) == 1 and all(module.kind in PLAIN_MODULES and module.reads_pooled for module in modules)
    return POOLINGS.get(modes[0], "model") if is_plain else "model"


def _describe_modules(modules: list[PublishedModule]) -> str:
    return "the modules of the folder: " + ", ".join(module.describe() for module in modules)


def _read_similarity(folder: Path, config: dict[str, Any], modules: list[PublishedModule]) -> Similarity:
    """Cosine unless the folder says otherwise; of vectors of length one the dot product is the cosine."""
    name = config.get("similarity_fn_name") or "cosine"
    is_normalised = modules[-1].kind == "Normalize"
    if name == "cosine" or (name == "dot" and is_normalised):
        return "cosine"
    if name == "dot":
        return "dot"
    raise _make_error(folder, f"its similarity is {name!r}")


def read_transformer_settings(folder: Path) -> dict[str, Any]:
    """The settings of the Transformer module; empty if the folder has none."""
    return next((found for name in TRANSFORMER_FILES if (found := read_optional_object(folder / name))), {})


def _check_transformer(folder: Path, settings: dict[str, Any]) -> None:
    """Raise an error for settings of the Transformer module that change its states."""
    _check_arguments(folder, settings)
    problems = {
        f"its task is {settings.get('transformer_task')}": settings.get("transformer_task", "feature-extraction")
        != "feature-extraction",
        "it puts each text into a chat": "text" not in settings.get("modality_config", {"text": {}}),
        "it does not pool the last hidden state": not _reads_last_state(settings),
        "it truncates its vectors (truncate_dim)": bool(read_optional_object(folder / CONFIG_FILE).get("truncate_dim")),
        "it has other lengths for queries (query_length)": bool(settings.get("query_length")),
        "it has another length for documents (document_length)": bool(settings.get("document_length")),
        "it expands queries (query_expansion)": bool(settings.get("query_expansion")),
    }
    for problem, is_found in problems.items():
        if is_found:
            raise _make_error(folder, problem)


def _check_arguments(folder: Path, settings: dict[str, Any]) -> None:
    """Raise an error for settings that change the tokens or the states of any kind of model."""
    arguments = {name for field in ARGUMENT_FIELDS for name in settings.get(field) or {}} - HARMLESS_ARGUMENTS
    if arguments:
        raise _make_error(folder, f"it gives transformers the argument {min(arguments)}")
    if settings.get("do_lower_case") and not _has_lower_case(find_backbone_folder(folder)):
        raise _make_error(folder, "it puts texts into lower case, which its tokenizer does not")


def _reads_last_state(settings: dict[str, Any]) -> bool:
    text = settings.get("modality_config", {}).get("text", {})
    output = text.get("method_output_name", "last_hidden_state")
    names = (text.get("method", "forward"), settings.get("module_output_name", "token_embeddings"))
    return output in ("last_hidden_state", ["last_hidden_state"]) and names == ("forward", "token_embeddings")


def _has_lower_case(folder: Path) -> bool:
    normalizer = read_optional_object(folder / "tokenizer.json").get("normalizer") or {}
    parts = [normalizer, *normalizer.get("normalizers", [])]
    return any(part.get("type") == "Lowercase" or part.get("lowercase") for part in parts)


def _read_max_length(folder: Path, settings: dict[str, Any]) -> int | None:
    """The length limit: of the folder, else of the tokenizer and the model."""
    if limit := read_sequence_limit(folder, settings):
        return limit
    config = read_optional_object(folder / "config.json")
    positions = get_language_settings(config).get("max_position_embeddings")
    tokens = read_optional_object(folder / "tokenizer_config.json").get("model_max_length")
    limits = [int(limit) for limit in (positions, tokens) if limit and 0 < limit < LARGEST_LENGTH]
    return min(limits, default=None)


def read_sequence_limit(folder: Path, settings: dict[str, Any]) -> int | None:
    """The limit that the folder states for itself; None if it states none, or one that no text reaches."""
    limit = settings.get("max_seq_length")
    if not limit:
        return None
    if type(limit) not in (int, float) or not limit >= 1:
        problem = f"{folder} cannot be run as published: max_seq_length is {limit!r:.40}"
        raise DataError(problem, "write a number of tokens, 1 or more")
    return int(limit) if limit < LARGEST_LENGTH else None


def _make_error(folder: Path, problem: str) -> DataError:
    return DataError(
        f"{folder} cannot be run as published: {problem}",
        "name a method of ours, such as --method mean (another model)",
    )
