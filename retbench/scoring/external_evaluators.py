"""The referees: mteb's retrieval evaluator and beir's EvaluateRetrieval, handed a finished run and its judgments.

Each gets the run as documents with scores, as it would get anybody's, and applies the rules it has by default. Scores
are by query means; a referee that only tells rounded means is held to the digits it tells.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from retbench.cards.task import SourceSpec
from retbench.errors import MissingError

Judgments = Mapping[str, Mapping[str, int]]
Run = Mapping[str, Mapping[str, float]]
Scores = dict[str, float]

CUTS = (1, 3, 5, 10, 20, 100, 1000)
BEIR_CUTS = (1, 3, 5, 10, 100, 1000)


@dataclass(frozen=True)
class ExternalEvaluator:
    """One evaluator: its name, the digits it tells, whether it drops a query's own id, and its scores."""

    name: str
    digits: int
    drops_same_id: bool
    compute_scores: Callable[[Judgments, Run], Scores]


def list_external_evaluators(source: SourceSpec) -> list[ExternalEvaluator]:
    """Both of them, with the rules they have for a task from this source."""
    own = does_mteb_drop_same_id(source.mteb)
    return [
        ExternalEvaluator("mteb", 6, own, lambda judgments, run: compute_mteb_scores(judgments, run, own)),
        ExternalEvaluator("beir", 5, True, _compute_beir_scores),
    ]


def does_mteb_drop_same_id(task: str | None) -> bool:
    """mteb decides this task by task; for a task it does not know its evaluator keeps the query's own id."""
    if task is None:
        return False
    import mteb

    return bool(getattr(mteb.get_task(task), "ignore_identical_ids", False))


def run_mteb_evaluator(judgments: Judgments, run: Run, drop_same_id: bool) -> Any:
    """What mteb's evaluator makes of a run: rounded means, and the unrounded scores of every query."""
    with import_evaluator("mteb"):
        from mteb._evaluators.retrieval_evaluator import RetrievalEvaluator

        evaluate = RetrievalEvaluator.evaluate
        return evaluate(None, _copy_nested(judgments), _copy_nested(run), CUTS, ignore_identical_ids=drop_same_id)  # type: ignore[arg-type]  # it uses nothing of itself


def compute_mteb_scores(judgments: Judgments, run: Run, drop_same_id: bool) -> Scores:
    """mteb's means, from its unrounded scores of every query."""
    found = run_mteb_evaluator(judgments, run, drop_same_id)
    rows = list(found.all_scores.values())
    scores = {
        f"{ours}_at_{cut}": math.fsum(row[f"{theirs}_{cut}"] for row in rows) / len(rows)
        for ours, theirs in (("ndcg", "ndcg_cut"), ("map", "map_cut"), ("recall", "recall"))
        for cut in CUTS
    }
    return {**scores, **{f"mrr_at_{cut}": found.mrr[f"MRR@{cut}"] for cut in CUTS}}


def _compute_beir_scores(judgments: Judgments, run: Run) -> Scores:
    with import_evaluator("beir"):
        from beir.retrieval.evaluation import EvaluateRetrieval

        graded = EvaluateRetrieval.evaluate(_copy_nested(judgments), dropped := _copy_nested(run), list(BEIR_CUTS))
        reciprocal = EvaluateRetrieval.evaluate_custom(_copy_nested(judgments), dropped, list(BEIR_CUTS), metric="mrr")
    told = {name.lower(): value for means in (*graded[:3], reciprocal) for name, value in means.items()}
    return {name.replace("@", "_at_"): value for name, value in told.items()}


@contextmanager
def import_evaluator(name: str) -> Iterator[None]:
    """Its own warnings are not about our run; if it is not installed, say how it comes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImportError as problem:
        raise MissingError(
            f"the referee {name} is not installed ({problem})", "pip install 'retbench[verify]'"
        ) from problem


def _copy_nested(nested: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Both evaluators remove entries from what they are given."""
    return {query: dict(entries) for query, entries in nested.items()}
