"""The cache of weights: finished folders under `<cache>/weights`, and nothing half-made that looks finished.

A folder is put together in a `.partial` sibling, its manifest is written last, and then it is renamed; so a manifest
means complete. What an interrupted fetch leaves in `.partial` counts for nothing, but spares the next one its bytes.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock

from retbench.cards import user_config
from retbench.cards.text_parsers import parse_json
from retbench.errors import DataError

MANIFEST = "weights.json"

OnMessage = Callable[[str], None]


@dataclass(frozen=True)
class PreparedWeights:
    """A folder ready to be kept: where it was put together, and what it is made from."""

    folder: Path
    source: str
    fingerprint: str
    sha256: str | None = None
    revision: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class WeightsManifest:
    """What a finished folder says about itself; `files` are the names and sizes that make it whole."""

    source: str
    fingerprint: str
    sha256: str | None
    revision: str | None
    label: str | None
    files: dict[str, int]


def get_weights_folder(name: str) -> Path:
    """The folder that keeps the weights of this name."""
    return user_config.cache_folder() / "weights" / quote(name, safe="")


def read_manifest(folder: Path) -> WeightsManifest | None:
    """The manifest of a finished folder; None when there is none, an error when files have been lost since."""
    file = folder / MANIFEST
    if not file.exists():
        return None
    try:
        manifest = WeightsManifest(**parse_json(file.read_text(encoding="utf-8")))
        sizes = list(manifest.files.items())
    except (ValueError, TypeError, AttributeError) as problem:
        raise DataError(f"{file} is not a manifest: {problem}", f"delete {folder} and fetch it again") from problem
    for name, size in sizes:
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise DataError(f"{folder / name} is missing or cut short", f"delete {folder} and fetch it again")
    return manifest


def get_or_create(
    folder: Path, wanted: Callable[[WeightsManifest], bool], make: Callable[[Path], PreparedWeights]
) -> WeightsManifest:
    """The finished `folder`: the one that is there when it is the `wanted` one, else what `make` builds.

    One process builds; others that want the same wait for it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        manifest = read_manifest(folder)
        if manifest and wanted(manifest):
            return manifest
        work = folder.with_name(f"{folder.name}.partial")
        try:
            manifest = _publish(make(work), folder)
        except DataError:
            shutil.rmtree(work, ignore_errors=True)  # an interrupted fetch goes on from here, a wrong one starts over
            raise
        shutil.rmtree(work)
        return manifest


def create_empty_folder(folder: Path) -> Path:
    """The folder, with nothing in it of an earlier try."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def _publish(made: PreparedWeights, folder: Path) -> WeightsManifest:
    files = [file for file in sorted(made.folder.rglob("*")) if file.is_file()]
    sizes = {str(file.relative_to(made.folder)): file.stat().st_size for file in files}
    manifest = WeightsManifest(made.source, made.fingerprint, made.sha256, made.revision, made.label, sizes)
    (made.folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1), encoding="utf-8")
    for file in (*files, made.folder / MANIFEST):
        file.chmod(0o644)  # safetensors are written for their owner alone, and a cache is often shared
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    if folder.exists():
        shutil.rmtree(folder)
    made.folder.rename(folder)
    return manifest
