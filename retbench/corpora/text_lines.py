"""Read the lines of a text file, plain or gzipped, each with its location; errors name the line."""

import codecs
import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from retbench.errors import DataError
from retbench.system.file_kinds import require_regular_file

MAX_LINE_CHARACTERS = 64 << 20  # a longer line means a file without line ends, which would fill the memory
CHUNK_BYTES = 1 << 16
MAX_EXPANSION = 200  # unpacked size by packed size: about 10 for text, over 1000 for a bomb
MIN_UNPACKED = 100 << 20  # a file that unpacks to less is read in any case


def read_lines(file: Path) -> Iterator[tuple[str, str]]:
    """Yield every line that is not blank, without its line end and byte order mark, and its `file:number`."""
    require_regular_file(file)
    number = 0
    try:
        for number, line in enumerate(_decode_lines(file), start=1):  # the error names the last line
            if line.strip():
                yield line.rstrip("\r\n"), f"{file}:{number}"
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        place = f"after line {number}" if number else "from its first line on"
        raise DataError(f"{file} is damaged {place}: {problem}", "download it again") from problem


def _decode_lines(file: Path) -> Iterator[str]:
    """Yield every line; a line that is not UTF-8, a huge line and a huge file are refused."""
    characters, limit = 0, MIN_UNPACKED + MAX_EXPANSION * file.stat().st_size
    opener: Callable[..., TextIO] = gzip.open if file.suffix == ".gz" else open
    try:
        with opener(file, "rt", encoding="utf-8-sig", newline="\n") as source:
            number = 0
            while line := source.readline(MAX_LINE_CHARACTERS + 1):
                number, characters = number + 1, characters + len(line)
                if characters > limit:
                    raise DataError(f"{file} unpacks to over {MAX_EXPANSION} times its size", "do not trust it")
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
    decoder, number = codecs.getincrementaldecoder("utf-8")(), 1
    with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as source:
        try:
            while chunk := source.read(CHUNK_BYTES):  # a line may be as long as the file
                decoder.decode(chunk)
                number += chunk.count(b"\n")
        except UnicodeDecodeError as problem:
            number += problem.object.count(b"\n", 0, problem.start)
    return number
