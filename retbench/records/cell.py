"""The cell: one row of `--json` and of a table, whether it was computed now, found on disk, skipped or failed."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from retbench.cards import catalog
from retbench.cards.model import UNKNOWN_TRAINING_SETS
from retbench.errors import PARTLY_DONE
from retbench.records.record import Record

Status = Literal["done", "failed", "skipped"]


@dataclass(frozen=True)
class ExpectedScoreCheck:
    """A score somebody published for a cell, and the one that came out."""

    metric: str
    score: float
    got: float
    tolerance: float
    source: str

    @property
    def is_met(self) -> bool:
        """Whether the two agree within the tolerance."""
        return abs(self.got - self.score) <= self.tolerance


@dataclass(frozen=True)
class Cell:
    """One (model, method, task)."""

    model: str
    method: str
    task: str
    suite: str
    split: str
    status: Status
    settings_id: str | None = None
    sample: int | None = None
    engine: str | None = None
    rerank: tuple[str, ...] = ()
    seen: Literal["seen", "unseen", "unknown"] = "unknown"
    cached: bool = False
    scores: dict[str, float] = field(default_factory=dict)
    main_score: float | None = None
    documents: int | None = None
    queries: int | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None
    record: str | None = None
    error: str | None = None
    next_step: str | None = None
    exit_code: int = 0
    expected: tuple[ExpectedScoreCheck, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object `--json` prints."""
        facts = asdict(self)
        return {key: value for key, value in facts.items() if key != "exit_code" and value is not None}


def classify_training_exposure(training_sets: tuple[str, ...] | None, card: dict[str, Any]) -> Literal["seen", "unseen", "unknown"]:
    """Whether the model was trained on this task's collection, in any of its variants; `card` is the task's."""
    if training_sets is None:
        return "unknown"
    own = card.get("collection") or _collection(card["name"])
    if any(own == learned or own.startswith(f"{learned}/") for learned in map(_collection, training_sets)):
        return "seen"
    return "unknown" if UNKNOWN_TRAINING_SETS in training_sets else "unseen"


def _collection(name: str) -> str:
    """The collection a task is a variant of; a name that no card has stands for itself."""
    card = catalog.load_task_cards().cards.get(name)
    return (card.collection if card else None) or name


def build_cell(record: Record, path: str, cached: bool) -> Cell:
    """The cell of a finished run."""
    settings, sets = record.settings, record.cards["model"].get("training_sets")
    return Cell(
        record.model, record.method, record.task, record.suite, settings["split"], "done",
        settings_id=record.settings_id, sample=settings["sample"], engine=settings["engine"], cached=cached,
        rerank=tuple(one["rerank"] for one in settings["rerankers"]),
        seen=classify_training_exposure(tuple(sets) if sets is not None else None, record.cards["task"]),
        scores=record.scores, main_score=record.scores[record.cards["task"]["metric"]],
        documents=record.collection["documents"], queries=record.collection["queries"],
        tokens_per_second=record.cost["tokens_per_second"], seconds=sum(record.cost["seconds"].values()), record=path,
    )  # fmt: skip


def compute_exit_code(cells: list[Cell]) -> int:
    """0 when nothing failed, 1 when some did, and the first cause's own code when nothing at all was done."""
    failures = [cell for cell in cells if cell.status == "failed"]
    if not failures:
        return 0
    return PARTLY_DONE if any(cell.status == "done" for cell in cells) else failures[0].exit_code
