"""`retbench rerank`: a finished run or a TREC run file goes through rerankers; every stage has a cell of its own."""

from collections.abc import Iterator
from pathlib import Path

from retbench.errors import UsageError
from retbench.pipelines.reranking.base import ModelResolver
from retbench.pipelines.reranking.chain import RerankerChain, parse_rerankers
from retbench.pipelines.runs.saved_run import SavedRun, import_trec_run, load_run, require_task
from retbench.records.cell import Cell, build_cell
from retbench.records.load_run import find_run
from retbench.records.output import RunOutput


def rerank_run(run: str, rerankers: tuple[str, ...], task: str | None, output: RunOutput) -> Iterator[Cell]:
    """Yield the cell of the run, then the cell of each reranker on the run before it."""
    requests = parse_rerankers(rerankers)
    if not requests:
        raise UsageError("no reranker is given", "name one: --with e2rank")
    folder, first_stage = _load_first_stage(run, task, output)
    first_stage_cell = build_cell(first_stage.record, str(folder), cached=True)
    yield first_stage_cell

    def load_stage(run: Path) -> SavedRun:
        return first_stage if run == folder else load_run(run, first_stage.collection, first_stage.card)

    chain = RerankerChain(requests, ModelResolver(output.log_status), output)
    yield from chain.rerank_cell(first_stage_cell, first_stage.card, load_stage)


def _load_first_stage(run: str, task: str | None, output: RunOutput) -> tuple[Path, SavedRun]:
    path = Path(run)
    if path.is_file() and path.suffix != ".json":
        first_stage, folder = import_trec_run(path, require_task(task), output.out, output.command)
        return folder, first_stage
    if path.parent != Path() and not path.exists():
        raise UsageError(f"there is no run at {run}", "name a run's folder, its settings-id, or a TREC run file")
    folder = find_run(run, output.out, task)
    return folder, load_run(folder)
