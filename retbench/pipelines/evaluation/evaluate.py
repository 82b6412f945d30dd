"""`retbench run`: names become cards, cards become cells, and each cell is found on disk or computed.

A failed cell does not stop the others, and finished cells stay finished.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from retbench.cards import catalog
from retbench.cards.engine import Engine, parse_engine
from retbench.cards.int8_scores import describe_int8_scores
from retbench.cards.method import Method
from retbench.cards.model import ModelCard
from retbench.cards.task import TaskCard
from retbench.engines.weights import get_fetch_name
from retbench.errors import InapplicableError, RetbenchError
from retbench.pipelines.evaluation.job import EvaluationJob
from retbench.pipelines.evaluation.missing_inputs import add_missing_collections
from retbench.pipelines.evaluation.published_scores import find_expected_scores
from retbench.pipelines.evaluation.request import EvaluationRequest
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.reranking.base import ModelResolver
from retbench.pipelines.reranking.chain import RerankerChain, find_unread_settings, parse_rerankers
from retbench.pipelines.runs.saved_run import load_run
from retbench.records.cell import Cell
from retbench.records.failure import ANY_METHOD
from retbench.records.output import RunOutput
from retbench.records.unexpected_errors import reraise_unexpected_errors

if TYPE_CHECKING:
    from retbench.pipelines.models.worker_pool import WorkerPool


def evaluate(request: EvaluationRequest) -> Iterator[Cell]:
    """Yield every cell as soon as it is finished; a failed cell has its error, and the others continue."""
    with _open_worker_pool(request.devices) as pool:
        evaluation = Evaluation.prepare(request, pool)
        for model in find_models(request, evaluation.engine):
            for cell in evaluation.evaluate_model(model):
                if pool and pool.remote_storage and cell.record:
                    pool.remote_storage.upload_run(Path(cell.record), request.out)
                yield cell


def _open_worker_pool(devices: str) -> "AbstractContextManager[WorkerPool | None]":
    """Open the pool; None for one device, which this process uses, and which needs no torch until it computes."""
    if devices == "1":
        return nullcontext()
    from retbench.pipelines.models import local_workers

    return local_workers.open_worker_pool(devices)


def _attach_worker_pool(model: ResolvedModel, pool: "WorkerPool | None") -> ResolvedModel:
    if pool is None:
        return model
    from retbench.pipelines.models.worker_pool import attach_worker_pool

    return attach_worker_pool(model, pool)


@dataclass(frozen=True)
class Evaluation:
    """What the cells of a request share."""

    request: EvaluationRequest
    variants: list[EvaluationRequest]
    tasks: list[TaskCard]
    methods: list[Method]
    engine: Engine
    pool: "WorkerPool | None"
    output: RunOutput
    rerankers: RerankerChain

    @staticmethod
    def prepare(request: EvaluationRequest, pool: "WorkerPool | None") -> "Evaluation":
        """Find the cards and parse the rerankers."""
        output = RunOutput(request.out, request.progress, request.log_status, request.command)
        resolver = ModelResolver(request.log_status, partial(_attach_worker_pool, pool=pool))
        rerankers = RerankerChain(parse_rerankers(request.rerank), resolver, output)
        variants, methods, engine = request.expand_variants(), find_methods(request), parse_engine(request.engine)
        for sentence in find_unread_settings(rerankers.requests, request.overrides):
            request.log_status(sentence)
        return Evaluation(request, variants, find_tasks(variants[0]), methods, engine, pool, output, rerankers)

    def evaluate_model(self, card: ModelCard) -> Iterator[Cell]:
        """Yield the cells of one model and of their rerankers."""
        request = self.request
        if suggestion := catalog.suggest_card(card):
            request.log_status(suggestion)
        try:
            with reraise_unexpected_errors():
                model = ResolvedModel.resolve(card, request.weights, request.log_status, self.engine)
                model = _attach_worker_pool(model, self.pool)
                methods = model.resolve_methods(self.methods)
            self._warn_of_int8(card)
        except RetbenchError as problem:
            error = add_missing_collections(problem, get_fetch_name(card), self.tasks)
            for task in self.tasks:
                yield self.output.record_failure(error, card.name, ANY_METHOD, task, request.sample)
            return
        for method in methods:
            for variant in select_variants(self.variants, model):
                for task in find_tasks(variant):
                    yield from self._evaluate_cell(variant, model, method, task)

    def _warn_of_int8(self, card: ModelCard) -> None:
        """Say what int8 costs the model in score, where it was measured."""
        if not card.lexical and any(variant.parsed_overrides.dtype == "int8" for variant in self.variants):
            self.request.log_status(describe_int8_scores(card.name, card.int8_scores))

    def _evaluate_cell(
        self, request: EvaluationRequest, model: ResolvedModel, method: Method, task: TaskCard
    ) -> Iterator[Cell]:
        """Yield the cell of one variant, and its rerankers."""
        try:
            with reraise_unexpected_errors():
                if request.prompt:
                    method, task = request.prompt.apply(method, task)
                request.log_status(f"{model.card.name} · {method.name} · {task.name}")
                job = EvaluationJob.prepare(request, model, method, task)
                cell = job.load_or_run()
            yield replace(cell, expected=find_expected_scores(cell, model.card, task, request))
        except RetbenchError as error:
            name = request.prompt.name_method(method) if request.prompt else method.name
            yield self.output.record_failure(error, model.card.name, name, task, request.sample)
            return
        load_first_stage = partial(load_run, collection=job.collection, card=task)
        yield from self.rerankers.rerank_cell(cell, task, load_first_stage, model)


def list_jobs(request: EvaluationRequest) -> Iterator[EvaluationJob]:
    """Yield the job of every cell without running it; the first error stops."""
    methods, engine = find_methods(request), parse_engine(request.engine)
    for card in find_models(request, engine):
        model = ResolvedModel.resolve(card, request.weights, request.log_status, engine)
        for method in model.resolve_methods(methods):
            for variant in select_variants(request.expand_variants(), model):
                yield from _list_variant_jobs(variant, model, method)


def _list_variant_jobs(variant: EvaluationRequest, model: ResolvedModel, method: Method) -> Iterator[EvaluationJob]:
    """Yield the jobs of one variant. A prompt that changes no text is only named: the run skips it too."""
    for task in find_tasks(variant):
        try:
            prompted = variant.prompt.apply(method, task) if variant.prompt else (method, task)
        except InapplicableError as problem:
            variant.log_status(f"{model.card.name}: {problem.cause}")
            continue
        yield EvaluationJob.prepare(variant, model, *prompted)


def select_variants(variants: list[EvaluationRequest], model: ResolvedModel) -> list[EvaluationRequest]:
    """Select the variants that a model has: a lexical model reads no prompt."""
    return [variant for variant in variants if variant.prompt is None or not model.lexical_settings]


def find_models(request: EvaluationRequest, engine: Engine) -> list[ModelCard]:
    """Find the model cards of a request; a server may have models without a card."""
    find_card = catalog.find_served_model_card if engine.name == "endpoint" else catalog.find_model_card
    return [find_card(name) for name in request.models]


def find_tasks(request: EvaluationRequest) -> list[TaskCard]:
    """Find the task cards of a request, with its split and depth."""
    return [request.parsed_overrides.apply_to_task(catalog.find_task_card(name)) for name in request.tasks]


def find_methods(request: EvaluationRequest) -> list[Method]:
    """Find the methods of a request; none means the default of each model."""
    return [catalog.find_method(name) for name in request.methods]


def expand_task_names(suites: tuple[str, ...], tasks: tuple[str, ...]) -> tuple[str, ...]:
    """Return the given tasks and the tasks of the suites, each once."""
    members = [task for suite in suites for task in catalog.load_suites().find(suite).expand_tasks()]
    return tuple(dict.fromkeys([*members, *tasks]))
