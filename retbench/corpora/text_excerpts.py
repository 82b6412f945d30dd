"""The beginning of a text for people who read a report, and the rows of the documents that it names.

Rows are found by their ids chunk by chunk, so a corpus of millions is never copied into memory.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retbench.corpora.texts import Texts

SHOWN_CHARACTERS = 200


def find_rows(texts: Texts, ids: Iterable[str]) -> dict[str, int]:
    """Find the row of each id; an id without a row is left out."""
    searched, rows, start = pa.array(set(ids), pa.string()), dict[str, int](), 0
    for chunk in texts.read_ids().chunks:
        found = np.flatnonzero(pc.is_in(chunk, value_set=searched).to_numpy(zero_copy_only=False))
        rows.update(zip(chunk.take(pa.array(found)).to_pylist(), (found + start).tolist(), strict=True))
        start += len(chunk)
    return rows


def shorten_text(text: str) -> str:
    """Return the beginning of a text on one line."""
    flat = " ".join(text.split())
    return flat if len(flat) <= SHOWN_CHARACTERS else f"{flat[: SHOWN_CHARACTERS - 1]}…"
