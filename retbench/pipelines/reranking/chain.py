"""One reranked cell: a first stage, one reranker, and the record of what came out.

A chain of rerankers is a chain of such cells, each reading the run before it, so every stage has its own score in the
board and an interrupted chain goes on where it stopped.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from retbench.cards import catalog, reranker_settings
from retbench.cards.reranker_settings import Wanted
from retbench.cards.task import TaskCard
from retbench.corpora.texts import joined
from retbench.engines.memory import free_pages, peak_mb, reset_peak
from retbench.errors import RetbenchError, shortage_told
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.reranking import factory
from retbench.pipelines.runs.saved_run import First
from retbench.records import machine
from retbench.records.cell import Cell, of_record
from retbench.records.failure import labelled
from retbench.records.output import Place
from retbench.records.phase_timer import Meter
from retbench.records.record import Record
from retbench.records.results_folder import Ledger, Run
from retbench.rerankers.candidates import Reranked, rerank
from retbench.scoring.metrics import mean_scores, score_run
from retbench.store.key import digest


@dataclass
class Crew:
    """The models of rerankers, each found once."""

    say: Callable[[str], None]
    engage: Callable[[ResolvedModel], ResolvedModel] = lambda candidate: candidate  # who computes its vectors
    known: dict[str, ResolvedModel] = field(default_factory=dict)

    def find(self, name: str) -> ResolvedModel:
        """A model by name."""
        if name not in self.known:
            self.known[name] = self.engage(ResolvedModel.of(catalog.model(name), None, self.say))
        return self.known[name]


def chain(words: tuple[str, ...]) -> list[Wanted]:
    """Every reranker asked for, checked before anything is done."""
    return [reranker_settings.wanted(word) for word in words]


def cells(first: First, one: Wanted, own: ResolvedModel | None, crew: Crew, place: Place) -> Iterator[Cell]:
    """The cells of what a reranker must beat, then its own."""
    judge = factory.judge(one, first, own, crew.find)
    for each in (*judge.baselines(), judge):
        place.say(" · ".join((first.record.model, first.record.method, first.record.task, each.wanted.word)))
        yield Reranking(first, each, place).cell()


@dataclass(frozen=True)
class Chain:
    """Rerankers in turn, each on the run before it."""

    wanted: list[Wanted]
    crew: Crew
    place: Place

    def cells(
        self, cell: Cell, card: TaskCard, opened: Callable[[Path], First], own: ResolvedModel | None = None
    ) -> Iterator[Cell]:
        """The cells of each, on the run of `cell`; after one that failed there is nothing to go on with."""
        for one in self.wanted:
            typed = (*cell.rerank, one.word)
            stages: list[Cell] = []
            try:
                with shortage_told():
                    for stage in cells(opened(Path(cell.record or "")), one, own, self.crew, self.place):
                        stages.append(stage)
                        yield stage
            except RetbenchError as error:
                yield self.place.failed(error, cell.model, cell.method, card, cell.sample, typed)
                return
            cell = stages[-1]
            Ledger(self.place.out).forget(Path(cell.record or ""), labelled(cell.method, typed))


@dataclass(frozen=True)
class Reranking:
    """One cell on its way."""

    first: First
    judge: factory.Judge
    place: Place

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that may change a score."""
        before = self.first.record.settings
        wanted = self.judge.wanted
        own = {"rerank": wanted.word, **asdict(wanted.settings), **self.judge.describe()}
        return {**before, "rerankers": [*before["rerankers"], own]}

    @property
    def folder(self) -> Path:
        """Where its record lies."""
        record = self.first.record
        return Ledger(self.place.out).folder(record.suite, record.task, record.model, digest(self.settings)[:12])

    def cell(self) -> Cell:
        """The finished record on disk, or a new one."""
        if found := Ledger(self.place.out).find(self.folder):
            return of_record(found, str(self.folder), cached=True)
        Ledger(self.place.out).need_writable()
        meter = Meter(self.place.show)
        free_pages()
        reset_peak()
        record, run = self._run(meter)
        return of_record(record, str(Ledger(self.place.out).write(record, run)), cached=False)

    def _run(self, meter: Meter) -> tuple[Record, Run]:
        card, collection = self.first.card, self.first.collection
        judged = self.judge.made(self.first, meter)
        queries = [joined(row, ("text",)) for row in collection.queries]
        with meter.phase(f"rerank {self.judge.wanted.name}", "queries") as advance:
            found = rerank(self.first.ranking, queries, judged, lambda: advance(1, len(queries)))
        with meter.phase("score"):
            rankings = found.ranking.named(collection)
            per_query = score_run(rankings, collection.judgments, card.depth, card.relevant_from)
        raw = dict(zip(rankings, (scores.tolist() for scores in found.ranking.scores), strict=True))
        sample = {"rerank": self.judge.wanted.word, **judged.first()}
        record = self._record(meter, found, judged.facts(), mean_scores(per_query))
        return record, Run(rankings, raw, per_query, sample)

    def _record(self, meter: Meter, found: Reranked, facts: dict[str, Any], scores: dict[str, float]) -> Record:
        before = self.first.record
        own = {"rerank": self.judge.wanted.word, **facts, "latency": latency(found.seconds)}
        seconds = {phase: round(spent, 3) for phase, spent in meter.seconds.items()}
        cost = {
            **before.cost,
            "seconds": {**before.cost["seconds"], **_apart(seconds, before.cost["seconds"])},
            "peak_memory_mb": max(round(peak_mb(), 1), before.cost["peak_memory_mb"] or 0.0),
            "rerank": [*before.cost.get("rerank", []), own],
        }
        return replace(
            before,
            settings_id=digest(self.settings)[:12],
            settings=self.settings,
            cards={**before.cards, "rerankers": [*before.cards.get("rerankers", []), *self.judge.cards()]},
            machine=machine.describe(),
            cost=cost,
            scores=scores,
            command=self.place.command,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )


def latency(seconds: list[float]) -> dict[str, float]:
    """Seconds a query: the mean, the middle one and the slowest."""
    figures = {"mean": statistics.fmean(seconds), "median": statistics.median(seconds), "longest": max(seconds)}
    return {name: round(value, 5) for name, value in figures.items()}


def _apart(seconds: dict[str, float], before: dict[str, float]) -> dict[str, float]:
    """A phase of the same name as an earlier stage's is another phase."""
    return {(f"{name} again" if name in before else name): spent for name, spent in seconds.items()}
