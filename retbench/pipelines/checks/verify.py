"""`retbench verify`: external evaluators score a finished run again; every difference is explained, or is a failure.

The run is read from disk. A difference is explained if retbench's metrics give the evaluator's figure once the
evaluator's rule replaces the task card's.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from retbench.cards.task import SourceSpec
from retbench.corpora.collection import Collection
from retbench.errors import DataError
from retbench.records.load_run import find_run, open_recorded_collection, read_rankings
from retbench.records.record import Record
from retbench.records.results_folder import RECORD_FILE, read_record
from retbench.records.scored_run import read_raw_scores
from retbench.scoring.external_evaluators import ExternalEvaluator, Run, list_external_evaluators
from retbench.scoring.metrics import Scores, compute_mean_scores, score_run

RAW_SCORES = "raw scores"
RULE_EXPLANATIONS = {
    "same id": "the evaluator removes a document with the query's own id after the cut; the task card keeps it",
    "ties": "{ties} queries have documents with equal scores: the evaluator orders them by falling id",
    "missing": "{missing} queries have no results: the evaluator excludes them from the mean, retbench counts 0",
    "grade": "the evaluator counts every grade above 0 as relevant, the task card only {grade} and above",
}


@dataclass(frozen=True)
class MetricCheck:
    """One metric of the record and of one external evaluator."""

    evaluator: str
    metric: str
    ours: float
    theirs: float
    digits: int
    reasons: tuple[str, ...] | None  # empty if they agree, None if the difference has no explanation

    @property
    def agrees(self) -> bool:
        """Whether the two are equal in every digit that the evaluator reports."""
        return self.reasons == ()

    def to_json(self) -> dict[str, Any]:
        """Return the object for `--json`, where the evaluator has the key `referee`."""
        fields = asdict(self)
        return {"referee": fields.pop("evaluator"), **fields, "agrees": self.agrees}


@dataclass
class Verification:
    """A run and its checks by all external evaluators."""

    run: str
    task: str
    checks: list[MetricCheck] = field(default_factory=list)

    @property
    def unexplained(self) -> list[MetricCheck]:
        """The checks that differ without an explanation."""
        return [check for check in self.checks if check.reasons is None]

    def to_json(self) -> list[dict[str, Any]]:
        """Return one object per metric and evaluator."""
        return [{"run": self.run, "task": self.task, **check.to_json()} for check in self.checks]


@dataclass(frozen=True)
class _LoadedRun:
    """A run from disk with everything needed to score it with other rules."""

    record: Record
    collection: Collection
    ranked: dict[str, list[str]]
    raw_scores: dict[str, dict[str, float]]

    def compute_scores(self, rules: tuple[str, ...] = ()) -> Scores:
        """Compute retbench's metrics; each named rule replaces the task card's rule by the evaluators'."""
        ranked: Mapping[str, list[str]] = self.ranked
        if "ties" in rules:
            ranked = {query: _sort_like_trec_eval(scores) for query, scores in self.raw_scores.items()}
        if "same id" in rules:
            ranked = {query: [document for document in ids if document != query] for query, ids in ranked.items()}
        judgments = self.collection.judgments
        if "missing" in rules:
            judgments = {query: grades for query, grades in judgments.items() if query in ranked}
        relevant_from = 1 if "grade" in rules else self.record.settings["relevant_from"]
        return compute_mean_scores(score_run(ranked, judgments, self.record.settings["depth"], relevant_from))

    def find_differing_rules(self, evaluator: ExternalEvaluator, with_raw_scores: bool) -> list[str]:
        """Return the rules in which the evaluator differs from the task card and that matter for this run."""
        applies = {
            "same id": evaluator.drops_same_id and any(query in ids for query, ids in self.ranked.items()),
            "ties": with_raw_scores and self.count_ties() > 0,
            "missing": self.count_missing() > 0,
            "grade": self.record.settings["relevant_from"] > 1,
        }
        return [rule for rule, is_relevant in applies.items() if is_relevant]

    def count_ties(self) -> int:
        """Count queries with two documents of equal score."""
        return sum(len(set(scores.values())) < len(scores) for scores in self.raw_scores.values())

    def count_missing(self) -> int:
        """Count judged queries without results."""
        return sum(query not in self.ranked for query in self.collection.judgments)

    def explain_rule(self, rule: str) -> str:
        """Return the rule as a sentence."""
        relevant_from = self.record.settings["relevant_from"]
        return RULE_EXPLANATIONS[rule].format(ties=self.count_ties(), missing=self.count_missing(), grade=relevant_from)


