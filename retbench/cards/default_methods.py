"""The usual method: how a model is used when nobody says otherwise."""

from retbench.cards import catalog
from retbench.cards.method import Method
from retbench.cards.model import ModelCard

LEXICAL = Method("bm25", "words, no vectors", "exact", "library bm25s", "mean")
LIKELIHOOD = Method("query-likelihood", "words, no vectors", "ours", "Dirichlet smoothing, Zhai and Lafferty", "mean")


def methods_of(card: ModelCard, wanted: list[Method]) -> list[Method]:
    """The methods asked for, or the card's own; a lexical model has only one."""
    if card.kind == "lexical":
        return [LIKELIHOOD if card.lexical and card.lexical.variant == "dirichlet" else LEXICAL]
    own = card.method
    if own and own.own:
        return wanted or [own.own]
    return wanted or [catalog.methods().find(own.default if own else "mean")]
