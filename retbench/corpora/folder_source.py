"""A collection in a folder of files, whichever of the two known layouts it has."""

import hashlib
from pathlib import Path
from types import ModuleType

from retbench.corpora import beir_folder, tsv_folder
from retbench.corpora.rows import Raw


def read(folder: Path) -> Raw:
    """The collection, streaming."""
    raw: Raw = _layout(folder).read(folder)
    return raw


def stamp(folder: Path) -> str:
    """A digest of the files as they lie there: the same bytes are read only once."""
    digest = hashlib.sha256()
    for file in _layout(folder).files(folder):
        digest.update(file.name.encode())
        with file.open("rb") as source:
            digest.update(hashlib.file_digest(source, "sha256").digest())
    return digest.hexdigest()


def _layout(folder: Path) -> ModuleType:
    return tsv_folder if tsv_folder.is_one(folder) else beir_folder
