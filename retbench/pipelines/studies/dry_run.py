"""What `study run` would do: every training and cell with its state and an estimate, in seconds and without a model.

The estimate is tokens x FLOP at a share of the device's peak (retbench/pipelines/studies/cost.py). `retbench run
--dry-run` measures one model instead.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retbench.cards import catalog
from retbench.cards.study import Stage, Study
from retbench.errors import RetbenchError
from retbench.pipelines.studies import training
from retbench.pipelines.studies.cells import StudyCell, group_cells, select_stages
from retbench.pipelines.studies.cost import CostEstimator
from retbench.pipelines.studies.requirements import LocalFiles, list_local_models
from retbench.pipelines.studies.status import StudyCellStatus, list_statuses


def estimate_study(
    study: Study, out: Path, estimator: CostEstimator, stage_name: str | None = None
) -> Iterator[dict[str, Any]]:
    """Yield every training and every cell; what is missing on this machine has the state `not here`."""
    statuses, files = {status.cell: status for status in list_statuses(study, out, stage_name)}, LocalFiles()
    estimator.parents |= training.find_parents(study)
    trained: set[str] = set()
    for stage in select_stages(study, stage_name):
        for cells in group_cells(study, stage):
            runnable = [cell for cell in cells if statuses[cell].status != "skipped"]
            if runnable and stage.verb == "finetune":
                name = training.format_model_name(study, stage, runnable[0])
                if name not in trained:
                    yield _estimate_training(name, stage, runnable[0], estimator, files)
                trained.add(name)
            for cell in cells:
                yield _estimate_cell(stage, statuses[cell], estimator, files)


def _estimate_training(
    name: str, stage: Stage, cell: StudyCell, estimator: CostEstimator, files: LocalFiles
) -> dict[str, Any]:
    facts = {**cell.to_json(), "task": "-", "training": name}
    if name in catalog.load_model_cards():
        return {**facts, "status": "done"}
    missing = files.find_missing_weights(cell.model)
    state = {"status": "not here", "reason": missing.describe()} if missing else {"status": "open"}
    work = estimator.estimate_training(stage, cell)
    if work.seconds is None:
        state.setdefault("reason", "the size of the training data or of the model is not known")
    return {**facts, **state, **work.to_json()}


def _estimate_cell(
    stage: Stage, status: StudyCellStatus, estimator: CostEstimator, files: LocalFiles
) -> dict[str, Any]:
    cell = status.cell
    facts = cell.to_json()
    if status.status in ("done", "skipped"):
        return {**facts, "status": status.status, **({"reason": status.reason} if status.reason else {})}
    try:
        size, work = estimator.measure_corpus(stage, cell), estimator.estimate_cell(stage, cell)
    except RetbenchError as error:
        return {**facts, "status": "not here", "reason": error.cause}
    counts = {"documents": size.documents, "queries": size.queries}
    missing = files.find_missing_collection(cell)
    for model in list_local_models(stage, (cell.model,)):
        missing = missing or files.find_missing_weights(model)
    state = {"status": "not here", "reason": missing.describe()} if missing else {"status": "open"}
    return {**facts, **state, **counts, **work.to_json()}
