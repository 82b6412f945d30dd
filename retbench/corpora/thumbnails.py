"""Small copies of images for people who read a report.

A copy is drawn anew from the decoded pixels. So nothing of a stranger's file gets into a page: no metadata, and no
bytes that a viewer could read as something else than the picture.
"""

import base64
import io
import logging
from collections.abc import Iterable

from retbench.corpora.images import DAMAGE, decode_image
from retbench.corpora.texts import Texts
from retbench.errors import MissingError

SIDE = 128  # pixels of the longer side
QUALITY = 60  # of the JPEG: about four kilobytes

log = logging.getLogger(__name__)


def build_thumbnail(data: bytes) -> str:
    """Return a small JPEG of a checked image, as an address that holds the picture itself."""
    image = decode_image(data)
    image.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def collect_thumbnails(texts: Texts, rows: Iterable[tuple[str, int]], most: int, bytes_left: int) -> dict[str, str]:
    """Return the thumbnails of the first rows that have an image, by id; as many as fit. They need Pillow."""
    found: dict[str, str] = {}
    if texts.images is None:
        return found
    for name, row in rows:
        data = texts.images.read(row)
        if data is None:
            continue
        try:
            thumbnail = build_thumbnail(data)
        except MissingError:
            return {}
        except DAMAGE as problem:  # the image was whole when it was stored
            log.warning("the image of %s was damaged on disk and is not shown: %s", name, problem)
            continue
        bytes_left -= len(thumbnail)
        if len(found) == most or bytes_left < 0:
            return found
        found[name] = thumbnail
    return found
