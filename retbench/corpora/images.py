"""Images of documents and queries: checked once, stored beside the texts, read one at a time.

A collection may come from anybody, so an image is trusted for nothing: its type is read from its bytes and not from its
name, the number of its pixels from its header before anything is decoded, and it is decoded once as a whole, because a
truncated file may have an intact header. The stored bytes are those of the source. Pillow is imported only here, and
only for an image.
"""

import io
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from retbench.errors import DataError, MissingError
from retbench.system.installation import suggest_extra

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_IMAGE_BYTES = 64 << 20
MAX_IMAGE_PIXELS = 89_478_485  # a quarter of a gigabyte as RGB; also where Pillow begins to warn
SCHEMA = pa.schema([("image", pa.large_binary()), ("width", pa.int32()), ("height", pa.int32())])
BYTES_PER_BATCH = 32 << 20
# what Pillow raises for a file that breaks off or contradicts itself
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, ArithmeticError, struct.error)


class ImageSize(NamedTuple):
    """Width and height in pixels, as a viewer shows the image."""

    width: int
    height: int


def check_image(data: bytes, where: str) -> ImageSize:
    """Raise an error unless these bytes are a whole PNG, JPEG or WebP of a reasonable size; return its size."""
    if len(data) > MAX_IMAGE_BYTES:
        raise DataError(
            f"{where}: the image has {len(data):,} bytes; the limit is {MAX_IMAGE_BYTES:,}",
            "store it smaller, or leave this row out",
        )
    image_module = import_pillow()
    try:
        with _open_image(data) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise _make_pixel_error(f"{where}: the image has {image.width:,} x {image.height:,} pixels")
            return ImageSize(*_decode(image).size)
    except image_module.DecompressionBombError as problem:
        raise _make_pixel_error(f"{where}: the image has far too many pixels") from problem
    except image_module.UnidentifiedImageError as problem:
        raise DataError(
            f"{where}: not an image of a kind that is read ({', '.join(FORMATS)}); it begins with {data[:8]!r}",
            "convert it to PNG, JPEG or WebP",
        ) from problem
    except DAMAGE as problem:
        raise DataError(f"{where}: the image is damaged: {problem}", "copy or fetch it again") from problem


def _make_pixel_error(cause: str) -> DataError:
    return DataError(f"{cause}; the limit is {MAX_IMAGE_PIXELS:,}", "scale it down, or leave this row out")


def decode_image(data: bytes) -> "Image":
    """Decode a checked image as RGB, upright, as the processors of transformers read a file."""
    with _open_image(data) as image:
        return _decode(image)


def _decode(image: Any) -> "Image":
    from PIL import ImageOps

    upright: Image = ImageOps.exif_transpose(image)
    return upright.convert("RGB")


def import_pillow() -> ModuleType:
    """Import Pillow's module of images."""
    try:
        from PIL import Image
    except ImportError as problem:
        raise MissingError("images need Pillow", suggest_extra("images")) from problem
    return Image


@contextmanager
def _open_image(data: bytes) -> "Iterator[Any]":
    """Open an image without decoding it. Pillow's warning of many pixels is silenced: the limit above is checked."""
    image_module = import_pillow()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # also of odd metadata, which changes no pixel
        with image_module.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image


