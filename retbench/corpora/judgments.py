"""Judgments as everybody writes them: query, document, grade; or TREC's four columns with an iteration between.

Tabs or white space between them, with or without a header line. A grade of 0 or below is not relevant; a query that
has only such grades is kept and scores 0.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from retbench.corpora.rows import Judgment
from retbench.corpora.text_lines import read_lines
from retbench.errors import DataError


def read_judgments(file: Path) -> Iterator[Judgment]:
    """Every judgment of one file."""
    for position, (line, where) in enumerate(read_lines(file)):
        parts = line.split("\t") if "\t" in line else line.split()
        if len(parts) not in (3, 4):
            raise DataError(f"{where}: {len(parts)} columns", "write query, document and grade, tab between them")
        if position == 0 and not re.search(r"\d", parts[-1]):
            continue  # the header
        grade = parts[-1].strip()  # of more than what int() takes for white space
        if not re.fullmatch(r"[+-]?\d{1,9}", grade):
            raise DataError(f"{where}: the grade is {grade!r}", "write a whole number")
        yield Judgment(parts[0], parts[-2], int(grade), where)
