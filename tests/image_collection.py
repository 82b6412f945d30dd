"""A small folder collection with images: plain drawings of one colour and shape, in three file types."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 40), "blue": (40, 60, 200), "grey": (120, 120, 120)}
TYPES = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


def draw(colour: str, size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Draw a disc of one colour."""
    image = Image.new("RGB", size, (255, 255, 255))
    ImageDraw.Draw(image).ellipse((4, 4, size[0] - 5, size[1] - 5), fill=COLOURS[colour])
    return image


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return the bytes of an image file."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def write_folder(folder: Path) -> Path:
    """Write four documents (three images, one text), three queries (two texts, one image) and their judgments."""
    (folder / "images").mkdir(parents=True)
    (folder / "qrels").mkdir()
    sizes = {"red": (60, 40), "green": (90, 30), "blue": (28, 84)}
    documents: list[dict[str, str]] = []
    for (colour, size), (kind, ending) in zip(sizes.items(), TYPES.items(), strict=True):
        (folder / "images" / f"{colour}.{ending}").write_bytes(encode(draw(colour, size), kind))
        documents.append({"_id": colour, "image": f"images/{colour}.{ending}"})
    documents.append({"_id": "words", "title": "Colours", "text": "A text about grey discs."})
    (folder / "images" / "query.png").write_bytes(encode(draw("blue")))
    queries = [
        {"_id": "q1", "text": "a red disc"},
        {"_id": "q2", "text": "which text is about discs"},
        {"_id": "q3", "image": "images/query.png"},
    ]
    write_rows(folder / "corpus.jsonl", documents)
    write_rows(folder / "queries.jsonl", queries)
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\tred\t1\nq2\twords\t1\nq3\tblue\t1\n")
    return folder


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def build_bomb(width: int, height: int) -> bytes:
    """Build a PNG of a few bytes whose header claims any size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def encode_noise(random: np.random.Generator, size: tuple[int, int]) -> bytes:
    """Return a PNG of noise: no two are equal, and none is small."""
    return encode(Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)))
