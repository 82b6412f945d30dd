"""External evaluators: mteb's retrieval evaluator and beir's EvaluateRetrieval score a finished run.

Each receives documents with scores and applies its default rules. Means are compared; an evaluator that rounds its
means is compared at its number of digits.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from retbench.cards.task import SourceSpec
from retbench.errors import MissingError
from retbench.system.installation import suggest_extra

Judgments = Mapping[str, Mapping[str, int]]
Run = Mapping[str, Mapping[str, float]]
Scores = dict[str, float]

CUTS = (1, 3, 5, 10, 20, 100, 1000)
BEIR_CUTS = (1, 3, 5, 10, 100, 1000)


@dataclass(frozen=True)
class ExternalEvaluator:
    """An evaluator: its name, its number of digits, whether it drops a query's own id, and its scores."""

    name: str
    digits: int
    drops_same_id: bool
    compute_scores: Callable[[Judgments, Run], Scores]


def list_external_evaluators(source: SourceSpec) -> list[ExternalEvaluator]:
    """Return both evaluators, with their rules for a task of this source."""
    drops_same_id = does_mteb_drop_same_id(source.mteb)
    return [
        ExternalEvaluator("mteb", 6, drops_same_id, partial(compute_mteb_scores, drop_same_id=drops_same_id)),
        ExternalEvaluator("beir", 5, True, _compute_beir_scores),
    ]


def does_mteb_drop_same_id(task: str | None) -> bool:
    """Return mteb's rule for the task; for an unknown task it keeps the query's own id."""
    if task is None:
        return False
    import mteb

    return bool(getattr(mteb.get_task(task), "ignore_identical_ids", False))


def run_mteb_evaluator(judgments: Judgments, run: Run, drop_same_id: bool) -> Any:
    """Run mteb's evaluator: it returns rounded means and the unrounded scores of every query."""
    with import_evaluator("mteb"):
        from mteb._evaluators.retrieval_evaluator import RetrievalEvaluator

        evaluate = RetrievalEvaluator.evaluate
        return evaluate(None, _copy_nested(judgments), _copy_nested(run), CUTS, ignore_identical_ids=drop_same_id)  # type: ignore[arg-type]  # it does not use `self`


def compute_mteb_scores(judgments: Judgments, run: Run, drop_same_id: bool) -> Scores:
    """Compute mteb's means from its unrounded scores per query."""
    evaluation = run_mteb_evaluator(judgments, run, drop_same_id)
    rows = list(evaluation.all_scores.values())
    scores = {
        f"{ours}_at_{cut}": math.fsum(row[f"{theirs}_{cut}"] for row in rows) / len(rows)
        for ours, theirs in (("ndcg", "ndcg_cut"), ("map", "map_cut"), ("recall", "recall"))
        for cut in CUTS
    }
    return {**scores, **{f"mrr_at_{cut}": evaluation.mrr[f"MRR@{cut}"] for cut in CUTS}}


def _compute_beir_scores(judgments: Judgments, run: Run) -> Scores:
    with import_evaluator("beir"):
        from beir.retrieval.evaluation import EvaluateRetrieval

        graded = EvaluateRetrieval.evaluate(_copy_nested(judgments), run_copy := _copy_nested(run), list(BEIR_CUTS))
        reciprocal = EvaluateRetrieval.evaluate_custom(_copy_nested(judgments), run_copy, list(BEIR_CUTS), metric="mrr")
    means_by_name = {name.lower(): value for means in (*graded[:3], reciprocal) for name, value in means.items()}
    return {name.replace("@", "_at_"): value for name, value in means_by_name.items()}


@contextmanager
def import_evaluator(name: str) -> Iterator[None]:
    """Ignore the warnings of an evaluator; if it is not installed, raise with the command that installs it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImportError as problem:
        raise MissingError(f"the evaluator {name} is not installed ({problem})", suggest_extra("verify")) from problem


def _copy_nested(nested: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Copy judgments or a run, because both evaluators remove entries from their arguments."""
    return {query: dict(entries) for query, entries in nested.items()}
