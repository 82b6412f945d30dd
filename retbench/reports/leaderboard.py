"""Leaderboards: groups finished runs into tables whose rows are comparable.

Two runs of a task share a leaderboard only if they have the same documents, queries, judgments and protocol.
Otherwise they are in two leaderboards, and the later one names the rules that differ from the first. A row has an
average only if it has a run for every task.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from retbench.cards import catalog
from retbench.cards.method import VECTOR_KINDS
from retbench.records.cell import classify_training_exposure
from retbench.records.failure import ANY_METHOD, Failure
from retbench.records.scored_run import ScoredRun
from retbench.reports.length_labels import describe_longer_lengths, format_lengths, has_usual_lengths
from retbench.reports.mean_ranks import MeanRank, compute_mean_ranks
from retbench.reports.published_tables import PublishedRow
from retbench.reports.ranks import RowRank, compute_row_ranks
from retbench.reports.suite_average import compute_suite_mean, group_tasks
from retbench.store.digest import to_canonical_json

if TYPE_CHECKING:  # it compares two leaderboards
    from retbench.reports.sample_agreement import SampleAgreement

MODEL_SETTINGS = ("encoder", "lexical", "retriever", "engine", "run", "rerankers", "depth")
SHARED_RULES = ("split", "sample", "protocol")  # rules shared by all tasks of a leaderboard
CUSTOM_SUITE = "custom"  # a user's own folders may be unrelated, so each has its own leaderboard
IMAGE_RULES = {"prefer": "images by models that read them, texts by others", "ignore": "texts without their images"}
DEFAULT_RULES = {"excluded": "keep", "relevant_from": 1}  # values for older records without these fields


@dataclass
class LeaderboardRow:
    """One model with one method: its runs and its failures, by task."""

    model: str
    method: str
    settings_note: str  # the settings that distinguish rows of the same model and method
    runs: dict[str, ScoredRun] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The method, followed by the distinguishing settings."""
        return f"{self.method} ({self.settings_note})" if self.settings_note else self.method

    def get_score(self, task: str) -> float | None:
        """The task's main score."""
        return self.runs[task].score if task in self.runs else None

    def get_training_exposure(self, task: str) -> str:
        """Whether the model was trained on the task's collection."""
        training_sets = self.model_card.get("training_sets")
        task_card = {"name": task} if task not in self.runs else self.runs[task].record.cards["task"]
        return classify_training_exposure(tuple(training_sets) if training_sets is not None else None, task_card)

    @property
    def model_card(self) -> dict[str, Any]:
        """The model card as stored in the record; empty if the row has no finished run."""
        return next((run.record.cards["model"] for run in self.runs.values()), {})

    def list_costs(self, name: str) -> list[float]:
        """The values of one cost in the row's records, without the records that did not measure it."""
        costs = [run.record.cost for run in self.runs.values()]
        return [cost[name] for cost in costs if cost.get(name) is not None]


