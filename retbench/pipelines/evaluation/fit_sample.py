"""The largest sample of queries whose cells fit a number of minutes on this machine (`--minutes`).

Each model is measured for two seconds; the cost of a sample follows from the number of its queries and documents. All
models, methods and tasks of a command use one sample, so that their scores can be compared. What was found is stored in
the results folder: the same command there takes the same sample again, also after an interruption, because a second
measurement would give another number of queries, other settings-ids, and a run that starts from the beginning.
"""

import bisect
import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from retbench.cards.compute_target import RayTarget, parse_compute_target
from retbench.cards.engine import parse_engine
from retbench.cards.method import Role
from retbench.corpora.collection import DOCUMENTS_PER_QUERY, Collection
from retbench.corpora.texts import read_inputs
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.text_encoder import TextEncoder
from retbench.engines import memory
from retbench.errors import InapplicableError, RetbenchError, UsageError
from retbench.pipelines.evaluation.evaluate import list_jobs
from retbench.pipelines.evaluation.job import EvaluationJob
from retbench.pipelines.evaluation.measure_speed import measure_speed, select_texts
from retbench.pipelines.evaluation.request import EvaluationRequest
from retbench.pipelines.evaluation.stored_samples import StoredSample, StoredSamples
from retbench.pipelines.models.search import build_retriever
from retbench.records.phase_timer import NoProgress, PhaseTimer
from retbench.records.results_folder import ResultsFolder
from retbench.store.digest import compute_digest

T = TypeVar("T")

MEASURED_SECONDS = 2.0
COUNTED_TEXTS = 1000  # of each role, to estimate the tokens of a text
LEXICAL_QUERIES = 25  # of the sample that a lexical model is measured on
UNMEASURED_ENGINES = ("endpoint", "vllm")  # every text costs money; its memory is not free for the run afterwards
MIN_QUERIES = 5  # fewer say nothing
USED_SHARE = 0.9  # of the time that is left after the measurement; the rest covers the error of the estimate


@dataclass(frozen=True)
class CellCost:
    """What one cell costs by the size of its sample."""

    queries: int
    documents: int
    judged_per_query: float
    seconds_per_query: float
    seconds_per_document: float
    load_seconds: float

    def estimate_seconds(self, sample: int) -> float:
        """Estimate the seconds of a sample; as many queries as the task has mean the whole corpus."""
        per_query = max(DOCUMENTS_PER_QUERY, self.judged_per_query)
        documents = min(self.documents, sample * per_query) if sample < self.queries else self.documents
        queries = min(sample, self.queries)
        return self.load_seconds + queries * self.seconds_per_query + documents * self.seconds_per_document


def fit_sample(request: EvaluationRequest, minutes: float, is_dry_run: bool = False) -> EvaluationRequest:
    """Return the request with the largest sample that fits; a dry run stores nothing.

    The minutes are those of the run; the measurement, which imports libraries on the first start, comes on top.
    """
    _check_request(request, minutes)
    results, stored = ResultsFolder(request.out), StoredSamples(request.out)
    found = stored.find(request, minutes)
    if found:
        request.log_status(f"{found.describe()}, as this command measured before in {request.out}")
        return replace(request, sample=found.sample)
    if not is_dry_run:
        results.require_writable()
    costs = list(_measure_cells(request))
    if not costs:  # no cell can be run; the run says why
        return request
    found = choose_sample(costs, minutes * 60 * USED_SHARE, minutes)
    request.log_status(found.describe())
    if not is_dry_run:
        stored.add(request, found)
    return replace(request, sample=found.sample)


def choose_sample(costs: list[CellCost], seconds: float, minutes: float) -> StoredSample:
    """Choose the largest number of queries whose cells take at most so many seconds; the smallest if none does."""

    def estimate_seconds(sample: int) -> float:
        return sum(cost.estimate_seconds(sample) for cost in costs)

    most = max(cost.queries for cost in costs)
    size = max(bisect.bisect_right(range(1, most + 1), seconds, key=estimate_seconds), min(MIN_QUERIES, most))
    return StoredSample(minutes, size if size < most else None, round(estimate_seconds(size), 1))


def _check_request(request: EvaluationRequest, minutes: float) -> None:
    if not minutes > 0:
        raise UsageError(f"--minutes {minutes:g} is no time", "give a number above 0")
    if request.sample is not None:
        raise UsageError("--minutes finds a sample, and --sample gives one", "leave one of the two out")
    engine = parse_engine(request.engine).name
    unmeasured = {
        "--rerank": bool(request.rerank),
        f"--engine {engine}": engine in UNMEASURED_ENGINES,
        "--on ray": isinstance(parse_compute_target(request.devices), RayTarget),
    }
    option = next((option for option, is_given in unmeasured.items() if is_given), None)
    if option:
        raise UsageError(f"--minutes cannot foresee the time of {option}", "give --sample N")


