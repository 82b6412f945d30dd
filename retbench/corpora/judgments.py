"""Read qrels files: query, document, grade; or TREC's four columns with an iteration after the query.

Columns are separated by tabs or white space, with or without a header line. A grade is a whole number; `1.0`, as pandas
writes it, is 1. A grade of 0 or below is not relevant; a query with only such grades is kept and scores 0.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from retbench.corpora.rows import Judgment
from retbench.corpora.text_lines import read_lines
from retbench.errors import DataError


def read_judgments(file: Path) -> Iterator[Judgment]:
    """Read every judgment of one file."""
    for position, (line, where) in enumerate(read_lines(file)):
        parts = line.split("\t") if "\t" in line else line.split()
        if len(parts) not in (3, 4):
            raise DataError(f"{where}: {len(parts)} columns", "write query, document and grade, separated by tabs")
        if position == 0 and not re.search(r"\d", parts[-1]):
            continue  # the header
        grade = parts[-1].strip()  # of more characters than int() treats as white space
        whole = re.fullmatch(r"([+-]?\d{1,9})(\.0*)?", grade)
        if not whole:
            raise DataError(f"{where}: the grade is {grade!r}", "write a whole number")
        yield Judgment(parts[0], parts[-2], int(whole[1]), where)
