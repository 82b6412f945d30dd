"""The cache of weights: complete folders under `<cache>/weights`.

A folder is assembled in a `.partial` sibling, its manifest is written last, and then it is renamed. So a manifest means
complete. The files an interrupted fetch leaves in `.partial` are reused by the next fetch.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from retbench.cards import user_config
from retbench.cards.text_parsers import parse_json
from retbench.errors import DataError

MANIFEST = "weights.json"

OnMessage = Callable[[str], None]


@dataclass(frozen=True)
class PreparedWeights:
    """An assembled folder, ready to go into the cache, and its source."""

    folder: Path
    source: str
    fingerprint: str
    sha256: str | None = None
    revision: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class WeightsManifest:
    """The manifest of a complete folder; `files` has the name and size of each file."""

    source: str
    fingerprint: str
    sha256: str | None
    revision: str | None
    label: str | None
    files: dict[str, int]


def get_weights_folder(name: str) -> Path:
    """The cache folder for the weights of this name."""
    return user_config.get_cache_folder() / "weights" / user_config.encode_path_part(name)


def read_manifest(folder: Path) -> WeightsManifest | None:
    """The manifest of a complete folder, or None. Raises an error if files are missing or truncated."""
    file = folder / MANIFEST
    if not file.exists():
        return None
    try:
        manifest = WeightsManifest(**parse_json(file.read_text(encoding="utf-8")))
        sizes = list(manifest.files.items())
    except (ValueError, TypeError, AttributeError) as problem:
        raise DataError(
            f"{file} is not a valid manifest: {problem}", f"delete {folder} and fetch it again"
        ) from problem
    for name, size in sizes:
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise DataError(f"{folder / name} is missing or truncated", f"delete {folder} and fetch it again")
    return manifest


def get_or_create(
    folder: Path, is_valid: Callable[[WeightsManifest], bool], create: Callable[[Path], PreparedWeights]
) -> WeightsManifest:
    """The manifest of the cached folder if `is_valid`, else of a new one that `create` assembles.

    One process creates the folder; others that need the same wait for it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        manifest = read_manifest(folder)
        if manifest and is_valid(manifest):
            return manifest
        work = folder.with_name(f"{folder.name}.partial")
        try:
            manifest = _publish(create(work), folder)
        except DataError:
            shutil.rmtree(
                work, ignore_errors=True
            )  # wrong files must not be reused, unlike those of an interrupted fetch
            raise
        shutil.rmtree(work)
        return manifest


def create_empty_folder(folder: Path) -> Path:
    """Create the folder; an existing one is emptied."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def _publish(prepared: PreparedWeights, folder: Path) -> WeightsManifest:
    files = [file for file in sorted(prepared.folder.rglob("*")) if file.is_file()]
    sizes = {str(file.relative_to(prepared.folder)): file.stat().st_size for file in files}
    manifest = WeightsManifest(
        prepared.source, prepared.fingerprint, prepared.sha256, prepared.revision, prepared.label, sizes
    )
    (prepared.folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1), encoding="utf-8")
    for file in (*files, prepared.folder / MANIFEST):
        file.chmod(0o644)  # safetensors files are only readable by the owner, but a cache is often shared
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    if folder.exists():
        shutil.rmtree(folder)
    prepared.folder.rename(folder)
    return manifest