@dataclass(frozen=True)
class ImageRows:
    """The images of some rows: a file and row numbers, so it is small, and a worker process can read it too."""

    file: Path
    rows: np.ndarray

    @cached_property
    def _files(self) -> tuple[pa.MemoryMappedFile, pa.OSFile]:
        """The file as a map and open for reading; both stay those of now if another process replaces it."""
        return pa.memory_map(str(self.file)), pa.OSFile(str(self.file))

    @cached_property
    def _table(self) -> pa.Table:
        return pa.ipc.open_file(self._files[0]).read_all()

    @cached_property
    def _file_address(self) -> int:
        """The address at which the file is mapped."""
        self._files[0].seek(0)
        address: int = self._files[0].read_buffer(1).address
        return address

    def __len__(self) -> int:
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "rows": self.rows}

    def select(self, positions: np.ndarray) -> "ImageRows":
        """Return the images at some positions."""
        return ImageRows(self.file, self.rows[positions])

    def read(self, position: int) -> bytes | None:
        """Read the image at a position; None if that row has none.

        It is read from the file and not through the map, whose pages would stay and count as memory of the process.
        """
        row = int(self.rows[position])
        if not self._table.column("width")[row].is_valid:
            return None
        start, end = self._find_bytes(row)
        data: bytes = self._files[1].read_at(end - start, start)
        return data

    def _find_bytes(self, row: int) -> tuple[int, int]:
        """Return where the image of a row begins and ends in the file.

        Arrow stores a column in chunks. A chunk has the images of its rows one after another in one buffer, and their
        offsets in a second one. The buffer lies in the mapped file, so its address minus that of the map is its place.
        """
        for chunk in self._table.column("image").chunks:
            if row < len(chunk):
                _, offsets, data = chunk.buffers()
                start, end = np.frombuffer(offsets, dtype=np.int64)[chunk.offset + row : chunk.offset + row + 2]
                place = data.address - self._file_address
                return place + int(start), place + int(end)
            row -= len(chunk)
        raise IndexError(row)

    def read_sizes(self) -> list[ImageSize | None]:
        """Read the size of every image; None for a row without one."""
        sizes = self._table.select(["width", "height"]).take(pa.array(self.rows))
        columns = (sizes.column(name).to_pylist() for name in ("width", "height"))
        return [None if width is None else ImageSize(width, height) for width, height in zip(*columns, strict=True)]

    def mark_rows(self) -> np.ndarray:
        """Mark the rows that have an image."""
        mask: np.ndarray = self._table.column("width").take(pa.array(self.rows)).is_valid().to_numpy()
        return mask

    @cached_property
    def count(self) -> int:
        """The number of rows that have an image."""
        return int(self.mark_rows().sum())


@dataclass(frozen=True)
class TextsWithImages:
    """The texts of some rows, iterated as texts, and the images of the same rows."""

    texts: Iterable[str]
    images: ImageRows

    def __iter__(self) -> Iterator[str]:
        return iter(self.texts)


class ImageWriter:
    """Writes the images of rows as they stream. The file appears with the first image; rows before it have none."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.pending: list[tuple[bytes | None, ImageSize | None]] = []
        self.pending_bytes = self.rows_without = 0
        self.sink: Any = None
        self.out: Any = None

    def add(self, image: bytes | None, where: str) -> None:
        """Check and append the image of the next row; None if it has none."""
        if image is None and self.out is None:
            self.rows_without += 1
            return
        self.pending.append((image, None if image is None else check_image(image, where)))
        self.pending_bytes += len(image or b"")
        if self.out is None:
            self.sink = pa.OSFile(str(self.file), "wb")
            self.out = pa.ipc.new_file(self.sink, SCHEMA)
            self.out.write_table(pa.table([pa.nulls(self.rows_without, kind) for kind in SCHEMA.types], schema=SCHEMA))
        if self.pending_bytes > BYTES_PER_BATCH:
            self._write_pending()

    def __enter__(self) -> "ImageWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self.out is not None:
            self._write_pending()
            self.out.close()
            self.sink.close()

    def _write_pending(self) -> None:
        sizes: Sequence[ImageSize | tuple[None, None]] = [size or (None, None) for _, size in self.pending]
        columns = [[image for image, _ in self.pending], [size[0] for size in sizes], [size[1] for size in sizes]]
        self.out.write_batch(pa.record_batch(columns, SCHEMA))
        self.pending, self.pending_bytes = [], 0


def name_image_file(text_file: Path) -> Path:
    """Return the file with the images of a file of texts; it exists only if a row has one."""
    return text_file.with_suffix(".images.arrow")
