"""The board: runs become blocks of rows that may be compared.

Two runs of a task share a block only if they were scored on the same documents, queries and judgments under one
protocol; otherwise they stand in two blocks, and the later one names what sets it apart from the first. An average is
given only over a full row.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from retbench.cards import catalog
from retbench.records.cell import seen
from retbench.records.failure import ANY_METHOD, Failure
from retbench.records.scored_run import Kept
from retbench.reports.published_tables import Published
from retbench.reports.ranks import Place, places
from retbench.reports.suite_average import entries, tree_mean
from retbench.store.digest import to_canonical_json

CONTESTANT = ("encoder", "lexical", "retriever", "engine", "run", "rerankers", "depth")
SHARED = ("split", "sample", "protocol")  # rules that hold for all tasks of a block
NO_SUITE = "custom"  # a user's own folders: nothing says that they belong together, so each has a block of its own
USUAL = {"excluded": "keep", "relevant_from": 1}  # rules that older records do not state


@dataclass
class Row:
    """One model with one method: its runs by task, and what failed."""

    model: str
    method: str
    note: str  # the settings that tell it from another row of the same model and method
    runs: dict[str, Kept] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The method, with what sets it apart."""
        return f"{self.method} ({self.note})" if self.note else self.method

    def score(self, task: str) -> float | None:
        """The task's main score."""
        return self.runs[task].score if task in self.runs else None

    def seen(self, task: str) -> str:
        """Whether the model was trained on the task's collection."""
        sets = self.card.get("training_sets")
        known = {"name": task} if task not in self.runs else self.runs[task].record.cards["task"]
        return seen(tuple(sets) if sets is not None else None, known)

    @property
    def card(self) -> dict[str, Any]:
        """The model card as it was when the row was made; empty where nothing was finished."""
        return next((run.record.cards["model"] for run in self.runs.values()), {})

    def cost(self, name: str) -> list[float]:
        """One cost figure over the row's records, where it was measured."""
        costs = [run.record.cost for run in self.runs.values()]
        return [cost[name] for cost in costs if cost.get(name) is not None]


@dataclass(frozen=True)
class Block:
    """Rows that may be compared, best first."""

    suite: str
    terms: dict[str, str]  # what all runs here share
    apart: tuple[str, ...]  # the terms in which it differs from the suite's first block
    metric: str
    tasks: list[str]
    rows: list[Row]
    places: list[dict[str | None, Place]]  # by row, then by task; None is the average
    references: list[Published]
    older: int  # runs left out because a newer one fills the same cell

    @property
    def title(self) -> str:
        """The suite; of folders that belong to none, the folder."""
        return f"{self.suite}: {', '.join(self.tasks)}" if self.suite == NO_SUITE else self.suite

    @property
    def goal(self) -> str | None:
        """What rows are ranked by: the average, or the only task."""
        return self.tasks[0] if len(self.tasks) == 1 else None

    def average(self, row: Row) -> float | None:
        """The suite's mean, groups averaged first; none while a task is missing."""
        return _average(self.suite, self.tasks, row)

    @property
    def entries(self) -> dict[str, tuple[str, ...]]:
        """What the average is made of: tasks, and groups with their members."""
        return entries(self.suite, self.tasks)

    def score(self, row: Row, goal: str | None) -> float | None:
        """The main score of a task, the mean of a group, or the average (none)."""
        if goal is None:
            return self.average(row)
        scores = [score for task in self.entries.get(goal, (goal,)) if (score := row.score(task)) is not None]
        return fmean(scores) if len(scores) == len(self.entries.get(goal, (goal,))) else None

    def place(self, row: Row, task: str | None) -> Place | None:
        """Where a row stands on a task or on average."""
        return self.places[self.rows.index(row)].get(task)


def blocks(runs: list[Kept], failures: list[Failure], published: list[Published]) -> list[Block]:
    """Every block, in the order of suites; what failed stands in every block it may belong to."""
    contests: dict[tuple[str, ...], list[Kept]] = defaultdict(list)
    edition = _editions(runs)
    for run in runs:
        contests[(*_contest(run.record.settings, run.record.suite, run.record.task), edition(run))].append(run)
    made: list[Block] = []
    for key, members in sorted(contests.items()):
        first = next((block for block in made if block.suite == key[0] and key[1] in ("", *block.tasks)), None)
        lost = [
            f
            for f in failures
            if _contest({"split": f.split, "sample": f.sample, "protocol": f.protocol}, f.suite, f.task) == key[:5]
        ]
        made.append(_block(key, members, lost, published, first))
    return made


def _contest(settings: dict[str, Any], suite: str, task: str) -> tuple[str, str, str, str, str]:
    own = task if suite == NO_SUITE else ""
    return (suite, own, settings["split"], str(settings["sample"] or "all"), settings["protocol"])


