"""mteb result files: their scores, with the retbench name of the task."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retbench.cards import catalog
from retbench.engines.fingerprints import read_json_object
from retbench.errors import DataError, MissingError
from retbench.system.text_parsers import parse_json

MODEL_META = "model_meta.json"
MTEB_PROTOCOLS = ("standard", "mteb")  # protocols of task cards under which mteb measures too
EXPERIMENTS_FOLDER = "experiments"  # mteb's folder, below a revision, for settings that are not the model's default
DEFAULT_SUBSET = "default"  # mteb's subset name for a task without subsets


@dataclass(frozen=True)
class MtebResult:
    """The scores of one model on one task, from an mteb file."""

    model: str
    task: str
    split: str
    scores: dict[str, float]
    facts: dict[str, str]


def read_mteb_results(file: Path) -> list[MtebResult]:
    """Read a result file: a result for every subset, and for every split that has a task card.

    The model's name is in model_meta.json beside it, or in the names of the folders.
    """
    try:
        facts = parse_json(file.read_text(encoding="utf-8"))
        name, splits = facts["task_name"], facts["scores"]
        main = "test" if "test" in splits else next(iter(splits))
        scores_by_part = {
            (split, subset.get("hf_subset", DEFAULT_SUBSET)): _extract_scores(subset)
            for split, subsets in splits.items()
            for subset in subsets
        }
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as problem:
        raise DataError(
            f"{file} is not an mteb result file, which has task_name and scores by split",
            "give a file with task_name and scores, as mteb writes it",
        ) from problem
    model, task_by_mteb_name, has_one_subset = _read_model_name(file), _index_tasks(), len(splits[main]) == 1
    file_facts = {"dataset_revision": repr(facts.get("dataset_revision")), "mteb": repr(facts.get("mteb_version"))}
    results = []
    for (split, subset), scores in scores_by_part.items():
        whole_task = task_by_mteb_name.get((name, None, split)) if has_one_subset or subset == DEFAULT_SUBSET else None
        task = task_by_mteb_name.get((name, subset, split)) or whole_task
        if task or split == main:
            mteb_name = name.lower() if has_one_subset or subset == DEFAULT_SUBSET else f"{name.lower()}-{subset}"
            result_facts = {"split": repr(split), "subset": repr(subset), **file_facts}
            results.append(MtebResult(model, task or mteb_name, split, scores, result_facts))
    return results


def _extract_scores(subset: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in subset.items() if "_at_" in key and isinstance(value, int | float)}


def _read_model_name(file: Path) -> str:
    """Read the model's name.

    mteb's layout is results/<org>__<model>/<revision>/<task>.json, or .../<revision>/experiments/<settings>/...
    """
    folder, settings = file.parent, ""
    if folder.parent.name == EXPERIMENTS_FOLDER:  # another measurement of the model, with its own name
        folder, settings = folder.parent.parent, f" ({folder.name})"
    named = read_json_object(file.parent / MODEL_META).get("name") if (file.parent / MODEL_META).is_file() else None
    model = named if isinstance(named, str) else folder.parent.name.replace("__", "/", 1) or file.stem
    return f"{model}{settings}"


def _index_tasks() -> dict[tuple[str, str | None, str], str]:
    """Index task cards by mteb's name, subset and split; of several cards of a collection, the plain one."""
    task_by_mteb_name: dict[tuple[str, str | None, str], str] = {}
    for card in sorted(catalog.load_task_cards(), key=lambda card: card.collection is not None):
        if card.source.mteb and card.protocol in MTEB_PROTOCOLS:
            task_by_mteb_name.setdefault((card.source.mteb, card.source.subset, card.split), card.name)
    return task_by_mteb_name


def read_mteb_results_below(path: Path) -> list[MtebResult]:
    """Read all result files at or below a path."""
    files = [path] if path.is_file() else sorted(file for file in path.glob("**/*.json") if file.name != MODEL_META)
    if not files:
        raise MissingError(f"{path} has no .json file", "give an mteb result file or a folder of them")
    return [result for file in files for result in read_mteb_results(file)]
