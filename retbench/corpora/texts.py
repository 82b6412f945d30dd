"""Texts on disk, memory-mapped, and the rule that joins a row's fields into the text a model reads.

Rows are read from a mapped Arrow file, singly or in batches, so memory holds only the rows in use. A selection (the
queries of a split, a sample) is a view: the same file and row numbers. The images of the rows, if there are any, are in
a second file, so reading texts never touches them.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retbench.corpora.images import ImageRows, TextsWithImages, name_image_file
from retbench.corpora.rows import TextRow

SCHEMA = pa.schema([("id", pa.string()), ("title", pa.large_string()), ("text", pa.large_string())])


@dataclass(frozen=True)
class Texts:
    """Rows of one file, or a selection of them; `fingerprint` depends on the content alone.

    With `prefers_images` a model reads of a row that has an image only the image.
    """

    file: Path
    table: pa.Table
    fingerprint: str
    selection: np.ndarray | None = None
    images: ImageRows | None = None
    prefers_images: bool = False

    @staticmethod
    def open(file: Path, fingerprint: str) -> "Texts":
        """Map a file written by `collection_cache.py`, and that of its images if it has any."""
        table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        image_file = name_image_file(file)
        images = ImageRows(image_file, np.arange(table.num_rows)) if image_file.exists() else None
        return Texts(file, table, fingerprint, images=images)

    def drop_images(self) -> "Texts":
        """Return the same rows without their images."""
        return replace(self, images=None)

    def prefer_images(self) -> "Texts":
        """Return the same rows, of which a model reads the images and only where there is none the text."""
        return replace(self, prefers_images=self.images is not None)

    def find_image_without_text(self) -> str | None:
        """Find the first row that has an image and no text; None if every image has a text beside it."""
        if self.images is None:
            return None
        has_text = np.zeros(len(self), dtype=bool)
        for name in ("title", "text"):
            column = self.table.column(name)
            selected = column if self.selection is None else column.take(pa.array(self.selection))
            has_text |= pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(selected)), 0).to_numpy()
        missing = np.flatnonzero(~has_text & self.images.mark_rows())
        return self[int(missing[0])].id if len(missing) else None

    def take(self, rows: Sequence[int] | np.ndarray) -> "Texts":
        """Return a view of some rows, in the given order."""
        numbers = np.asarray(rows, dtype=np.int64)
        if np.array_equal(numbers, np.arange(len(self))):
            return self
        digest = hashlib.sha256(self.fingerprint.encode() + numbers.tobytes()).hexdigest()
        selection = numbers if self.selection is None else self.selection[numbers]
        images = self.images and self.images.select(numbers)
        return replace(self, fingerprint=digest, selection=selection, images=images)

    def __len__(self) -> int:
        return self.table.num_rows if self.selection is None else len(self.selection)

    def __getitem__(self, row: int) -> TextRow:
        number = row if self.selection is None else int(self.selection[row])
        return TextRow(*(self.table.column(name)[number].as_py() for name in ("id", "title", "text")))

    def __iter__(self) -> Iterator[TextRow]:
        if self.selection is not None:
            yield from (self[row] for row in range(len(self)))
            return
        with pa.OSFile(str(self.file)) as source:  # read, not mapped: mapped pages would count as resident memory
            batches = pa.ipc.open_file(source)
            for number in range(batches.num_record_batches):
                yield from map(TextRow, *(column.to_pylist() for column in batches.get_batch(number).columns))

    def read_ids(self) -> pa.ChunkedArray:
        """Return all ids as an Arrow column."""
        column = self.table.column("id")
        return column if self.selection is None else column.take(pa.array(self.selection))


def read_inputs(texts: Texts, fields: Sequence[str]) -> Iterable[str]:
    """Return what a model reads of the rows: the joined fields, with the images if there are any."""
    joined = (join_fields(row, fields) for row in texts)
    if texts.images is None:
        return joined
    if texts.prefers_images:
        pairs = zip(joined, texts.images.mark_rows().tolist(), strict=True)
        joined = ("" if has_image else text for text, has_image in pairs)
    return TextsWithImages(joined, texts.images)


def describe_row(texts: Texts, number: int, fields: Sequence[str] = ("title", "text")) -> str:
    """Return a row for people: the size of its image, and its fields."""
    size = texts.images.select(np.array([number])).read_sizes()[0] if texts.images else None
    shown = [f"(image of {size.width} x {size.height} pixels)"] if size else []
    return " ".join([*shown, join_fields(texts[number], fields)]).strip()


def join_fields(row: TextRow, fields: Sequence[str]) -> str:
    """Join the row's non-empty fields with a space."""
    parts = (row.title if field == "title" else row.text for field in fields)
    return " ".join(part.strip() for part in parts if part.strip())
