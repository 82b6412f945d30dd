"""The inspection story: the queries a run answers worst, what it ranked, and where the relevant documents stood."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from retbench.corpora.collection import Collection
from retbench.errors import UsageError, suggest_names
from retbench.pipelines.runs.compare import clip, documents
from retbench.records.load_run import collection_of, find_run, rankings
from retbench.records.results_folder import RECORD, read
from retbench.records.scored_run import kept

SHOWN_RANKED = 5


@dataclass(frozen=True)
class Answer:
    """One query of a run."""

    query: str
    score: float
    text: str
    ranked: tuple[str, ...]
    relevant: dict[str, int | None]  # document to its rank; none where it was not found
    relevant_texts: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """What `retbench inspect` says."""

    run: str
    metric: str
    score: float
    depth: int
    answers: list[Answer]

    def json(self) -> dict[str, Any]:
        """The document `--json` prints."""
        return asdict(self)


def inspect(run: str, results: Path = Path("results"), query: str | None = None, queries: int = 5) -> Inspection:
    """The worst queries of a run, or the one asked for."""
    folder = find_run(run, results)
    found = kept(folder, read(folder / RECORD))
    scores = dict(zip(found.queries, found.values.tolist(), strict=True))
    if query is not None and query not in scores:
        raise UsageError(f"{run} has no query {query!r}", suggest_names(query, scores))
    wanted = [query] if query is not None else sorted(scores, key=lambda name: (scores[name], name))[:queries]
    collection = collection_of(found.record)
    ranked = rankings(folder, collection)
    answers = [_answer(collection, name, scores[name], ranked.get(name, [])) for name in wanted]
    record = found.record
    name = f"{record.model} · {record.method} · {record.task} ({record.settings_id})"
    return Inspection(name, found.metric, found.score, record.settings["depth"], answers)


def _answer(collection: Collection, query: str, score: float, ranked: list[str]) -> Answer:
    judged = collection.judgments[query]
    places = {name: rank for rank, name in enumerate(ranked, start=1)}
    relevant = sorted(
        (d for d, grade in judged.items() if grade > 0), key=lambda d: (places.get(d, len(ranked) + 1), d)
    )
    text = collection.queries[collection.queries.ids().to_pylist().index(query)].text
    return Answer(
        query, score, clip(text), documents(collection, query, ranked[:SHOWN_RANKED]),
        {name: places.get(name) for name in relevant}, documents(collection, query, relevant),
    )  # fmt: skip


def text(inspection: Inspection) -> str:
    """The inspection for a reader."""
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
