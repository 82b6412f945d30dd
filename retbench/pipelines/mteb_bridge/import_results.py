"""`retbench import`: mteb result files become tables of published scores, shown beside retbench's own results."""

import re
from collections import defaultdict
from pathlib import Path

from retbench.cards import catalog
from retbench.errors import MissingError, UsageError
from retbench.pipelines.report import IMPORTED_TABLES_FOLDER
from retbench.records.mteb_results import MtebResult, read_mteb_results_below
from retbench.reports.published_tables import read_table
from retbench.store.digest import compute_digest
from retbench.system.durable_files import write_file_atomically
from retbench.system.toml_writer import format_toml_value
from retbench.system.user_config import encode_path_part

CAVEAT = "Imported from mteb result files; prompts and lengths are those of the original runs."


def import_results(path: Path, results: Path) -> dict[Path, list[MtebResult]]:
    """Write one table per model and protocol below `results`; scores of earlier imports of the model are kept."""
    results_by_table: dict[tuple[str, str], list[MtebResult]] = defaultdict(list)
    for result in read_mteb_results_below(path):
        if _get_metric(result.task) in result.scores:
            results_by_table[result.model, _get_protocol(result.task)].append(result)
    if not results_by_table:
        raise MissingError(f"{path} has no scores of retrieval tasks", "give mteb results of retrieval tasks")
    return {
        _write_table(results / IMPORTED_TABLES_FOLDER, *key, model_results): model_results
        for key, model_results in results_by_table.items()
    }


def _get_protocol(task: str) -> str:
    return catalog.find_task_card(task).protocol if task in catalog.load_task_cards() else "standard"


def _get_metric(task: str) -> str:
    return catalog.find_task_card(task).metric if task in catalog.load_task_cards() else "ndcg_at_10"


def _write_table(folder: Path, model: str, protocol: str, new_results: list[MtebResult]) -> Path:
    name = re.sub(r"[^a-z0-9.]+", "-", f"{model}-{protocol}".lower()).strip("-")
    file = folder / f"{encode_path_part(name)}.toml"
    if file.exists() and [*read_table(file).rows] != [model]:  # another model whose name differs only in punctuation
        name = f"{name}-{compute_digest(model)[:8]}"
        file = folder / f"{encode_path_part(name)}.toml"
    scores = _read_scores(file)
    for result in new_results:
        metric = _get_metric(result.task)
        score = (metric, result.scores[metric])
        if scores.setdefault(result.task, score) != score:
            cause = f"{model} has two scores on {result.task}: {scores[result.task][1]} and {score[1]}"
            step = f"import the folder of one revision only, and remove {file} if an earlier import wrote it"
            raise UsageError(cause, step)
    folder.mkdir(parents=True, exist_ok=True)
    write_file_atomically(file, _format_table(name, model, protocol, scores).encode())
    return file


def _read_scores(file: Path) -> dict[str, tuple[str, float]]:
    """Read the scores that an earlier import wrote."""
    if not file.exists():
        return {}
    table = read_table(file)
    scores = next(iter(table.rows.values()))
    return {task: (table.metrics[task], score) for task, score in zip(table.tasks, scores, strict=True)}


def _format_table(name: str, model: str, protocol: str, scores: dict[str, tuple[str, float]]) -> str:
    quoted_tasks = {task: format_toml_value(task) for task in scores}
    lines = [
        f"name = {format_toml_value(name)}",
        f"title = {format_toml_value(f'{model}, imported')}",
        'source = "mteb result files"',
        f"caveat = {format_toml_value(CAVEAT)}",
        f"protocol = {format_toml_value(protocol)}",
        "scale = 1.0",
        f"tasks = [{', '.join(quoted_tasks.values())}]",
        "\n[metrics]",
        *(f"{quoted_tasks[task]} = {format_toml_value(metric)}" for task, (metric, _) in scores.items()),
        "\n[rows]",
        f"{format_toml_value(model)} = [{', '.join(repr(float(score)) for _, score in scores.values())}]",
    ]
    return "\n".join(lines) + "\n"
