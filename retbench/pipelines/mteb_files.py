"""mteb result files: what their JSON holds, with our name of the task."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retbench.cards import catalog
from retbench.errors import DataError, MissingError

META = "model_meta.json"


@dataclass(frozen=True)
class Result:
    """The scores of one model on one task, as mteb wrote them."""

    model: str
    task: str
    split: str
    scores: dict[str, float]
    facts: dict[str, str]


def read_result(file: Path) -> Result:
    """One result file; the model's name is beside it in model_meta.json, or in the folders' names."""
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        name, splits = facts["task_name"], facts["scores"]
        split = "test" if "test" in splits else next(iter(splits))
        (subset,) = [one for one in splits[split] if one.get("hf_subset", "default") in ("default", "en", "python")][:1]
        scores = {key: float(value) for key, value in subset.items() if isinstance(value, float) and "_at_" in key}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError, AttributeError) as problem:
        raise DataError(
            f"{file} is not an mteb result file: {problem!r}",
            "give a file with task_name and scores, as mteb writes it",
        ) from problem
    stated = {"split": repr(split), "dataset_revision": repr(facts.get("dataset_revision"))}
    return Result(_model(file), _task(name), split, scores, {**stated, "mteb": repr(facts.get("mteb_version"))})


def _model(file: Path) -> str:
    """mteb's layout is results/<org>__<model>/<revision>/<task>.json."""
    meta = file.parent / META
    if meta.is_file():
        named: Any = json.loads(meta.read_text(encoding="utf-8")).get("name")
        if isinstance(named, str):
            return named
    return file.parent.parent.name.replace("__", "/", 1) or file.stem


def _task(name: str) -> str:
    """Our plain task of mteb's name; a name of theirs that we do not know is kept in lower case."""
    known = {
        card.source.mteb: card.name for card in catalog.tasks() if card.source.mteb and card.protocol == "standard"
    }
    return known.get(name, name.lower())


def results_below(path: Path) -> list[Result]:
    """Every result file at or below a path."""
    files = [path] if path.is_file() else sorted(file for file in path.glob("**/*.json") if file.name != META)
    if not files:
        raise MissingError(f"{path} holds no .json file", "give an mteb result file or a folder of them")
    return [read_result(file) for file in files]
