"""Reranker settings from `--rerank name:key=value,key=value`. The fields of the dataclass are the keys.

vectors    the method's similarity with the plain query: the fair baseline of every reranker that uses embeddings
rocchio    the query vector moved towards the vectors of the first documents
e2rank     one embedding of a prompt that lists the first documents (arXiv 2510.22733)
listwise   a language model generates the order of a list, with or without first-stage scores (arXiv 2506.14086)
likelihood the likelihood of the query after a document's bottleneck, by a language model (arXiv 2504.05216)
ql         lexical query likelihood; `ql:model=NAME` is `likelihood:model=NAME`
pointwise  a language model answers yes or no for each document; the order is by the log-odds of yes
cross      a cross-encoder reads the query and a document together and gives a relevance score

The fields and their values are stored in records and hashed into settings-ids: do not rename them. A field that is
younger than the first records is left out while it has its default (`ADDED_FIELDS`), so that earlier ids stay.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from retbench.cards import options
from retbench.cards.model import SHORT_DTYPES, Dtype, EncoderDtype
from retbench.errors import DataError, UsageError, suggest_names


@dataclass(frozen=True)
class VectorsSettings:
    """`depth` candidates sorted by similarity, with the run's `model` and `method` unless others are given.

    `max_length` is the maximum number of tokens of their texts and `dtype` that of the model, as in `run --set`.
    """

    model: str | None = None
    method: str | None = None
    depth: int = 100
    max_length: int | None = None
    dtype: EncoderDtype | None = None

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
    """The prompt lists the first `documents`, each cut to `words` words.

    With a `window`, candidates are sorted window by window from the last to the first, `step` apart; with 0, all at
    once. `form` is the chat template, or `plain`: the same text in the method's template; `auto` uses the chat template
    if the model has one. `length` is the maximum number of prompt tokens; the default is the model's limit.
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
            raise DataError(f"documents={self.documents} is too few for a listwise prompt", "give documents=2 or more")
        require_valid_window(self.window, self.step)


@dataclass(frozen=True)
class PointwiseSettings:
    """`model` reads `depth` candidates, each document cut to `cut` tokens (words, behind an endpoint).

    `scores` writes first-stage scores beside the documents: as they are (`raw`), scaled to 0-1 over the candidates of a
    query (`minmax`), scaled to 0-100 (`percent`), or the raw scores of other candidates (`shuffled`, a control).
    `order=shuffled` shows the candidates in a random order from `seed`, the second control. `dtype` is that of a local
    model; the default is that of its card, else what the machine computes fast.
    """

    model: str | None = None
    engine: Literal["transformers", "vllm", "endpoint"] = "transformers"
    depth: int = 100
    cut: int = 300
    scores: Literal["none", "raw", "minmax", "percent", "shuffled"] = "none"
    order: Literal["given", "shuffled"] = "given"
    seed: int = 1
    dtype: Dtype | None = None

    def __post_init__(self) -> None:
        require_positive(self, "depth", "cut")
        self._check_dtype()

    def _check_dtype(self) -> None:
        if self.dtype and self.engine == "endpoint":
            raise DataError(
                f"dtype={self.dtype} does not apply with engine=endpoint", "leave dtype out: the server chooses its own"
            )


@dataclass(frozen=True)
class ListwiseSettings(PointwiseSettings):
    """Candidates are sorted window by window, from the last to the first; `window=0` shows all of them at once.

    `written` is the maximum number of answer tokens; with 0 it follows from the number of documents, or leaves room
    for the thought of a reasoning model. With `engine=vllm`, guided decoding restricts the answer to a list, except
    for a reasoning model.
    """

    window: int = 20
    step: int = 10
    written: int = 0

    def __post_init__(self) -> None:
        require_positive(self, "depth", "cut", "step")
        require_valid_window(self.window, self.step)
        self._check_dtype()


@dataclass(frozen=True)
class QueryLikelihoodSettings:
    """`depth` candidates sorted by log P(query | document) of a `model` with a language-model head (recipe llm-ql)."""

    model: str | None = None
    depth: int = 20
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the products; the weights stay float32

    def __post_init__(self) -> None:
        require_positive(self, "depth")


@dataclass(frozen=True)
class CrossEncoderSettings:
    """`depth` candidates sorted by the score that the cross-encoder `model` gives to query and document together.

    `max_length` is the maximum number of tokens of a pair; the default is the model's limit. `instruction` is for a
    model whose prompt has a place for one; the default is that of the task, else of the model.
    """

    model: str | None = None
    depth: int = 100
    max_length: int | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    instruction: str | None = None

    def __post_init__(self) -> None:
        require_positive(self, "depth")


@dataclass(frozen=True)
class LexicalQLSettings:
    """`depth` candidates sorted by log P(query | document) over words, with Dirichlet smoothing of weight `mu`."""

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
    | CrossEncoderSettings
    | LexicalQLSettings
)

SETTINGS_CLASSES: dict[str, type[Any]] = {
    "vectors": VectorsSettings,
    "rocchio": RocchioSettings,
    "e2rank": E2RankSettings,
    "listwise": ListwiseSettings,
    "pointwise": PointwiseSettings,
    "likelihood": QueryLikelihoodSettings,
    "cross": CrossEncoderSettings,
    "ql": LexicalQLSettings,
}


ADDED_FIELDS: dict[str, Any] = {"max_length": None, "instruction": None, "dtype": None}


def describe_settings(settings: RerankerSettings) -> dict[str, Any]:
    """Return the fields as a record stores them."""
    return {key: value for key, value in asdict(settings).items() if ADDED_FIELDS.get(key, key) != value}


@dataclass(frozen=True)
class RerankerRequest:
    """One requested reranker: its canonical spelling (defaults left out), its name and its settings."""

    spelling: str
    name: str
    settings: RerankerSettings


def parse_reranker(text: str) -> RerankerRequest:
    """Parse `name:key=value,key=value`."""
    name, changes = options.split_options(text)
    name = "likelihood" if name == "ql" and "model" in changes else name
    if name not in SETTINGS_CLASSES:
        raise UsageError(f"there is no reranker {name!r}", suggest_names(name, SETTINGS_CLASSES))
    if "dtype" in changes:
        changes["dtype"] = SHORT_DTYPES.get(changes["dtype"], changes["dtype"])
    return build_request(name, options.apply_options(SETTINGS_CLASSES[name](), changes))


def build_request(name: str, settings: RerankerSettings) -> RerankerRequest:
    """Build a request from settings; the spelling leaves out default values."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    changes = {key: str(value) for key, value in values.items() if value != getattr(SETTINGS_CLASSES[name](), key)}
    return RerankerRequest(options.join_options(name, changes), name, settings)


def require_positive(settings: Any, *names: str) -> None:
    """Raise if one of these settings is below 1."""
    for name in names:
        if getattr(settings, name) < 1:
            raise DataError(f"{name}={getattr(settings, name)} must be at least 1", f"give {name}=1 or more")


def require_valid_window(window: int, step: int) -> None:
    """Raise if a window holds fewer than two documents, or if the step is larger than the window."""
    if window < 0 or window == 1 or (window and step > window):
        raise DataError(
            f"window={window},step={step} cannot move a document up the list",
            "give window=2 or more (or 0: no windows), and a step no larger than the window",
        )
