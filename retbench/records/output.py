"""Where a story leaves its cells and how it is told; and what it leaves of a cell that could not be finished."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retbench.cards.task import TaskCard
from retbench.cards.user_config import get_cache_folder
from retbench.errors import InapplicableError, ResourceError, RetbenchError
from retbench.records.cell import Cell
from retbench.records.failure import Failure
from retbench.records.phase_timer import ProgressListener
from retbench.records.results_folder import ResultsFolder


@dataclass(frozen=True)
class RunOutput:
    """Where cells are written, and how it is told."""

    out: Path
    progress: ProgressListener
    log_status: Callable[[str], None]
    command: str

    def record_failure(
        self, error: RetbenchError, model: str, method: str, card: TaskCard, sample: int | None,
        rerank: tuple[str, ...] = (),
    ) -> Cell:  # fmt: skip
        """The cell that fills the place of one that could not be finished; a note of it is kept."""
        status: Literal["failed", "skipped"] = "skipped" if isinstance(error, InapplicableError) else "failed"
        cause = error.cause.replace(str(get_cache_folder()), "$RETBENCH_CACHE")  # a note may travel to another machine
        note = Failure(
            model, method, card.name, card.suite, card.split, card.protocol, sample, status,
            cause, error.next_step, error.exit_code, self.command, rerank,
        )  # fmt: skip
        try:
            ResultsFolder(self.out).write_failure(note)
        except ResourceError as problem:  # a full disk, most likely what stopped the cell too: that is the news
            self.log_status(f"{problem.cause}: the failure is shown, not kept")
        return Cell(
            model, method, card.name, card.suite, card.split, status, sample=sample, rerank=rerank,
            error=error.cause, next_step=error.next_step, exit_code=error.exit_code,
        )  # fmt: skip
