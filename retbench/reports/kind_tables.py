"""Tables of a task whose rows are of several kinds, such as text, code and page images (`kinds_in_ids` of its card).

They answer three questions: how well is each kind of query answered? Does one model serve all kinds, or is another
model significantly better on one of them? Which kinds of documents does a model rank first, whatever was asked for?
"""

from collections import Counter
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from retbench.records.load_run import read_trec_run
from retbench.records.results_folder import TREC_FILE, decode_id
from retbench.records.scored_run import ScoredRun
from retbench.reports.leaderboard import Leaderboard, LeaderboardRow
from retbench.reports.ranks import ALPHA
from retbench.scoring.significance import adjust_p_values, compute_paired_p_value

TOP = 10
BEST_NAME = "best model of each kind"
RELEVANT_NAME = "relevant documents"

TableParts = tuple[str, list[str], list[list[str]], str]  # title, heads, rows, note


@dataclass(frozen=True)
class KindScores:
    """The scores of one row on one task, query by query, for every kind of query."""

    row: LeaderboardRow
    run: ScoredRun
    values: dict[str, NDArray[np.float64]]

    @property
    def means(self) -> dict[str, float]:
        """The mean score of every kind of query."""
        return {kind: float(values.mean()) for kind, values in self.values.items()}


def build_kind_tables(board: Leaderboard) -> list[TableParts]:
    """The tables of every task whose ids begin with the kind of the row."""
    tables = []
    for task in board.tasks:
        rows = [(row, row.runs[task]) for row in board.rows if task in row.runs]
        scores = [KindScores(row, run, _group_values(run)) for row, run in rows if compute_kind_scores(run)]
        tables += [_build_score_table(task, scores, board.metric)] if scores else []
        tables += [_build_comparison_table(task, scores)] if len(scores) > 1 else []
        tables += [_build_share_table(task, scores)] if scores else []
    return tables


def compute_kind_scores(run: ScoredRun) -> dict[str, float]:
    """The mean main score of every kind of query; empty if the ids of the task do not say the kind."""
    if not run.record.cards["task"].get("kinds_in_ids"):
        return {}
    return {kind: float(values.mean()) for kind, values in _group_values(run).items()}


def _split_kind(identifier: str) -> str:
    return identifier.partition(":")[0]


def _group_values(run: ScoredRun) -> dict[str, NDArray[np.float64]]:
    kinds = np.array([_split_kind(query) for query in run.queries])
    return {str(kind): run.values[kinds == kind] for kind in np.unique(kinds)}


def _find_best(scores: list[KindScores]) -> dict[str, KindScores]:
    """The row with the highest mean on every kind of query."""
    return {kind: max(scores, key=lambda one: one.means[kind]) for kind in scores[0].values}


def _format_scores(means: list[float]) -> list[str]:
    return [f"{100 * mean:.2f}" for mean in (*means, fmean(means))]


def _build_score_table(task: str, scores: list[KindScores], metric: str) -> TableParts:
    rows = [[one.row.model, one.row.label, *_format_scores(list(one.means.values()))] for one in scores]
    best = [one.means[kind] for kind, one in _find_best(scores).items()]
    if len(scores) > 1:
        rows.append([BEST_NAME, "", *_format_scores(best)])
    note = (
        f"{task}: {metric} x 100 for each kind of query and of its relevant documents, all in one corpus; "
        "the mean counts every kind alike."
    )
    return "Kinds of queries", ["model", "method", *scores[0].values, "mean"], rows, note


def _build_comparison_table(task: str, scores: list[KindScores]) -> TableParts:
    """Every row beside the best model of each kind, with the kinds on which it is significantly worse."""
    best = _find_best(scores)
    pairs = [(one, kind) for one in scores for kind in best if one is not best[kind]]
    p_values = adjust_p_values(
        [compute_paired_p_value(best[kind].values[kind], one.values[kind]) for one, kind in pairs]
    )
    is_worse = {(id(one), kind): p_value < ALPHA for (one, kind), p_value in zip(pairs, p_values, strict=True)}
    best_mean = fmean(one.means[kind] for kind, one in best.items())
    rows = []
    for one in scores:
        worse = [kind for kind in best if is_worse.get((id(one), kind))]
        level = [kind for kind in best if kind not in worse]
        described = [f"{kind} ({100 * (one.means[kind] - best[kind].means[kind]):+.2f})" for kind in worse]
        difference = f"{100 * (fmean(one.means.values()) - best_mean):+.2f}"
        rows.append([one.row.model, one.row.label, difference, ", ".join(described) or "–", ", ".join(level) or "–"])
    winners = ", ".join(f"{kind} {one.row.model}" for kind, one in best.items())
    note = (
        f"{task}, one model for all kinds: its mean minus that of the best model of each kind ({winners}), and the "
        f"kinds on which it is significantly worse than that model. Significant at {ALPHA} by a paired randomisation "
        f"test over queries, with Holm's correction over {len(pairs)} differences. The best are chosen by the same "
        "queries, so they look better than they are."
    )
    heads = ["model", "method", "minus the best of each kind", "significantly worse on", "not significantly worse on"]
    return "One model for all kinds", heads, rows, note


def _build_share_table(task: str, scores: list[KindScores]) -> TableParts:
    """The share of each kind of document among the first ones, by kind of query."""
    relevant: dict[str, Counter[str]] = {}
    for kind, values in scores[0].values.items():
        asking, _, wanted = kind.partition("-to-")
        relevant.setdefault(asking, Counter())[wanted] += len(values)
    found = [(f"{one.row.model} · {one.row.label}", _count_kinds(one.run)) for one in scores]
    blocks = [(RELEVANT_NAME, relevant), *found]
    kinds = sorted({kind for _, counters in blocks for counter in counters.values() for kind in counter if kind})
    rows = [
        [name, asking, *(f"{100 * counter[kind] / counter.total():.0f}%" for kind in kinds)]
        for name, counters in blocks
        for asking, counter in counters.items()
    ]
    note = (
        f"{task}: the share of each kind among the first {TOP} documents, by kind of query. A random order has the "
        "shares of the corpus; a model that prefers a kind has more of it whatever the query asks for. The relevant "
        "documents are what the queries ask for."
    )
    return "Kinds of documents found", ["model", "query", *kinds], rows, note


def _count_kinds(run: ScoredRun) -> dict[str, Counter[str]]:
    counters: dict[str, Counter[str]] = {}
    for query, documents in sorted(read_trec_run(run.folder / TREC_FILE).items()):
        asking = _split_kind(decode_id(query)).partition("-to-")[0]
        counters.setdefault(asking, Counter()).update(_split_kind(decode_id(name)) for name in documents[:TOP])
    return counters
