"""What the script of the HTML page shows on demand: other metrics, the scores of single queries, and their texts."""

import json
from typing import Any

from retbench.records.load_run import read_trec_run
from retbench.records.results_folder import TREC_FILE, decode_id
from retbench.records.scored_run import ScoredRun
from retbench.reports.leaderboard import Leaderboard, LeaderboardRow
from retbench.reports.query_texts import TextCollector
from retbench.reports.suite_average import compute_suite_mean

MAX_QUERY_SCORES = 1_000_000  # per leaderboard; more would make the page too large
MAX_RANKINGS = 5_000  # per leaderboard; queries times rows whose first documents are listed
LISTED_DOCUMENTS = 5


def write_page_data(boards: list[Leaderboard]) -> str:
    """JSON that is safe inside of a script element."""
    collector = TextCollector()  # one for the page, whose size it limits
    content = [_build_board_data(board, collector) for board in boards]
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return data.replace("<", "\\u003c")


def _build_board_data(board: Leaderboard, collector: TextCollector) -> dict[str, Any]:
    metrics = _list_shared_metrics(board)
    return {
        "metric": board.metric,
        "metrics": metrics,
        "scores": {metric: [_list_scores(board, row, metric) for row in board.rows] for metric in metrics},
        "rows": [f"{row.model} · {row.label}" for row in board.rows],
        "queries": _build_query_data(board, collector),
    }


def _list_shared_metrics(board: Leaderboard) -> list[str]:
    """The metrics that every run has, the main one first."""
    per_run = [run.record.scores.keys() for row in board.rows for run in row.runs.values()]
    shared = set.intersection(*map(set, per_run)) if per_run else set()
    return [board.metric, *(name for name in per_run[0] if name in shared and name != board.metric)] if per_run else []


def _list_scores(board: Leaderboard, row: LeaderboardRow, metric: str) -> dict[str, float]:
    """The scores x 100 by column; the average only if no task is missing."""
    by_task = {task: run.record.scores[metric] for task, run in row.runs.items()}
    columns = {task: by_task[task] for task in board.tasks if task in by_task}
    for name, tasks in board.entries.items():
        if all(task in by_task for task in tasks):
            columns[name] = sum(by_task[task] for task in tasks) / len(tasks)
    if len(by_task) == len(board.tasks):
        columns["average"] = compute_suite_mean(board.suite, by_task)
    return {name: round(100 * score, 2) for name, score in columns.items()}


def _build_query_data(board: Leaderboard, collector: TextCollector) -> dict[str, Any]:
    """By task: the queries, and each row's scores and first documents in their order; empty for a large board."""
    total = sum(len(run.values) for row in board.rows for run in row.runs.values())
    if total > MAX_QUERY_SCORES:
        return {}
    data = {}
    for task in board.tasks:
        runs = {number: row.runs[task] for number, row in enumerate(board.rows) if task in row.runs}
        if not runs:
            continue
        first = next(iter(runs.values()))
        same_queries = {number: run for number, run in runs.items() if run.queries == first.queries}
        documents = {number: _list_documents(run) for number, run in same_queries.items() if total <= MAX_RANKINGS}
        data[task] = {
            "ids": first.queries,
            "scores": {number: [round(100 * value, 1) for value in run.values] for number, run in same_queries.items()},
            "documents": documents,
            **collector.collect(first, documents.values()),
        }
    return data


def _list_documents(run: ScoredRun) -> list[list[str]]:
    """The first documents of each query; nothing if the run file was not kept."""
    file = run.folder / TREC_FILE
    if not file.exists():
        return []
    rankings = {decode_id(query): documents for query, documents in read_trec_run(file).items()}
    return [[decode_id(document) for document in rankings.get(query, [])[:LISTED_DOCUMENTS]] for query in run.queries]
