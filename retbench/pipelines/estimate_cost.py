"""Estimate tokens, device hours, disk, network and cost for a corpus of any size (docs/scale.md).

The user gives the speed: tokens per second of a finished run, or a device's peak and the share of it that is reached.

    FLOP per token 2 x (parameters - vocabulary x width) + 2 x layers x width x mean tokens (causal attention)
    tokens         documents x mean tokens (and the queries')
    device hours   tokens / (tokens per second of one device) / 3600
    disk           (documents + queries) x bytes per vector
    cross-encoder  tokens = queries x candidates x tokens of a pair; it has no vectors and no search
    search         2 x documents x queries x dimensions FLOP, or reading the vectors if that takes longer
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

from retbench.cards import catalog
from retbench.cards.model import ModelCard
from retbench.cards.reranker_settings import CrossEncoderSettings
from retbench.corpora.cache_status import get_cache_status
from retbench.errors import UsageError
from retbench.pipelines.models.overrides import Overrides
from retbench.store.vector_formats import compute_row_bytes

TEXT_BYTES = 4.5  # per token of English text; only the network estimate uses it
WEIGHT_BYTES = 2  # bfloat16
# float32 vectors per second from host memory through exact search on one H200: benchmarks/results/gpu_check_h200.md
SEARCH_BYTES_PER_SECOND = 4e9


@dataclass(frozen=True)
class CorpusSize:
    """The size of a corpus and its queries."""

    documents: int
    queries: int
    tokens: float  # per document
    query_tokens: float = 16.0


@dataclass(frozen=True)
class DeviceSpec:
    """The devices: `tokens_per_second` of one device, else `utilization` of `peak` (FLOP per second)."""

    count: int = 1
    tokens_per_second: float | None = None
    peak: float | None = None
    utilization: float = 0.4
    price: float | None = None  # of one device per hour

    def compute_throughput(self, flop_per_token: float) -> float:
        """Compute tokens per second of one device."""
        if self.tokens_per_second is not None:
            return self.tokens_per_second
        if self.peak is None:
            raise UsageError(
                "the speed of the device is not given",
                "give --rate TOKENS/S (from a finished run or --dry-run), or --peak TFLOP/S with --share",
            )
        return self.peak * self.utilization / flop_per_token


@dataclass(frozen=True)
class CostEstimate:
    """The cost of one model on one corpus."""

    model: str
    flop_per_token: float
    tokens: float
    tokens_per_second: float  # of one device
    device_hours: float
    hours: float
    disk_bytes: float
    network_bytes: float
    search_flop: float
    search_seconds: float | None  # None without the device's peak
    cost: float | None


def resolve_corpus_size(task: str | None, documents: int | None, queries: int | None, tokens: float) -> CorpusSize:
    """Use the given counts, else those of the task."""
    status = get_cache_status(catalog.find_task_card(task)) if task else None
    document_count = documents or (status.documents if status else None)
    if not document_count:
        raise UsageError(
            f"the number of documents of {task} is unknown" if task else "the number of documents is not given",
            "give --documents N, or run retbench fetch for the task" if task else "give --documents N or --task TASK",
        )
    return CorpusSize(document_count, queries or (status.queries if status else None) or 1000, tokens)


def estimate_cost(card: ModelCard, corpus: CorpusSize, devices: DeviceSpec, overrides: Overrides) -> CostEstimate:
    """Estimate the cost of one model: of an encoder for the whole corpus, of a cross-encoder for its candidates."""
    if card.kind == "cross-encoder":
        depth = CrossEncoderSettings().depth if overrides.depth is None else overrides.depth
        return _estimate_reranking(card, corpus, devices, depth)
    if card.parameters is None or card.shape is None:
        raise UsageError(
            f"the card of {card.name} has no `parameters` or no `shape`", "give a model whose card has both"
        )
    dimensions = overrides.dimensions or card.shape.width
    tokens = corpus.documents * corpus.tokens + corpus.queries * corpus.query_tokens
    flop = compute_flop_per_token(card, corpus.tokens)
    throughput = devices.compute_throughput(flop)
    hours = tokens / throughput / 3600
    disk = compute_row_bytes(dimensions, overrides.vector_dtype or "fp32") * (corpus.documents + corpus.queries)
    weights = (
        card.weights.megabytes * 1e6 if card.weights and card.weights.megabytes else card.parameters * WEIGHT_BYTES
    )
    search = 2.0 * corpus.documents * corpus.queries * dimensions
    return CostEstimate(
        card.name, flop, tokens, throughput, hours, hours / devices.count, disk,
        devices.count * weights + tokens * TEXT_BYTES + disk, search,
        estimate_search_seconds(search, corpus.documents * dimensions, devices),
        hours * devices.price if devices.price is not None else None,
    )  # fmt: skip


def _estimate_reranking(card: ModelCard, corpus: CorpusSize, devices: DeviceSpec, depth: int) -> CostEstimate:
    if card.parameters is None:
        raise UsageError(f"the card of {card.name} has no `parameters`", "give a model whose card has them")
    length = count_pair_tokens(card, corpus.tokens, corpus.query_tokens)
    tokens = corpus.queries * min(depth, corpus.documents) * length
    flop = compute_flop_per_token(card, length) if card.shape else 2.0 * card.parameters
    throughput = devices.compute_throughput(flop)
    hours = tokens / throughput / 3600
    return CostEstimate(
        card.name, flop, tokens, throughput, hours, hours / devices.count, 0.0,
        devices.count * card.parameters * WEIGHT_BYTES + tokens * TEXT_BYTES, 0.0, None,
        hours * devices.price if devices.price is not None else None,
    )  # fmt: skip


def count_pair_tokens(card: ModelCard, document: float, query: float, max_length: int | None = None) -> float:
    """Count the tokens of a query and a document that a cross-encoder reads together, up to its limit."""
    limit = max_length or card.max_length or card.context_length
    return min(document + query, float(limit)) if limit else document + query


def estimate_search_seconds(flop: float, numbers: float, devices: DeviceSpec) -> float | None:
    """Estimate exact search on one device: products, or reading so many float32 numbers; None without a peak."""
    if not devices.peak:
        return None
    return max(flop / (devices.peak * devices.utilization), 4 * numbers / SEARCH_BYTES_PER_SECOND)


def compute_flop_per_token(card: ModelCard, length: float) -> float:
    """Compute FLOP per token of a forward pass without the LM head; an untied head adds an error of at most a tenth."""
    if card.parameters is None or card.shape is None:
        raise TypeError(f"{card.name} has no shape")
    layers, width, vocabulary = card.shape.layers, card.shape.width, card.shape.vocabulary
    return 2.0 * (card.parameters - vocabulary * width) + 2.0 * layers * width * length


def check_overrides(overrides: Overrides, cards: Sequence[ModelCard] = ()) -> Overrides:
    """Refuse overrides that do not change an estimate."""
    used = ["dimensions", "vector_dtype", *(["depth"] if any(card.kind == "cross-encoder" for card in cards) else [])]
    names = [field.name for field in fields(overrides) if field.name not in used]
    unused = next((name for name in names if getattr(overrides, name) is not None), None)
    if unused:
        step = "give dimensions=N or vector_dtype=fp16; depth=N is for a cross-encoder"
        raise UsageError(f"--set {unused} does not apply to plan", step)
    if overrides.depth is not None and overrides.depth < 1:
        raise UsageError(f"--set depth={overrides.depth} is no number of candidates", "give depth=1 or more")
    return overrides
