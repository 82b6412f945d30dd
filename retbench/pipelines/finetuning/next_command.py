"""The command that evaluates a model after its training: on the trained task, or on a suite that needs no data."""

import shlex
from pathlib import Path

from retbench.cards import catalog
from retbench.corpora.open_collection import open_collection
from retbench.errors import RetbenchError
from retbench.training.hub_datasets import HUB_SETS

OFFLINE_SUITE = "stdlib"


def format_evaluation_command(model: str, dataset: str, split: str = "train") -> str:
    """Write the command for a dataset as the user named it; a folder is named by its path, because it has no card.

    A model trained on half of a split's queries is evaluated on the other half.
    """
    whole, half, _ = split.partition("/")
    rest = f" --set split={whole}/test" if half else ""
    return f"retbench run --model {shlex.quote(model)} {_choose_evaluation(dataset)}{rest}"


def _choose_evaluation(dataset: str) -> str:
    if dataset in HUB_SETS:
        return f"--suite {HUB_SETS[dataset].suite}"
    offline = f"--suite {OFFLINE_SUITE}"
    if Path(dataset).expanduser().is_file():  # training pairs, without an evaluation
        return offline
    try:
        open_collection(catalog.find_task_card(dataset), with_images=True)
    except RetbenchError:  # for example a folder that has only the split of the training
        return offline
    return f"--task {shlex.quote(dataset)}"
