"""The method of a late-interaction model (ColBERT), read from its folder without torch.

Three kinds of folders are followed: those of sentence-transformers' MultiVectorEncoder, those of PyLate (prefixes,
lengths and skip list stand in the model's config, the last steps stand nowhere), and those of Stanford's ColBERT
(`artifact.metadata`, with the projection among the weights). What else a folder says is an error that names it.
"""

import string
from pathlib import Path
from typing import Any

from retbench.cards.method import ROLES
from retbench.cards.published_modules import PublishedModule, list_modules, read_architectures, read_optional_object
from retbench.cards.published_sparse import build_folder_error
from retbench.cards.published_vectors import LateInteraction

STANFORD_ARCHITECTURE, METADATA_FILE = "HF_ColBERT", "artifact.metadata"
EXPANSION_LENGTH = 32  # ColBERT's, where a folder of PyLate or Stanford gives none
TOKENS = "token_embeddings"
PYLATE_KEYS = (
    "query_length", "document_length", "query_expansion", "do_query_expansion", "attend_to_expansion_tokens",
    "attend_to_mask_tokens", "query_prefix", "document_prefix", "skiplist_words",
)  # fmt: skip
SIMILARITIES = ("maxsim", "meanmaxsim")


def is_stanford(folder: Path) -> bool:
    """Whether a folder is one of Stanford's ColBERT, without modules."""
    return STANFORD_ARCHITECTURE in read_architectures(folder) and not list_modules(folder)


def list_token_layers(folder: Path) -> list[PublishedModule]:
    """The modules that compute on token states: Dense and Normalize, in their order."""
    return [module for module in list_modules(folder) if _get_kind(module) in ("Dense", "Normalize")]


def _get_kind(module: PublishedModule) -> str:
    return "Dense" if module.type == "pylate.models.Dense.Dense" else module.kind


