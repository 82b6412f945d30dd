"""mteb result files: what their JSON holds, with our name of the task."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retbench.cards import catalog
from retbench.cards.text_parsers import parse_json
from retbench.engines.fingerprints import read_json_object
from retbench.errors import DataError, MissingError

MODEL_META = "model_meta.json"
MTEB_PROTOCOLS = ("standard", "mteb")  # those under which mteb's own figures may stand
EXPERIMENTS_FOLDER = "experiments"  # mteb's folder below a revision for other settings than the model's own
DEFAULT_SUBSET = "default"  # mteb's name of the subset of a task that has none


@dataclass(frozen=True)
class MtebResult:
    """The scores of one model on one task, as mteb wrote them."""

    model: str
    task: str
    split: str
    scores: dict[str, float]
    facts: dict[str, str]


def read_mteb_results(file: Path) -> list[MtebResult]:
    """One result file: a result for every subset, and for every split that is a task of ours.

    The model's name is beside it in model_meta.json, or in the folders' names.
    """
    try:
        facts = parse_json(file.read_text(encoding="utf-8"))
        name, splits = facts["task_name"], facts["scores"]
        main = "test" if "test" in splits else next(iter(splits))
        found = {
            (split, one.get("hf_subset", DEFAULT_SUBSET)): _scores(one) for split, subsets in splits.items() for one in subsets
        }
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as problem:
        raise DataError(
            f"{file} is not an mteb result file: {problem!r}",
            "give a file with task_name and scores, as mteb writes it",
        ) from problem
    model, known, alone = _model(file), _tasks(), len(splits[main]) == 1
    stated = {"dataset_revision": repr(facts.get("dataset_revision")), "mteb": repr(facts.get("mteb_version"))}
    made = []
    for (split, subset), scores in found.items():
        whole = known.get((name, None, split)) if alone or subset == DEFAULT_SUBSET else None
        task = known.get((name, subset, split)) or whole
        if task or split == main:
            theirs = name.lower() if alone or subset == DEFAULT_SUBSET else f"{name.lower()}-{subset}"
            told = {"split": repr(split), "subset": repr(subset), **stated}
            made.append(MtebResult(model, task or theirs, split, scores, told))
    return made


def _scores(subset: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in subset.items() if "_at_" in key and isinstance(value, int | float)}


def _model(file: Path) -> str:
    """mteb's layout is results/<org>__<model>/<revision>/<task>.json, or .../<revision>/experiments/<settings>/..."""
    folder, settings = file.parent, ""
    if folder.parent.name == EXPERIMENTS_FOLDER:  # another measurement of the model, under a name of its own
        folder, settings = folder.parent.parent, f" ({folder.name})"
    named = read_json_object(file.parent / MODEL_META).get("name") if (file.parent / MODEL_META).is_file() else None
    model = named if isinstance(named, str) else folder.parent.name.replace("__", "/", 1) or file.stem
    return f"{model}{settings}"


def _tasks() -> dict[tuple[str, str | None, str], str]:
    """Our tasks by mteb's name, subset and split; of several cards of one collection the plain one."""
    known: dict[tuple[str, str | None, str], str] = {}
    for card in sorted(catalog.load_task_cards(), key=lambda card: card.collection is not None):
        if card.source.mteb and card.protocol in MTEB_PROTOCOLS:
            known.setdefault((card.source.mteb, card.source.subset, card.split), card.name)
    return known


def read_mteb_results_below(path: Path) -> list[MtebResult]:
    """Every result file at or below a path."""
    files = [path] if path.is_file() else sorted(file for file in path.glob("**/*.json") if file.name != MODEL_META)
    if not files:
        raise MissingError(f"{path} holds no .json file", "give an mteb result file or a folder of them")
    return [result for file in files for result in read_mteb_results(file)]
