"""Removes from a results folder what a repository need not hold: reports read the records and the score of each query.

    python -m benchmarks.shrink_results results/adaptor

The rankings, their raw scores and the sample texts go; the command of the record makes them again.
"""

import sys
from pathlib import Path

import pyarrow.parquet as pq

from retbench.records.results_folder import TREC_FILE, ResultsFolder
from retbench.records.scored_run import PER_QUERY_FILE


def shrink_run(folder: Path) -> None:
    """Remove the rankings of one run, their raw scores and its sample texts."""
    for name in (TREC_FILE, "sample.json"):
        (folder / name).unlink(missing_ok=True)
    table = pq.read_table(folder / PER_QUERY_FILE, page_checksum_verification=True)
    if "raw_scores" in table.column_names:
        pq.write_table(table.drop_columns("raw_scores"), folder / PER_QUERY_FILE, write_page_checksum=True)


if __name__ == "__main__":
    for file in ResultsFolder(Path(sys.argv[1])).list_record_files():
        shrink_run(file.parent)
