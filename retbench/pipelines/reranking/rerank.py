"""The rerank story: a saved run, ours or anybody's, goes through rerankers; every stage is a cell of its own."""

from collections.abc import Iterator
from pathlib import Path

from retbench.errors import UsageError
from retbench.pipelines.reranking.chain import Chain, Crew, chain
from retbench.pipelines.runs.saved_run import First, foreign, need_task, ours
from retbench.records.cell import Cell, of_record
from retbench.records.load_run import find_run
from retbench.records.output import Place


def rerank(run: str, words: tuple[str, ...], task: str | None, place: Place) -> Iterator[Cell]:
    """The run's own cell, then each reranker's on the one before it."""
    wanted = chain(words)
    if not wanted:
        raise UsageError("nothing to rerank with", "name a reranker: --with e2rank")
    folder, first = _first(run, task, place)
    own = of_record(first.record, str(folder), cached=True)
    yield own

    def opened(run: Path) -> First:
        return first if run == folder else ours(run, first.collection, first.card)

    yield from Chain(wanted, Crew(place.say), place).cells(own, first.card, opened)


def _first(run: str, task: str | None, place: Place) -> tuple[Path, First]:
    path = Path(run)
    if path.is_file() and path.suffix != ".json":
        first, folder = foreign(path, need_task(task), place.out, place.command)
        return folder, first
    if path.parent != Path() and not path.exists():
        raise UsageError(f"there is no run at {run}", "name a run's folder, its settings-id, or a TREC run file")
    folder = find_run(run, place.out)
    return folder, ours(folder)