@dataclass(frozen=True)
class Leaderboard:
    """Comparable rows, best first."""

    suite: str
    shared_settings: dict[str, str]  # the settings that all its runs share
    differing_rules: tuple[str, ...]  # how it differs from the suite's first leaderboard
    metric: str
    tasks: list[str]
    rows: list[LeaderboardRow]
    ranks: list[dict[str | None, RowRank]]  # by row, then by task; None is the average
    published_rows: list[PublishedRow]
    superseded_runs: int  # number of runs replaced by a newer run of the same cell
    mean_ranks: dict[int, MeanRank] = field(default_factory=dict)  # by row number; empty for a single task
    sample_agreement: "SampleAgreement | None" = None  # of a sample, if the full runs are there too

    @property
    def title(self) -> str:
        """The suite's name; for a user's own folder also the task's name."""
        return f"{self.suite}: {', '.join(self.tasks)}" if self.suite == CUSTOM_SUITE else self.suite

    @property
    def ranked_by(self) -> str | None:
        """The column that rows are ranked by: the only task, or None for the average."""
        return self.tasks[0] if len(self.tasks) == 1 else None

    def compute_average(self, row: LeaderboardRow) -> float | None:
        """The suite's mean, with groups averaged first; None while a task is missing."""
        return _compute_average(self.suite, self.tasks, row)

    @property
    def entries(self) -> dict[str, tuple[str, ...]]:
        """The entries of the average: tasks, and groups with their member tasks."""
        return group_tasks(self.suite, self.tasks)

    def compute_score(self, row: LeaderboardRow, column: str | None) -> float | None:
        """The main score of a task, the mean of a group, or the average (column None)."""
        if column is None:
            return self.compute_average(row)
        scores = [score for task in self.entries.get(column, (column,)) if (score := row.get_score(task)) is not None]
        return fmean(scores) if len(scores) == len(self.entries.get(column, (column,))) else None

    def get_rank(self, row: LeaderboardRow, task: str | None) -> RowRank | None:
        """The rank of a row on a task, or on average (task None)."""
        return self.ranks[self.rows.index(row)].get(task)

    def get_mean_rank(self, row: LeaderboardRow) -> MeanRank | None:
        """The mean rank of a row over the entries of the average."""
        return self.mean_ranks.get(self.rows.index(row))


def build_leaderboards(
    runs: list[ScoredRun], failures: list[Failure], published: list[PublishedRow]
) -> list[Leaderboard]:
    """All leaderboards, ordered by suite; a failure is listed in every leaderboard it may belong to."""
    groups: dict[tuple[str, ...], list[ScoredRun]] = defaultdict(list)
    get_edition = _number_editions(runs)
    for run in runs:
        groups[(*_build_group_key(run.record.settings, run.record.suite, run.record.task), get_edition(run))].append(
            run
        )
    failures_by_key: dict[tuple[str, ...], list[Failure]] = defaultdict(list)
    for failure in failures:
        facts = {"split": failure.split, "sample": failure.sample, "protocol": failure.protocol}
        failures_by_key[_build_group_key(facts, failure.suite, failure.task)].append(failure)
    boards: list[Leaderboard] = []
    first_boards: dict[tuple[str, ...], Leaderboard] = {}  # of a suite, or of a task outside of suites
    for key, members in sorted(groups.items()):
        first = first_boards.get(key[:2])
        boards.append(_build_leaderboard(key, members, failures_by_key.get(key[:5], []), published, first))
        first_boards.setdefault(key[:2], boards[-1])
    return boards


def _build_group_key(settings: dict[str, Any], suite: str, task: str) -> tuple[str, str, str, str, str]:
    custom_task = task if suite == CUSTOM_SUITE else ""
    split, protocol = _name_if_changed(settings, task, "split"), _name_if_changed(settings, task, "protocol")
    return (suite, custom_task, split, str(settings["sample"] or "all"), protocol)


def _name_if_changed(settings: dict[str, Any], task: str, rule: str) -> str:
    """The split or protocol of a run; empty if it is that of the task's card: tasks of one suite may have their own."""
    card = catalog.load_task_cards().cards.get(task)
    return "" if card and settings[rule] == getattr(card, rule) else str(settings[rule])


