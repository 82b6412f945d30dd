"""The cache of weights: complete folders under `<cache>/weights`.

A folder is assembled in a `.partial` sibling, its manifest is written last, and then it is renamed. So a manifest means
complete. The files an interrupted fetch leaves in `.partial` are reused by the next fetch.
"""

import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from retbench.engines.fingerprints import compute_folder_fingerprint
from retbench.errors import DataError, ResourceError
from retbench.system import user_config
from retbench.system.checked_json import encode_checked_json, parse_checked_json
from retbench.system.checksums import compute_sha256, compute_sha256_once, require_cached_checksum
from retbench.system.durable_files import move_into_place, write_file_atomically
from retbench.system.file_locks import hold_lock

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
    parent_fingerprint: str | None = None


@dataclass(frozen=True)
class WeightsManifest:
    """The manifest of a complete folder: the size and checksum of each file by name.

    A merged adapter has the fingerprint of its parent's weights. Manifests of earlier versions have neither that nor
    checksums; these are added when the folder is next loaded.
    """

    source: str
    fingerprint: str
    sha256: str | None
    revision: str | None
    label: str | None
    files: dict[str, int]
    checksums: dict[str, str] = field(default_factory=dict)
    parent_fingerprint: str | None = None


def get_weights_folder(name: str) -> Path:
    """The cache folder for the weights of this name."""
    return user_config.get_cache_folder() / "weights" / user_config.encode_path_part(name)


def read_manifest(folder: Path) -> WeightsManifest | None:
    """The manifest of a complete folder, or None. Raises an error if files are missing or truncated."""
    file = folder / MANIFEST
    if not file.exists():
        return None
    try:
        manifest = WeightsManifest(**parse_checked_json(file.read_bytes()))
        sizes = list(manifest.files.items())
    except (ValueError, TypeError, AttributeError) as problem:
        raise DataError(
            f"{file} is not a valid manifest: {problem}", f"delete {folder} and fetch it again"
        ) from problem
    for name, size in sizes:
        if not (folder / name).is_file() or (folder / name).stat().st_size != size:
            raise DataError(f"{folder / name} is missing or truncated", f"delete {folder} and fetch it again")
    return manifest


def verify_files(folder: Path) -> None:
    """Raise an error if a file of a cached folder does not have the bytes that were fetched, merged or converted.

    It is called before weights are loaded, with the folder of a model or one inside it. Other folders have no
    manifest: their large files must have the bytes that their fingerprint was computed from.
    """
    folder = _find_cached_root(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        for file in (*folder.glob("*"), *folder.glob("*/*")):
            if file.is_file():
                require_cached_checksum(file)
        return
    for name, checksum in (manifest.checksums or _add_checksums(folder, manifest)).items():
        if compute_sha256_once(folder / name) != checksum:
            raise DataError(
                f"{folder / name} is damaged: its bytes changed on disk", f"delete {folder} and fetch it again"
            )


def _find_cached_root(folder: Path) -> Path:
    """The folder in the cache that this one lies in, which has the manifest; a folder elsewhere is its own."""
    weights = user_config.get_cache_folder() / "weights"
    return weights / folder.relative_to(weights).parts[0] if weights in folder.parents else folder


def _add_checksums(folder: Path, manifest: WeightsManifest) -> dict[str, str]:
    """Compute the checksums that a folder of an earlier version lacks, if it still has the fingerprint it was given.

    The fingerprint of a converted GGUF file is that of the file, so its folder is taken as it is.
    """
    is_converted = manifest.label is not None
    if not is_converted and compute_folder_fingerprint(folder, compute_sha256) != manifest.fingerprint:
        raise DataError(f"{folder} changed since it was fetched", f"delete {folder} and fetch it again")
    checksums = {name: compute_sha256(folder / name) for name in manifest.files}
    with suppress(ResourceError):  # a cache that cannot be written: the next run computes them again
        write_file_atomically(folder / MANIFEST, encode_checked_json(asdict(replace(manifest, checksums=checksums))))
    return checksums


def get_or_create(
    folder: Path, is_valid: Callable[[WeightsManifest], bool], create: Callable[[Path], PreparedWeights]
) -> WeightsManifest:
    """The manifest of the cached folder if `is_valid`, else of a new one that `create` assembles.

    One process creates the folder; others that need the same wait for it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with hold_lock(folder.with_name(f"{folder.name}.lock")):
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
    names = {str(file.relative_to(prepared.folder)): file for file in files}
    manifest = WeightsManifest(
        prepared.source, prepared.fingerprint, prepared.sha256, prepared.revision, prepared.label,
        {name: file.stat().st_size for name, file in names.items()},
        {name: compute_sha256(file) for name, file in names.items()},
        prepared.parent_fingerprint,
    )  # fmt: skip
    (prepared.folder / MANIFEST).write_bytes(encode_checked_json(asdict(manifest)))
    for file in (*files, prepared.folder / MANIFEST):
        file.chmod(0o644)  # safetensors files are only readable by the owner, but a cache is often shared
    if folder.exists():
        shutil.rmtree(folder)
    move_into_place(prepared.folder, folder)
    return manifest
