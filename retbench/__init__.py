"""retbench: which language model makes the best dense retriever, zero-shot and fine-tuned, and the proof.

import retbench
cells = retbench.evaluate(["bm25", "minilm-l6"], tasks=["stdlib-text"], sample=50)
board = retbench.load_results("results")
print(retbench.compare("results/.../<settings-id>", "results/.../<settings-id>").test)
mteb.evaluate(retbench.as_mteb("minilm-l6"), mteb.get_tasks(tasks=["SciFact"]))
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from retbench.pipelines.mteb_bridge.search_model import MtebSearchModel
    from retbench.records.cell import Cell
    from retbench.reports.comparison import Comparison

__all__ = ["as_mteb", "compare", "evaluate", "load_results"]


def evaluate(
    models: list[str],
    *,
    tasks: list[str] | None = None,
    suites: list[str] | None = None,
    out: str | Path = "results",
    **options: Any,
) -> list["Cell"]:
    """Run models on tasks and suites as `retbench run` does; `options` are methods, weights, sample, overrides.

    A cell that failed is returned with its error; finished cells are found on disk.
    """
    from retbench.pipelines.evaluation import evaluate as story
    from retbench.pipelines.evaluation.request import Request

    names = story.suite_tasks(tuple(suites or ()), tuple(tasks or ()))
    return list(story.evaluate(Request(tuple(models), names, out=Path(out), **options)))


def load_results(results: str | Path = "results") -> "pd.DataFrame":
    """Every finished cell of a results folder as one table, a metric a column; what cannot be read is warned of."""
    import logging

    import pandas as pd

    from retbench.pipelines.report import finished

    cells, problems = finished(Path(results))
    for problem in problems:
        logging.getLogger(__name__).warning("%s: it is left out", problem.cause)
    return pd.DataFrame([{**cell, **cell.pop("scores")} for cell in cells])


def compare(
    a: str | Path, b: str | Path, *, results: str | Path = "results", task: str | None = None, queries: int = 5
) -> "Comparison":
    """Two runs as `retbench compare` sees them: differing settings, scores, test, the queries that moved most."""
    from retbench.pipelines.runs.compare import compare as story

    return story(str(a), str(b), Path(results), task, queries)


def as_mteb(
    model: str, method: str | None = None, *, weights: str | None = None, overrides: dict[str, Any] | None = None
) -> "MtebSearchModel":
    """A model of ours as a model of mteb's (its search protocol), with our encoding, store and search."""
    from retbench.pipelines.mteb_bridge.search_model import as_mteb as story

    return story(model, method, weights, overrides)
