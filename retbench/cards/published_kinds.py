"""What kind of model a published folder is: a dense, sparse or multi-vector embedder, or a cross-encoder.

The folder's own files say it: the model type in `config_sentence_transformers.json`, the classes in `modules.json`, the
architecture in `config.json`. A kind that is not known is an error, because its states are not meant to be pooled.
"""

from pathlib import Path
from typing import Literal

from retbench.cards.method import Method
from retbench.cards.model import ModelCard
from retbench.cards.published_modules import read_architectures, read_module_types, read_optional_object
from retbench.cards.published_page_retriever import LAYOUTS
from retbench.errors import DataError

FolderKind = Literal["dense", "sparse", "multi-vector", "cross-encoder"]

CONFIG_FILE = "config_sentence_transformers.json"
DESCRIPTIONS: dict[FolderKind, str] = {
    "multi-vector": "a late-interaction model (ColBERT): it has a vector per token, compared by MaxSim",
    "sparse": "a sparse encoder (SPLADE): it has weights of words, not a dense vector",
    "cross-encoder": "a cross-encoder: it scores a query and a document together and has no vectors",
}
MULTI_VECTOR_ARCHITECTURES = ("HF_ColBERT", *LAYOUTS)
KIND_BY_TYPE: dict[str, FolderKind] = {
    "SentenceTransformer": "dense",
    "SparseEncoder": "sparse",
    "MultiVectorEncoder": "multi-vector",
    "ColBERT": "multi-vector",
    "CrossEncoder": "cross-encoder",
}
KIND_BY_MODULE: dict[str, FolderKind] = {
    "SpladePooling": "sparse",
    "MLMTransformer": "sparse",
    "SparseAutoEncoder": "sparse",
    "CSRSparsity": "sparse",
    "SparseStaticEmbedding": "sparse",
    "IDF": "sparse",
    "MultiVectorMask": "multi-vector",
    "LogitScore": "cross-encoder",
}


def find_folder_kind(folder: Path) -> FolderKind:
    """Return the kind of a folder, `dense` for a bare model; raise an error for a kind that is not known."""
    model_type = str(read_optional_object(folder / CONFIG_FILE).get("model_type", "SentenceTransformer"))
    if model_type not in KIND_BY_TYPE:
        raise DataError(
            f"{folder} is a model of the unknown type {model_type!r}",
            "pooling its states would score another model: dense, sparse and late-interaction embedders are supported",
        )
    if any(name in MULTI_VECTOR_ARCHITECTURES for name in read_architectures(folder)):
        return "multi-vector"
    for module_type in read_module_types(folder) if KIND_BY_TYPE[model_type] == "dense" else ():
        if module_type.startswith("pylate."):
            return "multi-vector"
        if kind := KIND_BY_MODULE.get(module_type.rpartition(".")[2]):
            return kind
    return KIND_BY_TYPE[model_type]


def is_cross_encoder(folder: Path) -> bool:
    """Whether a folder's own files say that it is a cross-encoder."""
    return find_folder_kind(folder) == "cross-encoder"


def require_encoder(card: ModelCard, folder: Path | None = None) -> None:
    """Raise an error for a cross-encoder, by its card or its folder, where a model is to give vectors."""
    if card.kind == "cross-encoder" or (folder and is_cross_encoder(folder)):
        name = folder or (card.weights and card.weights.path) or card.name
        raise DataError(f"{name} is {DESCRIPTIONS['cross-encoder']}", f"rerank with it: --rerank cross:model={name}")


def require_fitting_method(folder: Path, method: Method) -> None:
    """Raise an error for a method that makes something else of a text than a folder was published for."""
    kind = find_folder_kind(folder)
    if kind in ("sparse", "multi-vector") and method.vector_kind != kind:
        raise DataError(
            f"{folder} is {DESCRIPTIONS[kind]}",
            "pooling its states would score another model: leave --method out, or name as-published",
        )
    if kind != method.vector_kind != "dense":
        raise DataError(
            f"method {method.name} is {method.vector_kind}, and {folder} is no such model",
            "leave --method out, or use a folder of that kind",
        )
