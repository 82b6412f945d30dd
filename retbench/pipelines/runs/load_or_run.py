"""One cell from disk or from a run: evaluation and reranking find, compute and write their records in the same way."""

from collections.abc import Callable
from pathlib import Path

from retbench.engines.memory import release_freed_pages, reset_peak_memory
from retbench.records.cell import Cell, build_cell
from retbench.records.energy import EnergyMeter
from retbench.records.phase_timer import PhaseTimer, ProgressListener
from retbench.records.record import Record
from retbench.records.results_folder import ResultsFolder, RunFiles


def load_or_run(
    results: ResultsFolder,
    folder: Path,
    run: Callable[[PhaseTimer], tuple[Record, RunFiles]],
    progress: ProgressListener,
) -> Cell:
    """Return the finished record in `folder`, or call `run` and write what it returns."""
    if record := results.find_record(folder):
        return build_cell(record, str(folder), cached=True)
    results.require_writable()
    release_freed_pages()  # the record states the peak memory of this cell, without what an earlier cell left
    reset_peak_memory()
    record, files = run(PhaseTimer(progress, EnergyMeter.start()))
    return build_cell(record, str(results.write_run(record, files)), cached=False)
