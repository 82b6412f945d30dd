"""The output of a command: the results folder, progress, and a record of cells that failed."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retbench.cards.task import TaskCard
from retbench.errors import InapplicableError, ResourceError, RetbenchError
from retbench.records.cell import Cell
from retbench.records.failure import Failure
from retbench.records.phase_timer import ProgressListener
from retbench.records.results_folder import ResultsFolder
from retbench.system.user_config import get_cache_folder


@dataclass(frozen=True)
class RunOutput:
    """The results folder and the progress of a command."""

    out: Path
    progress: ProgressListener
    log_status: Callable[[str], None]
    command: str

    def record_failure(
        self, error: RetbenchError, model: str, method: str, card: TaskCard, sample: int | None,
        rerank: tuple[str, ...] = (),
    ) -> Cell:  # fmt: skip
        """Write a failed or skipped cell to the results folder and return it."""
        status: Literal["failed", "skipped"] = "skipped" if isinstance(error, InapplicableError) else "failed"
        cache = str(get_cache_folder())  # results are shared between machines
        cause, next_step = (text.replace(cache, "$RETBENCH_CACHE") for text in (error.cause, error.next_step))
        failure = Failure(
            model, method, card.name, card.suite, card.split, card.protocol, sample, status,
            cause, next_step, error.exit_code, self.command, rerank,
        )  # fmt: skip
        try:
            ResultsFolder(self.out).write_failure(failure)
        except ResourceError as problem:  # probably a full disk, which stopped the cell too; `error` is more useful
            self.log_status(f"{problem.cause}: the failure is shown but not written")
        return Cell(
            model, method, card.name, card.suite, card.split, status, sample=sample, rerank=rerank,
            error=error.cause, next_step=error.next_step, exit_code=error.exit_code,
        )  # fmt: skip
