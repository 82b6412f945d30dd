"""Read the lines of a text file, plain or gzipped, each with its location; errors name the line."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from retbench.errors import DataError

MAX_LINE_CHARACTERS = 64 << 20  # a longer line means a file without line ends, which would fill the memory


def read_lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yield every line that is not blank, without its line end and byte order mark, and its `file:number`."""
    number = 0
    try:
        for number, line in enumerate(_decode_lines(file), start=1):  # the error names the last line
            if line.strip():
                yield line.rstrip("\r\n"), f"{file}:{number}"
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        place = f"after line {number}" if number else "from its first line on"
        raise DataError(f"{file} is damaged {place}: {problem}", "download it again") from problem


def _decode_lines(file: Path) -> Iterator[str]:
    """Yield every line; a line that is not UTF-8 and a huge line are refused."""
    opener: Callable[..., TextIO] = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rt", encoding="utf-8-sig", newline="\n") as source:
            number = 0
            while line := source.readline(MAX_LINE_CHARACTERS + 1):
                number += 1
                if len(line) > MAX_LINE_CHARACTERS:
                    raise DataError(
                        f"{file}:{number}: a line of over {MAX_LINE_CHARACTERS:,} characters", "write one row per line"
                    )
                yield line
    except UnicodeDecodeError as problem:
        raise DataError(
            f"{file}:{_find_undecodable_line(file)}: not UTF-8 ({problem.reason})", "save the file as UTF-8"
        ) from problem


def _find_undecodable_line(file: Path) -> int:
    """Return the number of the first line that is not UTF-8; the reader decodes ahead of the line that it returns."""
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as source:
        for number, line in enumerate(source, start=1):
            try:
                line.decode("utf-8-sig")
            except UnicodeDecodeError:
                return number
    return 1