def read_late_interaction(
    folder: Path, config: dict[str, Any], transformer: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """The fields of the method besides its name, and its prompts by role."""
    if is_stanford(folder):
        settings, prompts = _read_stanford(read_optional_object(folder / METADATA_FILE))
        return _build_fields(settings, "cosine", "a projection, as in Stanford's ColBERT"), prompts
    modules = list_modules(folder)
    _check_modules(folder, modules)
    kinds = [_get_kind(module) for module in modules]
    is_pylate = "MultiVectorMask" not in kinds
    prompts = {str(name): str(text or "") for name, text in (config.get("prompts") or {}).items()}
    settings = _read_pylate(config, transformer) if is_pylate else _read_native(folder, config, modules, transformer)
    for role in ("query", "document"):
        prefix = str(config.get(f"{role}_prefix") or "")
        prompts[role] = prefix + prompts.get(role, "").removeprefix(prefix)
    is_normalised = is_pylate or (kinds[-1] == "Normalize" and modules[-1].settings.get("module_input_name") == TOKENS)
    title = "the modules of the folder: " + ", ".join(module.describe().rpartition(".")[2] for module in modules)
    return _build_fields(settings, "cosine" if is_normalised else "dot", title), prompts


def _build_fields(settings: LateInteraction, similarity: str, title: str) -> dict[str, Any]:
    return {
        "kind": "multi-vector", "pooling": "model", "similarity": similarity, "late_interaction": settings,
        "title": title,
    }  # fmt: skip


def _check_modules(folder: Path, modules: list[PublishedModule]) -> None:
    """Raise an error for a module that is not followed, or that computes on something else than token states."""
    kinds = [_get_kind(module) for module in modules]
    if kinds[0] != "Transformer" or modules[0].path:
        raise build_folder_error(folder, f"it starts with {kinds[0]}, not with a Transformer in the folder itself")
    known = ("Dense", "Normalize", "MultiVectorMask", "Dropout")
    for module, kind in list(zip(modules, kinds, strict=True))[1:]:
        if kind not in known:
            raise build_folder_error(folder, f"it has the module {module.kind}")
        names = {module.settings.get(f"module_{end}_name") or TOKENS for end in ("input", "output")}
        if kind == "Dense" and names != {TOKENS}:
            raise build_folder_error(folder, "it has a Dense module that does not compute on token states")
        if kind == "Dense" and not (folder / module.path / "model.safetensors").is_file():
            raise build_folder_error(folder, f"{module.path} has no model.safetensors (a pickle can run code)")


def _read_native(
    folder: Path, config: dict[str, Any], modules: list[PublishedModule], transformer: dict[str, Any]
) -> LateInteraction:
    name = config.get("similarity_fn_name") or SIMILARITIES[0]
    if name not in SIMILARITIES:
        raise build_folder_error(folder, f"its similarity is {name!r}")
    (mask,) = (module.settings for module in modules if module.kind == "MultiVectorMask")
    tasks: Any = mask.get("skiplist_tasks") or ["document"]
    return LateInteraction(
        **_read_lengths(transformer.get("query_expansion"), transformer.get("query_length")),
        document_length=transformer.get("document_length"),
        skipped_words=tuple(mask.get("skiplist_words") or ()),
        skipped_in=tuple(role for role in ROLES if role in ([tasks] if isinstance(tasks, str) else tasks)),
        kept_tokens=tuple(map(int, mask.get("keep_only_token_ids") or ())),
        average=name == "meanmaxsim",
    )


def _read_lengths(expansion: dict[str, Any] | None, query_length: int | None) -> dict[str, Any]:
    """The most tokens of a query and its expansion; a `fixed` expansion also cuts."""
    if not expansion:
        return {"query_length": query_length}
    length = int(expansion["length"])
    longest = length if expansion.get("strategy") == "fixed" else query_length and max(query_length, length)
    return {
        "query_length": longest,
        "expansion_length": length,
        "expansion_attended": bool(expansion.get("attend")),
        "expansion_token": expansion.get("token"),
    }


def _read_pylate(config: dict[str, Any], transformer: dict[str, Any]) -> LateInteraction:
    """PyLate's defaults: queries are expanded, and documents lose the vectors of punctuation."""
    query_length = transformer.get("query_length") or config.get("query_length")
    expansion: dict[str, Any] | None = None
    if "query_expansion" in transformer or "query_expansion" in config:
        expansion = transformer.get("query_expansion") or config.get("query_expansion")
    elif any(key in config for key in PYLATE_KEYS) and config.get("do_query_expansion") is not False:
        attend = config.get("attend_to_expansion_tokens", config.get("attend_to_mask_tokens"))
        expansion = {"strategy": "fixed", "attend": attend, "length": query_length or EXPANSION_LENGTH}
    words = config.get("skiplist_words")
    return LateInteraction(
        **_read_lengths(expansion, query_length),
        document_length=transformer.get("document_length") or config.get("document_length"),
        skipped_words=tuple(string.punctuation if words is None else words),
        markers=tuple(str(config[key]) for key in ("query_prefix", "document_prefix") if config.get(key)),
    )


def _read_stanford(metadata: dict[str, Any]) -> tuple[LateInteraction, dict[str, str]]:
    markers = {
        role: f"{metadata.get(key) or default} "
        for role, key, default in (
            ("query", "query_token_id", "[unused0]"), ("document", "doc_token_id", "[unused1]"),
        )
    }  # fmt: skip
    length = int(metadata.get("query_maxlen") or EXPANSION_LENGTH)
    settings = LateInteraction(
        query_length=length, document_length=metadata.get("doc_maxlen"), expansion_length=length,
        expansion_attended=bool(metadata.get("attend_to_mask_tokens")),
        skipped_words=tuple(string.punctuation if metadata.get("mask_punctuation", True) else ()),
        markers=tuple(markers.values()),
    )  # fmt: skip
    return settings, markers
