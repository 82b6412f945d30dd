"""The embedded suite `stdlib-pages`: the documents of `stdlib-text` as pictures of pages, drawn by this machine.

Ids, queries and judgments are those of `stdlib-text`. A document is a page of fixed size with the beginning of its
text, and beside the picture the same characters as text: a model that reads images sees only the page, a model of words
reads what stands on it. So lexical search shows how much the words alone give.

Pages are drawn when they are read, one at a time, in the font that Pillow brings. The same versions of Python, Pillow,
FreeType and zlib draw the same bytes; all of them are in the stamp of the collection.
"""

import io
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, NamedTuple

from retbench.corpora import stdlib_suite
from retbench.corpora.images import import_pillow
from retbench.corpora.rows import RawCollection, TextRow
from retbench.errors import MissingError
from retbench.system.installation import suggest_extra

RULES_VERSION = 1  # increase it with every change below that changes a picture, so that caches are rebuilt
NAME, TEXTS = "stdlib-pages", "stdlib-text"
WIDTH, HEIGHT, MARGIN = 640, 828, 32  # pixels: the proportions of a printed page
FONT_SIZE, LINE_HEIGHT = 14, 18
LINES = (HEIGHT - 2 * MARGIN) // LINE_HEIGHT
LIBRARIES = ("freetype2", "zlib", "zlib_ng")
BLACK, WHITE = 0, 255


class Page(NamedTuple):
    """The text that stands on a page, and its picture as a PNG."""

    text: str
    image: bytes


def compute_stamp() -> str:
    """Compute a name of the interpreter build, the rules and the libraries that draw."""
    version = import_pillow().__version__
    from PIL import features

    drawn_by = " ".join(f"{name} {features.version(name)}" for name in LIBRARIES)
    return f"{stdlib_suite.compute_stamp()}-pages-r{RULES_VERSION} pillow {version} {drawn_by}"


def generate_collection() -> RawCollection:
    """Generate the collection; its pages are drawn as they are read."""
    texts = stdlib_suite.generate_collection(TEXTS)
    return RawCollection(draw_rows(list(texts.documents)), texts.queries, texts.splits)


def draw_rows(rows: list[TextRow], prefix: str = "") -> Iterator[TextRow]:
    """Draw the rows whose ids begin with the prefix, one at a time; the others stay texts."""
    font = _load_font()
    for row in rows:
        if row.id.startswith(prefix):
            page = draw_page(row.text, font)
            yield row._replace(text=page.text, image=page.image)
        else:
            yield row


def _load_font() -> Any:
    """Load the font that Pillow brings. Its simple layout needs no other library, so no other machine's kerning."""
    from PIL import ImageFont

    try:
        font: Any = ImageFont.load_default(FONT_SIZE)
        return font.font_variant(layout_engine=ImageFont.Layout.BASIC)
    except (ImportError, OSError, AttributeError) as problem:  # a Pillow that was built without FreeType
        raise MissingError(f"this Pillow draws no fonts: {problem}", suggest_extra("images")) from problem


def draw_page(text: str, font: Any) -> Page:
    """Draw the beginning of a text: its own lines, those that are too long wrapped, as many as fit on one page."""
    from PIL import Image, ImageDraw

    lines = [part for line in text.expandtabs().split("\n") for part in _wrap_line(line, font)][:LINES]
    image = Image.new("L", (WIDTH, HEIGHT), WHITE)
    canvas = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        canvas.text((MARGIN, MARGIN + number * LINE_HEIGHT), line, font=font, fill=BLACK)
    out = io.BytesIO()
    image.save(out, "PNG")
    return Page("\n".join(lines), out.getvalue())


def _wrap_line(line: str, font: Any) -> Iterator[str]:
    """Cut a line to the width of the page, at spaces where it has some."""
    width = WIDTH - 2 * MARGIN
    while font.getlength(line) > width:
        fitting = bisect_right(range(len(line)), width, key=lambda end: font.getlength(line[:end])) - 1
        space = line.rfind(" ", len(line) - len(line.lstrip()), fitting + 1)
        end = space if space > 0 else fitting
        yield line[:end]
        line = line[end:].lstrip()
    yield line