def rules(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that belong to the contest and not to the contestant: they must be equal within a block."""
    return {**USUAL, **{name: value for name, value in settings.items() if name not in CONTESTANT}}


def _editions(runs: list[Kept]) -> Callable[[Kept], str]:
    """Which edition of its task a run was scored on: numbered by age, so that what was run together stays together."""
    known: dict[tuple[str, ...], list[tuple[Any, ...]]] = defaultdict(list)

    def content(run: Kept) -> tuple[Any, ...]:
        return (run.metric, to_canonical_json(rules(run.record.settings)))

    def contest(run: Kept) -> tuple[str, ...]:
        return (*_contest(run.record.settings, run.record.suite, run.record.task), run.record.task)

    for run in sorted(runs, key=lambda run: run.record.created):
        if content(run) not in known[contest(run)]:
            known[contest(run)].append(content(run))
    return lambda run: f"{known[contest(run)].index(content(run)):04}"


def _block(
    key: tuple[str, ...], runs: list[Kept], failures: list[Failure], published: list[Published], first: Block | None
) -> Block:
    suite, _, _, sample, protocol, _ = key
    tasks = sorted({run.record.task for run in runs} | {f.task for f in failures}, key=lambda task: _order(suite, task))
    terms = _terms(key, runs)
    apart = _apart(runs, [run for row in first.rows for run in row.runs.values()]) if first else ()
    metric = ", ".join(sorted({run.metric for run in runs}))
    rows = _rows(runs, failures)
    rows.sort(key=lambda row: (-(_average(suite, tasks, row) or -1), row.model, row.label))
    metrics = {run.record.task: run.metric for run in runs}
    beside = [fit for one in published if sample == "all" and (fit := one.beside(suite, metrics, protocol))]
    older = len(runs) - sum(len(row.runs) for row in rows)
    standings = places([row.runs for row in rows], tasks, suite)
    return Block(suite, terms, apart, metric, tasks, rows, standings, beside, older)


def _apart(runs: list[Kept], others: list[Kept]) -> tuple[str, ...]:
    """The rules in which two blocks differ; a rule of single tasks is followed by their names."""
    found: dict[str, list[str]] = {}
    for run in runs:
        own = {**rules(run.record.settings), "metric": run.metric}
        for other in others:
            theirs = {**rules(other.record.settings), "metric": other.metric}
            common = own if other.record.task == run.record.task else SHARED
            for name in common:
                if own.get(name) != theirs.get(name) and run.record.task not in found.setdefault(name, []):
                    found[name].append(run.record.task)
    return tuple(name if name in SHARED else f"{name} of {', '.join(tasks)}" for name, tasks in found.items() if tasks)


def _terms(key: tuple[str, ...], runs: list[Kept]) -> dict[str, str]:
    _, _, split, sample, protocol, _ = key
    terms = {"split": split, "queries": sample if sample == "all" else f"sample of {sample}", "protocol": protocol}
    for run in sorted(runs, key=lambda run: run.record.task):
        terms[run.record.task] = f"{run.record.collection['fingerprint'][:12]} ({_rules(run)})"
    return terms


def _rules(run: Kept) -> str:
    """The rules of a task that are not the usual ones, in words."""
    settings = run.record.settings
    dropped = [name for name in ("same_id", "excluded") if settings.get(name) == "drop"]
    grade = settings.get("relevant_from", 1)
    words = ["+".join(settings["fields"]), run.metric, *(f"{name} dropped" for name in dropped)]
    return ", ".join([*words, f"relevant from grade {grade}"] if grade != 1 else words)


def _average(suite: str, tasks: list[str], row: Row) -> float | None:
    known = {task: run.score for task, run in row.runs.items()}
    return tree_mean(suite, known) if len(known) == len(tasks) else None


def _order(suite: str, task: str) -> tuple[int, str]:
    members = catalog.load_suites().find(suite).expand_tasks() if suite in catalog.load_suites() else ()
    return (members.index(task) if task in members else len(members), task)


def _rows(runs: list[Kept], failures: list[Failure]) -> list[Row]:
    """One row a variant of a model and method; failures join the rows of their model, or make one."""
    variants: dict[tuple[str, str], dict[str, Row]] = defaultdict(dict)
    for run in sorted(runs, key=lambda run: run.record.created):  # of two runs of a cell the newer one counts
        record, note = run.record, _note(run.record.settings)
        method = staged(record.method, (one["rerank"] for one in record.settings["rerankers"]))
        row = variants[record.model, method].setdefault(note, Row(record.model, method, note))
        row.runs[record.task] = run
    for failure in failures:
        method = staged(failure.method, failure.rerank)
        names = [name for name in variants if name[0] == failure.model and method in (name[1], ANY_METHOD)]
        for name in names or [(failure.model, method)]:
            for row in variants[name].values() or [variants[name].setdefault("", Row(*name, ""))]:
                if failure.task not in row.runs:
                    row.failures[failure.task] = failure
    for notes in variants.values():
        if len(notes) == 1:
            next(iter(notes.values())).note = ""
    return [row for notes in variants.values() for row in notes.values()]


def staged(method: str, rerankers: Iterable[str]) -> str:
    """A method and the rerankers after it."""
    return " + ".join((method, *rerankers))


def _note(settings: dict[str, Any]) -> str:
    """The settings two rows of one model and method can differ in, within a block."""
    encoder = settings["encoder"]
    parts = [f"depth {settings['depth']}"]
    if "run" in settings:
        parts.append(f"file {settings['run'][:8]}")
    if encoder is None:
        return ", ".join(parts)
    lengths = f"{encoder['query_limit']}/{encoder['document_limit']} tokens"
    if encoder.get("rope"):
        parts.insert(0, f"rope {encoder['rope']}")
    return ", ".join([encoder["dtype"], lengths, *parts, settings["engine"], f"weights {encoder['weights'][:8]}"])
