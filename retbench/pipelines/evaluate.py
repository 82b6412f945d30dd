"""The main story: names become cards, cards become cells, each cell is found on disk or run, and a record is kept.

One cell that fails does not stop the others; what is finished stays finished, whatever happens afterwards.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from retbench.cards import catalog
from retbench.cards.engine import engine
from retbench.cards.home import cache_folder
from retbench.cards.reranker import Wanted
from retbench.cards.task import TaskCard
from retbench.encoders.wording import InapplicableError
from retbench.errors import ResourceError, RetbenchError, UsageError, shortage_told
from retbench.pipelines import devices
from retbench.pipelines.bench import Bench
from retbench.pipelines.candidate import Candidate
from retbench.pipelines.expected import expected
from retbench.pipelines.first import ours
from retbench.pipelines.request import Request
from retbench.pipelines.reranking import Crew, Place, cells, chain
from retbench.pipelines.workers import Team, engaged
from retbench.records.cell import Cell
from retbench.records.failure import ANY_METHOD, Failure
from retbench.records.ledger import Ledger


def evaluate(request: Request) -> Iterator[Cell]:
    """Every cell of the request as soon as it is known; a failure fills its cell and the rest goes on."""
    with devices.team(request.devices) as team:
        for cell in _cells(request, team):
            if team and team.depot and cell.record:
                team.depot.keep(Path(cell.record), request.out)
            yield cell


def _cells(request: Request, team: Team | None) -> Iterator[Cell]:
    cards = [_task(name, request) for name in request.tasks]
    models = [catalog.model(name) for name in request.models]
    methods = [catalog.method(name) for name in request.methods]
    chosen = engine(request.engine)
    rerankers, crew = chain(request.rerank), Crew(request.say, partial(engaged, team=team))
    for model in models:
        try:
            with shortage_told():
                candidate = engaged(Candidate.of(model, request.weights, request.say, chosen), team)
        except RetbenchError as error:
            yield from (_failed(request, model.name, ANY_METHOD, card, error) for card in cards)
            continue
        for method in candidate.methods(methods):
            for card in cards:
                request.say(f"{candidate.card.name} · {method.name} · {card.name}")
                try:
                    with shortage_told():
                        bench = Bench(request, candidate, method, card)
                        cell = bench.cell()
                    yield replace(cell, expected=expected(cell, model, card, request))
                except RetbenchError as error:
                    yield _failed(request, candidate.card.name, method.name, card, error)
                    continue
                yield from _reranked(bench, cell, rerankers, crew)


def _reranked(bench: Bench, cell: Cell, rerankers: list[Wanted], crew: Crew) -> Iterator[Cell]:
    """Each reranker's cells, on the run before it; after one that failed there is nothing to go on with."""
    request = bench.request
    place = Place(request.out, request.show, request.say, request.command)
    for wanted in rerankers:
        try:
            stages: list[Cell] = []
            with shortage_told():
                first = ours(Path(cell.record or ""), bench.collection, bench.card)
                for one in cells(first, wanted, bench.candidate, crew, place):
                    stages.append(one)
                    yield one
        except RetbenchError as error:
            yield _failed(request, cell.model, cell.method, bench.card, error, (*cell.rerank, wanted.word))
            return
        cell = stages[-1]


def benches(request: Request) -> Iterator[Bench]:
    """Every cell before it is run; the first problem stops."""
    cards = [_task(name, request) for name in request.tasks]
    for name in request.models:
        candidate = Candidate.of(catalog.model(name), request.weights, request.say, engine(request.engine))
        for method in candidate.methods([catalog.method(name) for name in request.methods]):
            yield from (Bench(request, candidate, method, card) for card in cards)


def suite_tasks(suites: tuple[str, ...], tasks: tuple[str, ...]) -> tuple[str, ...]:
    """The tasks named, and those of the suites named, each once."""
    members = [task for suite in suites for task in catalog.suites().find(suite).members()]
    return tuple(dict.fromkeys([*members, *tasks]))


def _task(name: str, request: Request) -> TaskCard:
    changes = {key: request.overrides[key] for key in ("split", "depth") if key in request.overrides}
    card = replace(catalog.task(name), **changes)
    if card.depth < int(card.metric.rpartition("_")[2]):
        raise UsageError(f"{card.metric} looks deeper than depth {card.depth}", "give a larger --set depth=")
    return card


def _failed(
    request: Request, model: str, method: str, card: TaskCard, error: RetbenchError, rerank: tuple[str, ...] = ()
) -> Cell:
    status: Literal["failed", "skipped"] = "skipped" if isinstance(error, InapplicableError) else "failed"
    cause = error.cause.replace(str(cache_folder()), "$RETBENCH_CACHE")  # a note may travel to another machine
    note = Failure(
        model, method, card.name, card.suite, card.split, card.protocol, request.sample, status,
        cause, error.next_step, error.exit_code, request.command, rerank,
    )  # fmt: skip
    try:
        Ledger(request.out).note(note)
    except ResourceError as problem:  # a full disk, most likely what stopped the cell too: its own cause is the news
        request.say(f"{problem.cause}: the failure is shown, not kept")
    return Cell(
        model, method, card.name, card.suite, card.split, status, sample=request.sample, rerank=rerank,
        error=error.cause, next_step=error.next_step, exit_code=error.exit_code,
    )  # fmt: skip
