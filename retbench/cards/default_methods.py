"""The method of a model when the user names none."""

from retbench.cards import catalog
from retbench.cards.method import Method
from retbench.cards.model import ModelCard

BM25_METHOD = Method("bm25", "words, no vectors", "exact", "library bm25s", "mean")
ANSERINI_METHOD = Method(
    "bm25", "words, no vectors", "exact", "castorini/anserini: Lucene's EnglishAnalyzer and BM25Similarity", "mean"
)
QUERY_LIKELIHOOD_METHOD = Method(
    "query-likelihood", "words, no vectors", "ours", "Dirichlet smoothing, Zhai and Lafferty", "mean"
)
CANDIDATES_METHOD = Method(
    "candidates", "the order of the collection's candidate lists", "exact", "the source of the collection", "mean"
)
RANDOM_METHOD = Method("random", "documents drawn by chance, the floor of every score", "ours", "no model", "mean")
METHOD_BY_VARIANT = {
    "dirichlet": QUERY_LIKELIHOOD_METHOD,
    "anserini": ANSERINI_METHOD,
    "candidates": CANDIDATES_METHOD,
    "random": RANDOM_METHOD,
}


def resolve_methods(card: ModelCard, requested: list[Method]) -> list[Method]:
    """Return the requested methods, or the card's default; a lexical model has only one."""
    if card.kind == "lexical":
        variant = card.lexical.variant if card.lexical else None
        return [METHOD_BY_VARIANT.get(variant or "", BM25_METHOD)]
    default = card.method
    if default and default.own:
        return requested or [default.own]
    return requested or [catalog.load_methods().find(default.default if default else "mean")]
