"""The method of a learned sparse encoder (SPLADE), read from its folder of sentence-transformers without torch.

Two forms are followed: a masked language model with SpladePooling, and the same behind a Router whose query route is a
SparseStaticEmbedding (an inference-free or doc-only model). What else a folder says is an error that names it.
"""

from pathlib import Path
from typing import Any

from retbench.cards.method import Similarity
from retbench.cards.published_modules import (
    BACKBONES,
    PublishedModule,
    find_backbone_folder,
    list_modules,
    read_optional_object,
    read_routes,
)
from retbench.cards.published_vectors import LearnedSparse
from retbench.errors import DataError

STATIC_QUERIES = ("SparseStaticEmbedding", "IDF")
SIMILARITIES: dict[str, Similarity] = {"dot": "dot", "cosine": "cosine"}
FILL_MASK = "fill-mask"
LOGITS = {"method": "forward", "method_output_name": "logits"}


def read_sparse_settings(folder: Path, config: dict[str, Any], transformer: dict[str, Any]) -> dict[str, Any]:
    """The fields of the method, besides its name and prompts. `config` is the model's, `transformer` the backbone's."""
    routes = read_routes(folder)
    document = routes.get("document") or list_modules(folder)
    kinds = [module.kind for module in document]
    problems = {
        f"its modules are {', '.join(kinds)}": len(kinds) != 2
        or kinds[0] not in BACKBONES
        or kinds[1] != "SpladePooling",
        f"its task is {transformer.get('transformer_task')}": transformer.get("transformer_task", FILL_MASK)
        != FILL_MASK,
        "it does not pool the logits of its language-model head": transformer.get("modality_config", {"text": LOGITS})
        != {"text": LOGITS},
        f"its similarity is {config.get('similarity_fn_name')!r}": (config.get("similarity_fn_name") or "dot")
        not in SIMILARITIES,
    }
    for problem, is_found in problems.items():
        if is_found:
            raise build_folder_error(folder, problem)
    has_static_queries = _has_static_queries(folder, routes)
    settings = document[1].settings
    return {
        "kind": "sparse",
        "pooling": "model",
        "similarity": SIMILARITIES[config.get("similarity_fn_name") or "dot"],
        "learned_sparse": LearnedSparse(
            settings.get("pooling_strategy", "max"), settings.get("activation_function", "relu") == "log1p_relu",
            config.get("max_active_dims"), has_static_queries,
        ),
        "title": "the modules of the folder: " + ", ".join(kinds) + (", static queries" if has_static_queries else ""),
    }  # fmt: skip


def _has_static_queries(folder: Path, routes: dict[str, list[PublishedModule]]) -> bool:
    """Whether queries are looked up in a table; raise an error for any other route of queries."""
    if not routes:
        return False
    query = routes.get("query", [])
    kinds = [module.kind.rpartition(".")[2] for module in query]
    if set(routes) != {"query", "document"} or len(kinds) != 1 or kinds[0] not in STATIC_QUERIES:
        raise build_folder_error(folder, f"its routes are {', '.join(routes)}, that of queries is {', '.join(kinds)}")
    if not (folder / query[0].path / "model.safetensors").is_file():
        raise build_folder_error(folder, f"{query[0].path} has no model.safetensors with the weights of query tokens")
    theirs, ours = (
        {key: value for key, value in read_optional_object(part / "tokenizer.json").items() if key not in LIMITS}
        for part in (folder / query[0].path, find_backbone_folder(folder))
    )
    if theirs != ours:
        raise build_folder_error(folder, "its queries have another tokenizer than its documents")
    return True


LIMITS = ("truncation", "padding")  # of a tokenizer, set again by every call


def find_static_folder(folder: Path) -> Path:
    """The folder with the weights of query tokens."""
    return folder / read_routes(folder)["query"][0].path


def build_folder_error(folder: Path, problem: str) -> DataError:
    """An error for a folder that cannot be followed as its own files say."""
    return DataError(
        f"{folder} cannot be run as published: {problem}", "use another model, or report what this one needs"
    )