def get_scoring_rules(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of the task and not of the model; they are equal for all runs of a task in one leaderboard."""
    return {**DEFAULT_RULES, **{name: value for name, value in settings.items() if name not in MODEL_SETTINGS}}


def _number_editions(runs: list[ScoredRun]) -> Callable[[ScoredRun], str]:
    """Number the editions of each task (its data and rules) by age, so that runs of one time stay together."""
    editions: dict[tuple[str, ...], list[tuple[Any, ...]]] = defaultdict(list)

    def build_rules_key(run: ScoredRun) -> tuple[Any, ...]:
        return (run.metric, to_canonical_json(get_scoring_rules(run.record.settings)))

    def build_task_key(run: ScoredRun) -> tuple[str, ...]:
        return (*_build_group_key(run.record.settings, run.record.suite, run.record.task), run.record.task)

    for run in sorted(runs, key=lambda run: run.record.created):
        if build_rules_key(run) not in editions[build_task_key(run)]:
            editions[build_task_key(run)].append(build_rules_key(run))
    return lambda run: f"{editions[build_task_key(run)].index(build_rules_key(run)):04}"


def _build_leaderboard(
    key: tuple[str, ...],
    runs: list[ScoredRun],
    failures: list[Failure],
    published: list[PublishedRow],
    first: Leaderboard | None,
) -> Leaderboard:
    suite, _, _, sample, _, _ = key
    tasks = sorted(
        {run.record.task for run in runs} | {failure.task for failure in failures},
        key=lambda task: _get_task_order(suite, task),
    )
    shared_settings = _collect_shared_settings(key, runs)
    differing_rules = (
        _list_differing_rules(runs, [run for row in first.rows for run in row.runs.values()]) if first else ()
    )
    metric = ", ".join(sorted({run.metric for run in runs}))
    rows = _build_rows(runs, failures)
    rows.sort(key=lambda row: (-(_compute_average(suite, tasks, row) or -1), row.model, row.label))
    metrics = {run.record.task: run.metric for run in runs}
    protocols = {str(run.record.settings["protocol"]) for run in runs}
    published_rows = [
        comparable_row
        for published_row in published
        if sample == "all" and (comparable_row := published_row.select_comparable(suite, metrics, protocols))
    ]
    superseded_runs = len(runs) - sum(len(row.runs) for row in rows)
    ranks = compute_row_ranks([row.runs for row in rows], tasks, suite)
    mean_ranks = compute_mean_ranks([row.runs for row in rows], tasks, suite)
    return Leaderboard(
        suite, shared_settings, differing_rules, metric, tasks, rows, ranks, published_rows, superseded_runs, mean_ranks
    )


def _list_differing_rules(runs: list[ScoredRun], others: list[ScoredRun]) -> tuple[str, ...]:
    """The rules that differ between two leaderboards; a rule of single tasks is followed by the tasks' names."""
    tasks_by_rule: dict[str, list[str]] = {}
    for task, rules in _list_distinct_rules(runs):
        for other_task, other_rules in _list_distinct_rules(others):
            for name in rules if other_task == task else SHARED_RULES:
                if rules.get(name) != other_rules.get(name) and task not in tasks_by_rule.setdefault(name, []):
                    tasks_by_rule[name].append(task)
    return tuple(
        name if name in SHARED_RULES else f"{name} of {', '.join(tasks)}"
        for name, tasks in tasks_by_rule.items()
        if tasks
    )


def _list_distinct_rules(runs: list[ScoredRun]) -> list[tuple[str, dict[str, Any]]]:
    """Each task with its rules, once: thousands of runs have the same."""
    listed = ((run.record.task, _list_rules(run)) for run in runs)
    return list({(task, to_canonical_json(rules)): (task, rules) for task, rules in listed}.values())


def _list_rules(run: ScoredRun) -> dict[str, Any]:
    settings, task = run.record.settings, run.record.task
    changed = {rule: _name_if_changed(settings, task, rule) for rule in ("split", "protocol")}
    return {**get_scoring_rules(settings), **changed, "metric": run.metric}


def _collect_shared_settings(key: tuple[str, ...], runs: list[ScoredRun]) -> dict[str, str]:
    sample = key[3]
    split, protocol = (
        ", ".join(sorted({str(run.record.settings[rule]) for run in runs})) for rule in ("split", "protocol")
    )
    shared_settings = {
        "split": split,
        "queries": sample if sample == "all" else f"sample of {sample}",
        "protocol": protocol,
    }
    for run in sorted(runs, key=lambda run: run.record.task):
        shared_settings[run.record.task] = f"{run.record.collection['fingerprint'][:12]} ({_describe_rules(run)})"
    return shared_settings


def _describe_rules(run: ScoredRun) -> str:
    """The fields, the metric, and the rules of a task that are not the default."""
    settings = run.record.settings
    dropped_rules = [name for name in ("same_id", "excluded") if settings.get(name) == "drop"]
    grade = settings.get("relevant_from", 1)
    words = ["+".join(settings["fields"]), run.metric, *(f"{name} dropped" for name in dropped_rules)]
    words += [IMAGE_RULES[use] for use in IMAGE_RULES if use == settings.get("images")]
    return ", ".join([*words, f"relevant from grade {grade}"] if grade != 1 else words)


def _compute_average(suite: str, tasks: list[str], row: LeaderboardRow) -> float | None:
    scores = {task: run.score for task, run in row.runs.items()}
    return compute_suite_mean(suite, scores) if len(scores) == len(tasks) else None


def _get_task_order(suite: str, task: str) -> tuple[int, str]:
    members = catalog.load_suites().find(suite).expand_tasks() if suite in catalog.load_suites() else ()
    return (members.index(task) if task in members else len(members), task)


def _build_rows(runs: list[ScoredRun], failures: list[Failure]) -> list[LeaderboardRow]:
    """One row per variant of a model and method; failures join the rows of their model, or get a new row."""
    variants: dict[tuple[str, str], dict[str, LeaderboardRow]] = defaultdict(dict)
    lengths_of_tasks: dict[tuple[str, str], set[str]] = defaultdict(set)
    for run in runs:
        if has_usual_lengths(run.record):
            lengths_of_tasks[run.record.model, _name_method(run)].add(format_lengths(run.record))
    for run in sorted(runs, key=lambda run: run.record.created):  # the newer run of a cell replaces the older
        record, method = run.record, _name_method(run)
        differ = has_usual_lengths(record) and len(lengths_of_tasks[record.model, method]) > 1
        note = _describe_settings(record.settings, "each task's lengths" if differ else format_lengths(record))
        row = variants[record.model, method].setdefault(note, LeaderboardRow(record.model, method, note))
        row.runs[record.task] = run
    for failure in failures:
        method = format_method_label(failure.method, failure.rerank)
        names = [name for name in variants if name[0] == failure.model and method in (name[1], ANY_METHOD)]
        for name in names or [(failure.model, method)]:
            for row in variants[name].values() or [variants[name].setdefault("", LeaderboardRow(*name, ""))]:
                if failure.task not in row.runs:
                    row.failures[failure.task] = failure
    for notes in variants.values():
        for row in notes.values():
            longer = next(filter(None, (describe_longer_lengths(run.record) for run in row.runs.values())), "")
            lengths = longer.partition(",")[0]
            row.settings_note = longer if len(notes) == 1 else row.settings_note.replace(lengths, longer or lengths)
    return [row for notes in variants.values() for row in notes.values()]


def format_method_label(method: str, rerankers: Iterable[str]) -> str:
    """The method's name, followed by its rerankers."""
    return " + ".join((method, *rerankers))


def _name_method(run: ScoredRun) -> str:
    return format_method_label(run.record.method, (one["rerank"] for one in run.record.settings["rerankers"]))


def _describe_settings(settings: dict[str, Any], lengths: str) -> str:
    """The settings that may differ between rows of one model and method in one leaderboard."""
    encoder = settings["encoder"]
    parts = [f"depth {settings['depth']}"]
    if "run" in settings:
        parts.append(f"file {settings['run'][:8]}")
    if encoder is None:
        return ", ".join(parts)
    if settings["retriever"] not in VECTOR_KINDS:
        parts.insert(0, f"search {settings['retriever']}")
    if encoder.get("vector_dtype"):
        parts.insert(0, f"stored as {encoder['vector_dtype']}")
    if encoder.get("dimensions"):
        parts.insert(0, f"{encoder['dimensions']} dimensions")
    if encoder.get("rope"):
        parts.insert(0, f"rope {encoder['rope']}")
    return ", ".join([encoder["dtype"], lengths, *parts, settings["engine"], f"weights {encoder['weights'][:8]}"])
