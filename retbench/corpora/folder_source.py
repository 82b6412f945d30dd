"""A collection in a folder, in the BEIR or the MS MARCO layout, or as candidate lists."""

import hashlib
from pathlib import Path
from types import ModuleType

from retbench.corpora import beir_folder, candidate_lists, tsv_folder
from retbench.corpora.rows import RawCollection
from retbench.system.file_kinds import require_regular_file


def read_folder(folder: Path) -> RawCollection:
    """Read the collection, streaming."""
    raw: RawCollection = _detect_layout(folder).read_collection(folder)
    return raw


def hash_folder(folder: Path) -> str:
    """Hash the names and bytes of the files: an unchanged folder is compiled only once."""
    digest = hashlib.sha256()
    for file in _detect_layout(folder).list_files(folder):
        require_regular_file(file)
        digest.update(file.name.encode(errors="surrogateescape"))
        with file.open("rb") as source:
            digest.update(hashlib.file_digest(source, "sha256").digest())
    return digest.hexdigest()


def _detect_layout(folder: Path) -> ModuleType:
    if candidate_lists.is_candidate_folder(folder):
        return candidate_lists
    return tsv_folder if tsv_folder.is_tsv_folder(folder) else beir_folder
