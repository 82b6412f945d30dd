"""`retbench rerank`: a finished run or a TREC run file goes through rerankers; every stage has a cell of its own."""

from collections.abc import Iterator
from pathlib import Path

from retbench.errors import UsageError
from retbench.pipelines.reranking.base import ModelResolver
from retbench.pipelines.reranking.chain import RerankerChain, parse_rerankers
from retbench.pipelines.runs.saved_run import First, foreign, need_task, ours
from retbench.records.cell import Cell, of_record
from retbench.records.load_run import find_run
from retbench.records.output import Place


def rerank_run(run: str, rerankers: tuple[str, ...], task: str | None, output: Place) -> Iterator[Cell]:
    """Yield the cell of the run, then the cell of each reranker on the run before it."""
    requests = parse_rerankers(rerankers)
    if not requests:
        raise UsageError("no reranker is given", "name one: --with e2rank")
    folder, first_stage = _load_first_stage(run, task, output)
    first_stage_cell = of_record(first_stage.record, str(folder), cached=True)
    yield first_stage_cell

    def load_run(run: Path) -> First:
        return first_stage if run == folder else ours(run, first_stage.collection, first_stage.card)

    chain = RerankerChain(requests, ModelResolver(output.say), output)
    yield from chain.rerank_cell(first_stage_cell, first_stage.card, load_run)


def _load_first_stage(run: str, task: str | None, output: Place) -> tuple[Path, First]:
    path = Path(run)
    if path.is_file() and path.suffix != ".json":
        first_stage, folder = foreign(path, need_task(task), output.out, output.command)
        return folder, first_stage
    if path.parent != Path() and not path.exists():
        raise UsageError(f"there is no run at {run}", "name a run's folder, its settings-id, or a TREC run file")
    folder = find_run(run, output.out)
    return folder, ours(folder)
