"""The settings of methods that make no dense vector: late interaction (ColBERT) and learned sparse (SPLADE).

They are a part of the method, so a record says all of them. `published_late_interaction.py` and `published_sparse.py`
read them from a model's folder.
"""

from dataclasses import dataclass
from typing import Literal

from retbench.errors import DataError


@dataclass(frozen=True)
class LateInteraction:
    """How a text becomes one vector per token, and how the vectors of a query and a document are compared (MaxSim).

    `query_length` and `document_length` are the most tokens. A query with fewer tokens than `expansion_length` gets
    expansion tokens (`expansion_token`, else the tokenizer's mask token, else its end-of-sequence token) up to that
    number. The vectors of those tokens count; other tokens read them only with `expansion_attended`. The vectors of
    `skipped_words` do not count in the texts of `skipped_in`; with `kept_tokens` only those token ids of a document
    count. `markers` are prefixes that the tokenizer reads as one
    token. With `average` a score is divided by the number of the query's vectors.
    """

    query_length: int | None = None
    document_length: int | None = None
    expansion_length: int | None = None
    expansion_attended: bool = False
    expansion_token: str | None = None
    skipped_words: tuple[str, ...] = ()
    skipped_in: tuple[Literal["query", "document"], ...] = ("document",)
    kept_tokens: tuple[int, ...] = ()
    markers: tuple[str, ...] = ()
    average: bool = False

    def __post_init__(self) -> None:
        for name in ("query_length", "document_length", "expansion_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"{name} = {value} is no number of tokens", "give 1 or more")


@dataclass(frozen=True)
class LearnedSparse:
    """How the logits of a masked language model become term weights, one for each token of the vocabulary.

    A weight is log(1 + relu(logit)), with `double_log` the same logarithm twice; `pooling` is over the tokens of the
    text. `max_terms` keeps the largest weights. With `static_queries` a query needs no model: each of its tokens has
    the stored weight of that token.
    """

    pooling: Literal["max", "sum"] = "max"
    double_log: bool = False
    max_terms: int | None = None
    static_queries: bool = False

    def __post_init__(self) -> None:
        if self.max_terms is not None and self.max_terms < 1:
            raise DataError(f"max_terms = {self.max_terms} keeps no term", "give 1 or more")
