"""The verification story: referees recompute a finished run, and a difference is either explained or a failure.

The run is taken from disk, as anybody would take it. A difference counts as explained when our own metrics, under the
referee's rule that differs from the task card's, give the referee's figure.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from retbench.cards.task import Source
from retbench.corpora.collection import Collection
from retbench.errors import DataError
from retbench.records.load_run import collection_of, find_run, rankings
from retbench.records.record import Record
from retbench.records.results_folder import RECORD, read
from retbench.records.scored_run import raw_scores
from retbench.scoring.external_evaluators import Referee, Run, referees
from retbench.scoring.metrics import Scores, mean_scores, score_run

RAW = "raw scores"
RULES = {
    "same id": "it removes a document with the query's own id, after the cut; the task card keeps it",
    "ties": "{ties} queries have documents with equal scores: it orders them by id, we by their place in the corpus",
    "missing": "{missing} queries found nothing: it leaves them out of the mean, we count them as 0",
    "grade": "it counts every grade above 0 as relevant, the task card only {grade} and above",
}


@dataclass(frozen=True)
class Verdict:
    """One metric before one referee."""

    referee: str
    metric: str
    ours: float
    theirs: float
    digits: int
    reasons: tuple[str, ...] | None  # empty when they agree, none when a difference has no explanation

    @property
    def agrees(self) -> bool:
        """Whether the two are equal in every digit the referee tells."""
        return self.reasons == ()


@dataclass
class Verification:
    """A run before its referees."""

    run: str
    task: str
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def unexplained(self) -> list[Verdict]:
        """Differences without an explanation."""
        return [verdict for verdict in self.verdicts if verdict.reasons is None]

    def json(self) -> list[dict[str, Any]]:
        """One object a metric and referee."""
        return [
            {"run": self.run, "task": self.task, **asdict(verdict), "agrees": verdict.agrees}
            for verdict in self.verdicts
        ]


@dataclass(frozen=True)
class _Evidence:
    """A run from disk with everything needed to score it under other rules."""

    record: Record
    collection: Collection
    ranked: dict[str, list[str]]
    raw: dict[str, dict[str, float]]

    def scores(self, rules: tuple[str, ...] = ()) -> Scores:
        """Our metrics, under the card's rules but for those named."""
        ranked: Mapping[str, list[str]] = self.ranked
        if "ties" in rules:
            ranked = {query: _by_id(found) for query, found in self.raw.items()}
        if "same id" in rules:
            ranked = {query: [i for i in found if i != query] for query, found in ranked.items()}
        judged = self.collection.judgments
        if "missing" in rules:
            judged = {query: grades for query, grades in judged.items() if query in ranked}
        lowest = 1 if "grade" in rules else self.record.settings["relevant_from"]
        return mean_scores(score_run(ranked, judged, self.record.settings["depth"], lowest))

    def differing(self, referee: Referee, raw: bool) -> list[str]:
        """The rules in which a referee differs from the card on this run."""
        applies = {
            "same id": referee.drops_same_id and any(query in found for query, found in self.ranked.items()),
            "ties": raw and self.ties() > 0,
            "missing": self.missing() > 0,
            "grade": self.record.settings["relevant_from"] > 1,
        }
        return [rule for rule, does in applies.items() if does]

    def ties(self) -> int:
        """Queries in whose ranking two documents have the same score."""
        return sum(len(set(found.values())) < len(found) for found in self.raw.values())

    def missing(self) -> int:
        """Judged queries that found nothing."""
        return sum(query not in self.ranked for query in self.collection.judgments)

    def told(self, rule: str) -> str:
        """The rule as a sentence."""
        lowest = self.record.settings["relevant_from"]
        return RULES[rule].format(ties=self.ties(), missing=self.missing(), grade=lowest)


