"""What a corpus of any size will take, on paper: tokens, device hours, disk, network and cost (docs/scale.md).

Nothing is measured here. The speed is the user's: tokens a second from a finished run, or a device's peak and the share
of it that a benchmark reached.

    FLOP a token   2 x (parameters - vocabulary x width) + 2 x layers x width x mean tokens (causal attention)
    tokens         documents x mean tokens (and the queries')
    device hours   tokens / (tokens a second of one device) / 3600
    disk           (documents + queries) x bytes of a row
    search         2 x documents x queries x dimensions FLOP
"""

from dataclasses import dataclass
from typing import Any

from retbench.cards import catalog
from retbench.cards.model import ModelCard
from retbench.corpora.cache_status import get_cache_status
from retbench.errors import UsageError
from retbench.store.vector_formats import FORMS, VectorDtype, row_bytes

TEXT_BYTES = 4.5  # of English, a token; only the network's figure depends on it
WEIGHT_BYTES = 2  # bfloat16


@dataclass(frozen=True)
class CorpusSize:
    """How much text there is."""

    documents: int
    queries: int
    tokens: float  # a document
    query_tokens: float = 16.0


@dataclass(frozen=True)
class DeviceSpec:
    """What computes: `rate` is tokens a second of one device; without it `share` of `peak`, in FLOP a second."""

    count: int = 1
    tokens_per_second: float | None = None
    peak: float | None = None
    utilization: float = 0.4
    price: float | None = None  # of one device and hour

    def compute_throughput(self, flop_per_token: float) -> float:
        """Tokens a second of one device."""
        if self.tokens_per_second is not None:
            return self.tokens_per_second
        if self.peak is None:
            raise UsageError(
                "how fast the device is was not said",
                "give --rate TOKENS/S (a finished run or --dry-run tells it), or --peak TFLOP/S with --share",
            )
        return self.peak * self.utilization / flop_per_token


@dataclass(frozen=True)
class CostEstimate:
    """One model over one corpus."""

    model: str
    flop_per_token: float
    tokens: float
    tokens_per_second: float  # of one device
    device_hours: float
    hours: float
    disk_bytes: float
    network_bytes: float
    search_flop: float
    search_seconds: float | None  # none where the device's peak was not said
    cost: float | None


def resolve_corpus_size(task: str | None, documents: int | None, queries: int | None, tokens: float) -> CorpusSize:
    """The counts as given, else those of the task."""
    found = get_cache_status(catalog.find_task_card(task)) if task else None
    many = documents or (found.documents if found else None)
    if not many:
        raise UsageError(
            f"how many documents {task} has is not known here" if task else "how many documents was not said",
            "give --documents N, or retbench fetch the task" if task else "give --documents N or --task TASK",
        )
    return CorpusSize(many, queries or (found.queries if found else None) or 1000, tokens)


def estimate_cost(card: ModelCard, texts: CorpusSize, devices: DeviceSpec, changed: dict[str, Any]) -> CostEstimate:
    """What one model takes."""
    if card.parameters is None or card.shape is None:
        raise UsageError(f"the card of {card.name} has no parameters or no shape", "name a model whose card has them")
    dimensions = changed.get("dimensions", card.shape.width)
    form: VectorDtype = changed.get("vector_dtype", "fp32")
    tokens = texts.documents * texts.tokens + texts.queries * texts.query_tokens
    flop = compute_flop_per_token(card, texts.tokens)
    speed = devices.compute_throughput(flop)
    hours = tokens / speed / 3600
    disk = row_bytes(dimensions, form) * (texts.documents + texts.queries)
    weights = (
        card.weights.megabytes * 1e6 if card.weights and card.weights.megabytes else card.parameters * WEIGHT_BYTES
    )
    search = 2.0 * texts.documents * texts.queries * dimensions
    return CostEstimate(
        card.name, flop, tokens, speed, hours, hours / devices.count, disk,
        devices.count * weights + tokens * TEXT_BYTES + disk, search,
        search / (devices.peak * devices.utilization) if devices.peak else None,
        hours * devices.price if devices.price is not None else None,
    )  # fmt: skip


def compute_flop_per_token(card: ModelCard, length: float) -> float:
    """Of a forward pass without the head. An output matrix of its own counts as used: at most a tenth too much."""
    if card.parameters is None or card.shape is None:
        raise TypeError(f"{card.name} has no shape")
    layers, width, vocabulary = card.shape.layers, card.shape.width, card.shape.vocabulary
    return 2.0 * (card.parameters - vocabulary * width) + 2.0 * layers * width * length


def check_overrides(words: dict[str, Any]) -> dict[str, Any]:
    """`--set` as far as it changes a bill: dimensions and vector_dtype."""
    unknown = next((key for key in words if key not in ("dimensions", "vector_dtype")), None)
    if unknown:
        raise UsageError(f"--set {unknown} changes nothing here", "give dimensions=N or vector_dtype=fp16")
    if words.get("vector_dtype", "fp32") not in FORMS:
        raise UsageError(f"--set vector_dtype={words['vector_dtype']}: no such form", f"give one of {', '.join(FORMS)}")
    if not isinstance(words.get("dimensions", 1), int) or words.get("dimensions", 1) < 1:
        raise UsageError(f"--set dimensions={words['dimensions']}: not a width", "give a whole number, 1 or more")
    return words