def verify_run(run: str, results: Path | None = None, task: str | None = None) -> Verification:
    """Check a finished run with every external evaluator: once by its ranks, once by its raw scores."""
    folder = find_run(run, results, task)
    loaded = _load_run(folder)
    _check_record(folder, loaded)
    verification = Verification(folder.as_posix(), loaded.record.task)
    by_rank = {query: {d: float(-rank) for rank, d in enumerate(ids)} for query, ids in loaded.ranked.items()}
    for evaluator in list_external_evaluators(SourceSpec(**loaded.record.cards["task"]["source"])):
        verification.checks += _compare_metrics(loaded, evaluator, by_rank, with_raw_scores=False)
        verification.checks += _compare_metrics(loaded, evaluator, loaded.raw_scores, with_raw_scores=True)
    return verification


def _load_run(folder: Path) -> _LoadedRun:
    record = read_record(folder / RECORD_FILE)
    collection = open_recorded_collection(record)
    ranked = read_rankings(folder, collection)
    scores = read_raw_scores(folder)
    raw = {query: dict(zip(ids, scores[query], strict=True)) for query, ids in ranked.items()}
    return _LoadedRun(record, collection, ranked, raw)


def _check_record(folder: Path, loaded: _LoadedRun) -> None:
    """Raise if the run does not give the record's scores, or ranks a document that the task excludes."""
    scores = loaded.compute_scores()
    wrong = [name for name, score in loaded.record.scores.items() if not _is_equal(score, scores[name], 9)]
    if wrong:
        name = wrong[0]
        raise DataError(
            f"{folder}: {name} of the run is {scores[name]:.6f}, of the record {loaded.record.scores[name]:.6f}",
            "one of the two files was changed: remove the folder and run the cell again",
        )
    drops_same_id = loaded.record.settings["same_id"] == "drop"
    for query, ids in loaded.ranked.items():
        forbidden = loaded.collection.excluded.get(query, frozenset()) | ({query} if drops_same_id else set())
        if ranked_forbidden := forbidden.intersection(ids):
            raise DataError(
                f"{folder}: query {query!r} ranks {min(ranked_forbidden)!r}, which the task excludes",
                "run the cell again",
            )


def _compare_metrics(
    loaded: _LoadedRun, evaluator: ExternalEvaluator, run: Run, with_raw_scores: bool
) -> list[MetricCheck]:
    theirs = evaluator.compute_scores(loaded.collection.judgments, run)
    rules = loaded.find_differing_rules(evaluator, with_raw_scores)
    rule_sets = [rule_set for size in range(len(rules) + 1) for rule_set in combinations(rules, size)]
    scores_by_rules = {rule_set: loaded.compute_scores(rule_set) for rule_set in rule_sets}
    name = f"{evaluator.name}, {RAW_SCORES}" if with_raw_scores else evaluator.name
    checks = []
    for metric, ours in loaded.record.scores.items():
        if metric in theirs:
            equal = [s for s in rule_sets if _is_equal(scores_by_rules[s][metric], theirs[metric], evaluator.digits)]
            reasons = tuple(map(loaded.explain_rule, equal[0])) if equal else None
            checks.append(MetricCheck(name, metric, ours, theirs[metric], evaluator.digits, reasons))
    return checks


def _is_equal(a: float, b: float, digits: int) -> bool:
    return abs(a - b) <= 0.5000001 * 10.0**-digits


def _sort_like_trec_eval(scores: Mapping[str, float]) -> list[str]:
    """Sort as trec_eval does: by descending float32 score, ties by descending id."""
    return sorted(scores, key=lambda document: (np.float32(scores[document]), document), reverse=True)


def format_verification(verification: Verification) -> str:
    """Format the checks for the terminal: per evaluator the agreement, then the differences grouped by reason."""
    lines = [f"{verification.run} ({verification.task})"]
    for evaluator in dict.fromkeys(check.evaluator for check in verification.checks):
        checks = [check for check in verification.checks if check.evaluator == evaluator]
        agreeing = sum(check.agrees for check in checks)
        lines.append(f"{evaluator}: {agreeing} of {len(checks)} metrics agree to {checks[0].digits} digits")
        for reasons in dict.fromkeys(check.reasons for check in checks if not check.agrees):
            lines.append(f"  {'; '.join(reasons) if reasons else 'NOT EXPLAINED'}:")
            differing = [check for check in checks if check.reasons == reasons]
            lines += [f"    {check.metric}: ours {check.ours:.6f}, theirs {check.theirs:.6f}" for check in differing]
    return "\n".join(lines)
