"""The usual method: how a model is used when nobody says otherwise."""

from retbench.cards import catalog
from retbench.cards.method import Method
from retbench.cards.model import ModelCard

BM25_METHOD = Method("bm25", "words, no vectors", "exact", "library bm25s", "mean")
QUERY_LIKELIHOOD_METHOD = Method(
    "query-likelihood", "words, no vectors", "ours", "Dirichlet smoothing, Zhai and Lafferty", "mean"
)


def resolve_methods(card: ModelCard, requested: list[Method]) -> list[Method]:
    """The methods asked for, or the card's own; a lexical model has only one."""
    if card.kind == "lexical":
        return [QUERY_LIKELIHOOD_METHOD if card.lexical and card.lexical.variant == "dirichlet" else BM25_METHOD]
    own = card.method
    if own and own.own:
        return requested or [own.own]
    return requested or [catalog.load_methods().find(own.default if own else "mean")]