def _measure_cells(request: EvaluationRequest) -> Iterator[CellCost]:
    """Measure every cell; a cell that cannot be run costs nothing, and the run says why."""
    for model in request.models:
        for method in request.methods or (None,):
            try:
                yield from _measure_model(replace(request, models=(model,), methods=(method,) if method else ()))
            except RetbenchError as error:
                if not isinstance(error, InapplicableError):
                    request.log_status(f"{model} was not measured: {error.cause}")
            _free_memory()


def _measure_model(request: EvaluationRequest) -> Iterator[CellCost]:
    """Measure a model once, and count the texts of each task."""
    speed = load_seconds = 0.0
    counted: set[tuple[str, str]] = set()  # variants that share stored vectors cost only one embedding
    for job in list_jobs(request):
        spec = job.encoder_spec
        vectors = (job.collection.fingerprint, compute_digest(spec.describe_vectors("document") if spec else None))
        if vectors in counted:
            continue
        counted.add(vectors)
        if spec is None:
            yield _build_cost(job.collection, 0.0, _measure_lexical_model(job), 0.0)
            continue
        if not speed:
            load_seconds, speed = _measure_encoder(job, spec)
            request.log_status(f"{job.model.card.name} · {job.method.name}: {speed:,.0f} tokens/s measured")
        per_query, per_document = _count_tokens(job, spec, "query"), _count_tokens(job, spec, "document")
        yield _build_cost(job.collection, per_query / speed, per_document / speed, load_seconds)
        load_seconds = 0.0  # the weights are loaded once for all tasks


def _build_cost(
    collection: Collection, seconds_per_query: float, seconds_per_document: float, load_seconds: float
) -> CellCost:
    queries, judged = len(collection.queries), sum(map(len, collection.judgments.values()))
    return CellCost(
        queries, len(collection.corpus), judged / queries, seconds_per_query, seconds_per_document, load_seconds
    )


def _measure_encoder(job: EvaluationJob, spec: EncoderSpec) -> tuple[float, float]:
    """Return the seconds to load the weights, and tokens per second."""
    load_seconds, encoder = _time_load(job, spec)
    texts = read_inputs(select_texts(job.collection.corpus, COUNTED_TEXTS), job.task.fields)
    return load_seconds, measure_speed(encoder, encoder.tokenize(texts, "document"), MEASURED_SECONDS)


def _time_load(job: EvaluationJob, spec: EncoderSpec) -> tuple[float, TextEncoder]:
    """Return the seconds that a load takes in the run, and the encoder.

    A load that imports libraries is repeated: a process imports them once, and the run, in the same process, not again.
    """
    imported = len(sys.modules)
    seconds, encoder = _time(lambda: job.model.load_encoder(spec))
    if len(sys.modules) == imported:
        return seconds, encoder
    del encoder
    job.model.encoder_factory.unload()
    _free_memory()
    return _time(lambda: job.model.load_encoder(spec))


def _free_memory() -> None:
    """Free the weights of the last model before they are loaded again: two copies may not fit."""
    gc.collect()
    memory.release_gpu_cache()


def _count_tokens(job: EvaluationJob, spec: EncoderSpec, role: Role) -> float:
    """Return the mean number of tokens of a query or document, as the model reads it."""
    is_query = role == "query"
    texts = job.collection.queries if is_query else job.collection.corpus
    selected = select_texts(texts, COUNTED_TEXTS)
    inputs = read_inputs(selected, ("text",) if is_query else job.task.fields)
    tokenized = job.model.build_prompt_tokenizer(spec).tokenize(inputs, role, spec.get_limit(role))
    return len(tokenized.flat) / len(selected)


def _measure_lexical_model(job: EvaluationJob) -> float:
    """Return the seconds per document; a small sample is ranked before, because it loads the library."""
    seconds = 0.0
    for queries in (1, LEXICAL_QUERIES):
        sample = job.collection.sample(queries)
        retriever = build_retriever(job.model, None, job.task, sample, None, PhaseTimer(NoProgress()))
        seconds = _time(lambda: retriever.rank(job.task.depth))[0] / len(sample.corpus)  # noqa: B023  # called at once
    return seconds


def _time(compute: Callable[[], T]) -> tuple[float, T]:
    """Return the seconds that a call takes, and its result."""
    started = time.perf_counter()
    result = compute()
    return time.perf_counter() - started, result