def verify(run: str, results: Path = Path("results")) -> Verification:
    """Every referee on one finished run: in our order, and with the raw scores behind it."""
    folder = find_run(run, results)
    evidence = _evidence(folder)
    _check(folder, evidence)
    found = Verification(folder.as_posix(), evidence.record.task)
    falling = {q: {d: float(-rank) for rank, d in enumerate(ids)} for q, ids in evidence.ranked.items()}
    for referee in referees(Source(**evidence.record.cards["task"]["source"])):
        found.verdicts += _verdicts(evidence, referee, falling, raw=False)
        found.verdicts += _verdicts(evidence, referee, evidence.raw, raw=True)
    return found


def _evidence(folder: Path) -> _Evidence:
    record = read(folder / RECORD)
    collection = collection_of(record)
    ranked = rankings(folder, collection)
    scores = raw_scores(folder)
    raw = {query: dict(zip(ids, scores[query], strict=True)) for query, ids in ranked.items()}
    return _Evidence(record, collection, ranked, raw)


def _check(folder: Path, evidence: _Evidence) -> None:
    """The run must give the record's scores, and hold nothing that the task forbids."""
    again = evidence.scores()
    wrong = [name for name, score in evidence.record.scores.items() if not _equal(score, again[name], 9)]
    if wrong:
        name = wrong[0]
        raise DataError(
            f"{folder}: the run gives {name} {again[name]:.6f}, its record says {evidence.record.scores[name]:.6f}",
            "one of the two files was changed: remove the folder and run the cell again",
        )
    drop = evidence.record.settings["same_id"] == "drop"
    for query, ids in evidence.ranked.items():
        barred = evidence.collection.excluded.get(query, frozenset()) | ({query} if drop else set())
        if found := barred.intersection(ids):
            raise DataError(
                f"{folder}: query {query!r} ranks {min(found)!r}, which its task forbids", "run the cell again"
            )


def _verdicts(evidence: _Evidence, referee: Referee, run: Run, raw: bool) -> list[Verdict]:
    theirs, rules = referee.score(evidence.collection.judgments, run), evidence.differing(referee, raw)
    chosen = [rule for size in range(len(rules) + 1) for rule in combinations(rules, size)]
    scored = {rule: evidence.scores(rule) for rule in chosen}
    name = f"{referee.name}, {RAW}" if raw else referee.name
    verdicts = []
    for metric, ours in evidence.record.scores.items():
        if metric in theirs:
            fits = next((r for r in chosen if _equal(scored[r][metric], theirs[metric], referee.digits)), None)
            reasons = None if fits is None else tuple(map(evidence.told, fits))
            verdicts.append(Verdict(name, metric, ours, theirs[metric], referee.digits, reasons))
    return verdicts


def _equal(a: float, b: float, digits: int) -> bool:
    return abs(a - b) <= 0.5000001 * 10.0**-digits


def _by_id(found: Mapping[str, float]) -> list[str]:
    """trec_eval's order: by the score in 32 bits, and equal ones by the id, falling."""
    return sorted(found, key=lambda document: (np.float32(found[document]), document), reverse=True)


def text(found: Verification) -> str:
    """The verdicts for a reader: agreement by referee, then the differences under their reason."""
    lines = [f"{found.run} ({found.task})"]
    for referee in dict.fromkeys(verdict.referee for verdict in found.verdicts):
        own = [verdict for verdict in found.verdicts if verdict.referee == referee]
        agreeing = sum(verdict.agrees for verdict in own)
        lines.append(f"{referee}: {agreeing} of {len(own)} metrics agree to {own[0].digits} digits")
        for reasons in dict.fromkeys(verdict.reasons for verdict in own if not verdict.agrees):
            lines.append(f"  {'; '.join(reasons) if reasons else 'NOT EXPLAINED'}:")
            differing = [verdict for verdict in own if verdict.reasons == reasons]
            lines += [f"    {v.metric}: ours {v.ours:.6f}, theirs {v.theirs:.6f}" for v in differing]
    return "\n".join(lines)
