"""The import story: mteb result files become published rows beside ours, in the form of our own reference tables."""

import json
import re
from collections import defaultdict
from pathlib import Path

from retbench.cards import catalog
from retbench.cards.home import path_part
from retbench.pipelines.mteb_files import Result, results_below
from retbench.pipelines.report import IMPORTED
from retbench.reports.references import read

CAVEAT = "Imported from mteb result files; prompts and lengths are those of whoever ran them."


def import_results(path: Path, results: Path) -> dict[Path, list[Result]]:
    """One table a model and protocol below `results`; what an earlier import of the same model knew is kept."""
    tables: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for result in results_below(path):
        tables[result.model, _card_protocol(result.task)].append(result)
    return {_write(results / IMPORTED, *key, members): members for key, members in tables.items()}


def _card_protocol(task: str) -> str:
    return catalog.task(task).protocol if task in catalog.tasks() else "standard"


def _write(folder: Path, model: str, protocol: str, found: list[Result]) -> Path:
    name = re.sub(r"[^a-z0-9.]+", "-", f"{model}-{protocol}".lower()).strip("-")
    file = folder / f"{path_part(name)}.toml"
    scores: dict[str, tuple[str, float]] = {}
    if file.exists():
        old = read(file)
        figures = next(iter(old.rows.values()))
        scores = {t: (old.metrics[t], figure) for t, figure in zip(old.tasks, figures, strict=True)}
    for result in found:
        metric = catalog.task(result.task).metric if result.task in catalog.tasks() else "ndcg_at_10"
        if metric in result.scores:
            scores[result.task] = (metric, result.scores[metric])
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(_table(name, model, protocol, scores), encoding="utf-8")
    return file


def _table(name: str, model: str, protocol: str, scores: dict[str, tuple[str, float]]) -> str:
    quoted = {task: json.dumps(task) for task in scores}  # a JSON string is a TOML string
    lines = [
        f"name = {json.dumps(name)}",
        f"title = {json.dumps(f'{model}, imported')}",
        'source = "mteb result files"',
        f"caveat = {json.dumps(CAVEAT)}",
        f"protocol = {json.dumps(protocol)}",
        "scale = 1.0",
        f"tasks = [{', '.join(quoted.values())}]",
        "\n[metrics]",
        *(f"{quoted[task]} = {json.dumps(metric)}" for task, (metric, _) in scores.items()),
        "\n[rows]",
        f"{json.dumps(model)} = [{', '.join(repr(float(score)) for _, score in scores.values())}]",
    ]
    return "\n".join(lines) + "\n"
