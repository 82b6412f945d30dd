"""Lines of a text file, plain or gzipped, each with the place it stands at; damage is an error that says where."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from retbench.errors import DataError

MAX_LINE_CHARACTERS = 64 << 20  # characters; a longer line is a file without line ends, and would fill the memory


def read_lines(file: Path) -> Iterator[tuple[str, str]]:
    """Every line that is not blank, without its end, and `file:number`; a byte order mark is not part of the text."""
    number = 0
    opener: Callable[..., TextIO] = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rt", encoding="utf-8-sig", newline="\n") as source:
            while line := source.readline(MAX_LINE_CHARACTERS + 1):
                number += 1
                if len(line) > MAX_LINE_CHARACTERS:
                    raise DataError(
                        f"{file}:{number}: a line of over {MAX_LINE_CHARACTERS:,} characters", "put one row on a line"
                    )
                if line.strip():
                    yield line.rstrip("\r\n"), f"{file}:{number}"
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise DataError(f"{file} is damaged after line {number}: {problem}", "download it again") from problem
    except UnicodeDecodeError as problem:
        raise DataError(f"{file} is not UTF-8 after line {number}", "save it as UTF-8") from problem
