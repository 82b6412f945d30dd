"""A study before it is run: the paper's figures and our cells beside them, what is missing here, and the price."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from retbench.cards.study import Stage, Study
from retbench.pipelines.studies import training
from retbench.pipelines.studies.cells import StudyCell, list_study_cells
from retbench.pipelines.studies.cost import CostEstimator, Work
from retbench.pipelines.studies.reproduction import build_reproduction_tables
from retbench.pipelines.studies.requirements import MissingItem, list_missing_items, read_device_memory
from retbench.pipelines.studies.status import list_statuses
from retbench.reports.reproduction import ReproductionTable


@dataclass(frozen=True)
class StageOverview:
    """One stage: its cells, and the work of all of them; of `unknown` cells and trainings the time is not known."""

    stage: Stage
    cells: int
    done: int
    trainings: int
    work: Work
    unknown: int = 0

    def to_json(self) -> dict[str, Any]:
        """The facts with the keys of `--json`."""
        counts = {"cells": self.cells, "done": self.done, "trainings": self.trainings}
        optional = {"optional": self.stage.optional, **({"unknown": self.unknown} if self.unknown else {})}
        return {"stage": self.stage.name, "title": self.stage.title, **optional, **counts, **self.work.to_json()}


@dataclass(frozen=True)
class StudyOverview:
    """All of a study: published tables with our cells, what is missing, the stages with their work."""

    study: Study
    tables: list[ReproductionTable]
    missing: list[MissingItem]
    stages: list[StageOverview]

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        study = self.study
        return {
            "name": study.name, "title": study.title, "paper": study.paper, "departures": study.departures,
            "tables": [_describe_table(table) for table in self.tables],
            "missing": [asdict(item) for item in self.missing],
            "stages": [stage.to_json() for stage in self.stages],
        }  # fmt: skip


def build_overview(study: Study, out: Path, estimator: CostEstimator) -> StudyOverview:
    """Collect everything that `study show` prints; no model is loaded and nothing is fetched."""
    statuses = list_statuses(study, out)
    estimator.parents |= training.find_parents(study)
    done = {status.cell for status in statuses if status.status == "done"}
    stages, trained = [], set[str]()
    for stage in study.stages:
        cells = list(list_study_cells(study, stage))
        runnable = [cell for cell in cells if not cell.needs]
        trainings = _list_new_trainings(study, stage, runnable, trained) if stage.verb == "finetune" else []
        works = [estimator.estimate_training(stage, cell) for cell in trainings]
        works += [estimator.estimate_cell(stage, cell) for cell in runnable]
        unknown = sum(work.seconds is None for work in works)
        total = sum((replace(work, seconds=work.seconds or 0.0) for work in works), Work())
        total = replace(total, seconds=None) if unknown and unknown == len(works) else total
        done_count = sum(cell in done for cell in cells)
        stages.append(StageOverview(stage, len(cells), done_count, len(trainings), total, unknown))
    missing = [*list_missing_items(study), *_find_missing_memory(stages)]
    return StudyOverview(study, build_reproduction_tables(study, out), missing, stages)


def _list_new_trainings(study: Study, stage: Stage, cells: list[StudyCell], trained: set[str]) -> list[StudyCell]:
    """A cell of every model that the stage trains and no earlier stage has trained; their names join `trained`."""
    names = {training.format_model_name(study, stage, cell): cell for cell in cells}
    new_cells = [cell for name, cell in names.items() if name not in trained]
    trained |= names.keys()
    return new_cells


def _find_missing_memory(stages: list[StageOverview]) -> list[MissingItem]:
    """The stages whose weights and optimizer do not fit into the memory of this machine's largest device."""
    device, memory = read_device_memory()
    return [
        MissingItem(
            "memory", stage.stage.name,
            f"{stage.work.memory_bytes / 1e9:.0f} GB for weights and optimizer, {device} has {memory / 1e9:.0f} GB",
        )
        for stage in stages
        if stage.work.memory_bytes > memory
    ]  # fmt: skip


def _describe_table(table: ReproductionTable) -> dict[str, Any]:
    rows = [
        {
            "row": row.name, "cells": row.cells, "reproduction": row.format_verdict(),
            "figures": [{**asdict(figure), "verdict": figure.verdict} for figure in row.figures],
        }
        for row in table.rows
    ]  # fmt: skip
    published = table.table
    return {
        "table": published.name, "title": published.title, "source": published.source, "caveat": published.caveat,
        "tolerance": published.tolerance, "tolerance_reason": published.tolerance_reason, "rows": rows,
    }  # fmt: skip
