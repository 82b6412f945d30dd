"""The import story: mteb result files become published rows beside ours, in the form of our own reference tables."""

import re
from collections import defaultdict
from pathlib import Path

from retbench.cards import catalog
from retbench.cards.toml_writer import toml_value
from retbench.cards.user_config import path_part
from retbench.errors import MissingError, UsageError
from retbench.pipelines.report import IMPORTED
from retbench.records.mteb_results import Result, results_below
from retbench.reports.published_tables import read
from retbench.store.key import digest

CAVEAT = "Imported from mteb result files; prompts and lengths are those of whoever ran them."


def import_results(path: Path, results: Path) -> dict[Path, list[Result]]:
    """One table a model and protocol below `results`; what an earlier import of the same model knew is kept."""
    tables: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results_below(path):
        if _metric(result.task) in result.scores:
            tables[result.model, _card_protocol(result.task)].append(result)
    if not tables:
        raise MissingError(f"{path} holds no score that a board could show", "give mteb results of retrieval tasks")
    return {_write(results / IMPORTED, *key, members): members for key, members in tables.items()}


def _card_protocol(task: str) -> str:
    return catalog.task(task).protocol if task in catalog.tasks() else "standard"


def _metric(task: str) -> str:
    return catalog.task(task).metric if task in catalog.tasks() else "ndcg_at_10"


def _write(folder: Path, model: str, protocol: str, found: list[Result]) -> Path:
    name = re.sub(r"[^a-z0-9.]+", "-", f"{model}-{protocol}".lower()).strip("-")
    file = folder / f"{path_part(name)}.toml"
    if file.exists() and [*read(file).rows] != [model]:  # another model's, whose name differs by a sign
        name = f"{name}-{digest(model)[:8]}"
        file = folder / f"{path_part(name)}.toml"
    scores = _known(file)
    for result in found:
        metric = _metric(result.task)
        score = (metric, result.scores[metric])
        if scores.setdefault(result.task, score) != score:
            cause = f"{model} has two scores on {result.task}: {scores[result.task][1]} and {score[1]}"
            step = f"import the folder of one revision alone, and remove {file} if an earlier import wrote it"
            raise UsageError(cause, step)
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(_table(name, model, protocol, scores), encoding="utf-8")
    return file


def _known(file: Path) -> dict[str, tuple[str, float]]:
    """What an earlier import wrote."""
    if not file.exists():
        return {}
    old = read(file)
    figures = next(iter(old.rows.values()))
    return {task: (old.metrics[task], figure) for task, figure in zip(old.tasks, figures, strict=True)}


def _table(name: str, model: str, protocol: str, scores: dict[str, tuple[str, float]]) -> str:
    quoted = {task: toml_value(task) for task in scores}
    lines = [
        f"name = {toml_value(name)}",
        f"title = {toml_value(f'{model}, imported')}",
        'source = "mteb result files"',
        f"caveat = {toml_value(CAVEAT)}",
        f"protocol = {toml_value(protocol)}",
        "scale = 1.0",
        f"tasks = [{', '.join(quoted.values())}]",
        "\n[metrics]",
        *(f"{quoted[task]} = {toml_value(metric)}" for task, (metric, _) in scores.items()),
        "\n[rows]",
        f"{toml_value(model)} = [{', '.join(repr(float(score)) for _, score in scores.values())}]",
    ]
    return "\n".join(lines) + "\n"
