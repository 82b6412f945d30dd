"""`retbench inspect`: the worst queries of a run, what it ranked, and the ranks of the relevant documents."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retbench.corpora.collection import Collection
from retbench.corpora.text_excerpts import find_rows, shorten_text
from retbench.corpora.texts import describe_row
from retbench.errors import UsageError, suggest_names
from retbench.pipelines.runs.compare import format_documents
from retbench.records.load_run import find_run, open_recorded_collection, read_rankings
from retbench.records.results_folder import RECORD_FILE, read_record
from retbench.records.scored_run import load_scored_run

SHOWN_RANKED = 5


@dataclass(frozen=True)
class QueryInspection:
    """One query of a run."""

    query: str
    score: float
    text: str
    ranked: tuple[str, ...]
    relevant: dict[str, int | None]  # document to its rank; None if it was not found
    relevant_texts: tuple[str, ...]


@dataclass(frozen=True)
class RunInspection:
    """The output of `retbench inspect`."""

    run: str
    metric: str
    score: float
    depth: int
    answers: list[QueryInspection]

    def to_json(self) -> dict[str, Any]:
        """Return the document that `--json` prints."""
        return asdict(self)


def inspect_run(
    run: str, results: Path | None = None, query: str | None = None, queries: int = 5, task: str | None = None
) -> RunInspection:
    """Return the worst queries of a run, or the given query."""
    folder = find_run(run, results, task)
    scored_run = load_scored_run(folder, read_record(folder / RECORD_FILE))
    scores = dict(zip(scored_run.queries, scored_run.values.tolist(), strict=True))
    if query is not None and query not in scores:
        raise UsageError(f"{run} has no query {query!r}", suggest_names(query, scores))
    selected = [query] if query is not None else sorted(scores, key=lambda name: (scores[name], name))[:queries]
    collection = open_recorded_collection(scored_run.record)
    rankings = read_rankings(folder, collection)
    answers = [_inspect_query(collection, name, scores[name], rankings.get(name, [])) for name in selected]
    record = scored_run.record
    name = f"{record.model} · {record.method} · {record.task} ({record.settings_id})"
    return RunInspection(name, scored_run.metric, scored_run.score, record.settings["depth"], answers)


def _inspect_query(collection: Collection, query: str, score: float, ranked: list[str]) -> QueryInspection:
    judged = collection.judgments[query]
    rank_by_id = {name: rank for rank, name in enumerate(ranked, start=1)}
    relevant = sorted(
        (d for d, grade in judged.items() if grade > 0), key=lambda d: (rank_by_id.get(d, len(ranked) + 1), d)
    )
    text = describe_row(collection.queries, find_rows(collection.queries, [query])[query], ("text",))
    return QueryInspection(
        query, score, shorten_text(text), format_documents(collection, query, ranked[:SHOWN_RANKED]),
        {name: rank_by_id.get(name) for name in relevant}, format_documents(collection, query, relevant),
    )  # fmt: skip


def format_inspection(inspection: RunInspection) -> str:
    """Format the inspection as text."""
    lines = [inspection.run, f"{inspection.metric} {100 * inspection.score:.2f}, depth {inspection.depth}"]
    for answer in inspection.answers:
        lines += [
            "",
            f"query {answer.query}: {100 * answer.score:.1f}",
            f"  {answer.text}",
            "  ranked ([grade] id: text):",
        ]
        lines += [f"    {rank}. {line}" for rank, line in enumerate(answer.ranked, start=1)] or ["    nothing"]
        lines.append("  relevant:")
        for rank, line in zip(answer.relevant.values(), answer.relevant_texts, strict=True):
            lines.append(f"    {'not found' if rank is None else f'rank {rank}'}: {line}")
    return "\n".join(lines)
