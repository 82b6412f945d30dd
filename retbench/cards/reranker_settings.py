"""The reranker as it is typed: `name:key=value,key=value`. The fields of its dataclass are the keys.

vectors    cosine with the plain query: the fair baseline of every reranker that looks at vectors
rocchio    the query's vector moved towards those of the first documents
e2rank     one embedding of a prompt that lists the first documents (arXiv 2510.22733)
listwise   a language model writes the order of a list, with or without the first stage's scores (arXiv 2506.14086)
likelihood how likely the query is after a document's bottleneck, by a language model (arXiv 2504.05216)
ql         the same over words; `ql:model=NAME` is `likelihood:model=NAME`
pointwise  a language model says yes or no to each document; the order is by the odds of yes
"""

from dataclasses import dataclass, fields
from typing import Any, Literal

from retbench.cards import options
from retbench.errors import DataError, UsageError, suggest_names


@dataclass(frozen=True)
class VectorsSettings:
    """Candidates by cosine: `depth` of them, by the run's own `model` and `method` unless others are named."""

    model: str | None = None
    method: str | None = None
    depth: int = 100

    def __post_init__(self) -> None:
        require_positive(self, "depth")


@dataclass(frozen=True)
class RocchioSettings(VectorsSettings):
    """alpha x query + beta x mean of the first `documents` - gamma x mean of the last `documents`."""

    documents: int = 10
    alpha: float = 1.0
    beta: float = 0.75
    gamma: float = 0.0

    def __post_init__(self) -> None:
        require_positive(self, "depth", "documents")


@dataclass(frozen=True)
class E2RankSettings(VectorsSettings):
    """The first `documents`, each cut at `words` words, are listed in the prompt.

    With a `window`, candidates are put in order window by window from the last to the first, `step` apart; without one
    (0) all of them at once. `form`: the chat template where there is one, or the same text through the method's own
    template. `length` bounds the prompt's tokens; by default the model's own limit does.
    """

    documents: int = 20
    words: int = 1024
    window: int = 0
    step: int = 10
    form: Literal["auto", "chat", "plain"] = "auto"
    length: int | None = None

    def __post_init__(self) -> None:
        require_positive(self, "depth", "words", "step")
        if self.documents < 2:
            raise DataError(f"documents={self.documents} is no list", "give documents=2 or more")
        require_valid_window(self.window, self.step)


@dataclass(frozen=True)
class PointwiseSettings:
    """`depth` candidates, each document cut at `cut` tokens (words, behind an endpoint), are shown to `model`.

    `scores` are written beside the documents: as they are (`raw`), between 0 and 1 over the candidates of a query
    (`minmax`), between 0 and 100 (`percent`), or raw ones of other candidates (`shuffled`, a control). `order=shuffled`
    shows the candidates in an order that `seed` draws, the other control.
    """

    model: str | None = None
    engine: Literal["transformers", "vllm", "endpoint"] = "transformers"
    depth: int = 100
    cut: int = 300
    scores: Literal["none", "raw", "minmax", "percent", "shuffled"] = "none"
    order: Literal["given", "shuffled"] = "given"
    seed: int = 1

    def __post_init__(self) -> None:
        require_positive(self, "depth", "cut")


@dataclass(frozen=True)
class ListwiseSettings(PointwiseSettings):
    """Candidates are put in order window by window, from the last to the first; `window=0` shows all of them at once.

    An answer may have `written` tokens; 0 is what a list of that length needs. With `engine=vllm` an answer is held to
    the form of a list.
    """

    window: int = 20
    step: int = 10
    written: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "depth", "cut", "step")
        require_valid_window(self.window, self.step)


@dataclass(frozen=True)
class QueryLikelihoodSettings:
    """`depth` candidates by log P(query | document), by a `model` with a language-model head (recipe llm-ql)."""

    model: str | None = None
    depth: int = 20

    def __post_init__(self) -> None:
        require_positive(self, "depth")


@dataclass(frozen=True)
class LexicalQLSettings:
    """`depth` candidates by log P(query | document) over words, smoothed by the collection's with weight `mu`."""

    depth: int = 100
    mu: float = 2000.0

    def __post_init__(self) -> None:
        require_positive(self, "depth", "mu")


RerankerSettings = (
    VectorsSettings
    | RocchioSettings
    | E2RankSettings
    | PointwiseSettings
    | ListwiseSettings
    | QueryLikelihoodSettings
    | LexicalQLSettings
)

SETTINGS_CLASSES: dict[str, type[Any]] = {
    "vectors": VectorsSettings, "rocchio": RocchioSettings, "e2rank": E2RankSettings, "listwise": ListwiseSettings, "pointwise": PointwiseSettings,
    "likelihood": QueryLikelihoodSettings, "ql": LexicalQLSettings,
}  # fmt: skip


@dataclass(frozen=True)
class RerankerRequest:
    """One reranker: as it was typed, in one spelling, and what that means."""

    spelling: str
    name: str
    settings: RerankerSettings


def parse_reranker(text: str) -> RerankerRequest:
    """Read `name:key=value,key=value`."""
    name, changes = options.split_options(text)
    name = "likelihood" if name == "ql" and "model" in changes else name
    if name not in SETTINGS_CLASSES:
        raise UsageError(f"there is no reranker {name!r}", suggest_names(name, SETTINGS_CLASSES))
    return build_request(name, options.apply_options(SETTINGS_CLASSES[name](), changes))


def build_request(name: str, settings: RerankerSettings) -> RerankerRequest:
    """A reranker by its settings; what is left at its default is not spelled out."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    changes = {key: str(value) for key, value in values.items() if value != getattr(SETTINGS_CLASSES[name](), key)}
    return RerankerRequest(options.join_options(name, changes), name, settings)


def require_positive(settings: Any, *names: str) -> None:
    """Refuse numbers below one."""
    for name in names:
        if getattr(settings, name) < 1:
            raise DataError(f"{name}={getattr(settings, name)} leaves nothing to rerank", f"give {name}=1 or more")


def require_valid_window(window: int, step: int) -> None:
    """Refuse windows that no document could climb through."""
    if window < 0 or window == 1 or (window and step > window):
        raise DataError(f"window={window},step={step}: no document could climb", "give a step within the window")
