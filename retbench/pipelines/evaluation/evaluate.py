"""The main story: names become cards, cards become cells, each cell is found on disk or run, and a record is kept.

One cell that fails does not stop the others; what is finished stays finished, whatever happens afterwards.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from retbench.cards import catalog
from retbench.cards.engine import parse_engine
from retbench.cards.task import TaskCard
from retbench.errors import RetbenchError, UsageError, reraise_resource_errors
from retbench.pipelines.evaluation.job import EvaluationJob
from retbench.pipelines.evaluation.published_scores import expected
from retbench.pipelines.evaluation.request import Request
from retbench.pipelines.models import local_workers
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.models.worker_pool import Team, engaged
from retbench.pipelines.reranking.base import ModelResolver
from retbench.pipelines.reranking.chain import RerankerChain, parse_rerankers
from retbench.pipelines.runs.saved_run import ours
from retbench.records.cell import Cell
from retbench.records.failure import ANY_METHOD
from retbench.records.output import Place


def evaluate(request: Request) -> Iterator[Cell]:
    """Every cell of the request as soon as it is known; a failure fills its cell and the rest goes on."""
    with local_workers.team(request.devices) as team:
        for cell in _cells(request, team):
            if team and team.depot and cell.record:
                team.depot.upload_run(Path(cell.record), request.out)
            yield cell


def _cells(request: Request, team: Team | None) -> Iterator[Cell]:
    cards = [_task(name, request) for name in request.tasks]
    models = [catalog.find_model_card(name) for name in request.models]
    methods = [catalog.find_method(name) for name in request.methods]
    chosen = parse_engine(request.engine)
    place = Place(request.out, request.show, request.say, request.command)
    rerankers = RerankerChain(
        parse_rerankers(request.rerank), ModelResolver(request.say, partial(engaged, team=team)), place
    )
    for model in models:
        try:
            with reraise_resource_errors():
                candidate = engaged(ResolvedModel.of(model, request.weights, request.say, chosen), team)
        except RetbenchError as error:
            yield from (place.failed(error, model.name, ANY_METHOD, card, request.sample) for card in cards)
            continue
        for method in candidate.methods(methods):
            for card in cards:
                request.say(f"{candidate.card.name} · {method.name} · {card.name}")
                try:
                    with reraise_resource_errors():
                        bench = EvaluationJob(request, candidate, method, card)
                        cell = bench.cell()
                    yield replace(cell, expected=expected(cell, model, card, request))
                except RetbenchError as error:
                    yield place.failed(error, candidate.card.name, method.name, card, request.sample)
                    continue
                opened = partial(ours, collection=bench.collection, card=bench.card)
                yield from rerankers.rerank_cell(cell, bench.card, opened, candidate)


def benches(request: Request) -> Iterator[EvaluationJob]:
    """Every cell before it is run; the first problem stops."""
    cards = [_task(name, request) for name in request.tasks]
    for name in request.models:
        candidate = ResolvedModel.of(
            catalog.find_model_card(name), request.weights, request.say, parse_engine(request.engine)
        )
        for method in candidate.methods([catalog.find_method(name) for name in request.methods]):
            yield from (EvaluationJob(request, candidate, method, card) for card in cards)


def suite_tasks(suites: tuple[str, ...], tasks: tuple[str, ...]) -> tuple[str, ...]:
    """The tasks named, and those of the suites named, each once."""
    members = [task for suite in suites for task in catalog.load_suites().find(suite).expand_tasks()]
    return tuple(dict.fromkeys([*members, *tasks]))


def _task(name: str, request: Request) -> TaskCard:
    changes = {key: request.overrides[key] for key in ("split", "depth") if key in request.overrides}
    card = replace(catalog.find_task_card(name), **changes)
    if card.depth < int(card.metric.rpartition("_")[2]):
        raise UsageError(f"{card.metric} looks deeper than depth {card.depth}", "give a larger --set depth=")
    return card
