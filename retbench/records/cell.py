"""A cell: one row of `--json` and of a table. It is computed now, found on disk, skipped or failed."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from retbench.cards import catalog
from retbench.cards.method import VECTOR_KINDS
from retbench.cards.model import UNKNOWN_TRAINING_SETS
from retbench.errors import PARTLY_DONE
from retbench.records.record import Record

Status = Literal["done", "failed", "skipped"]
Exposure = Literal["seen", "unseen", "unknown"]


@dataclass(frozen=True)
class ExpectedScoreCheck:
    """A published score of a cell and the computed score."""

    metric: str
    score: float
    got: float
    tolerance: float
    source: str

    @property
    def is_met(self) -> bool:
        """True if both agree within the tolerance."""
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
    variant: tuple[str, ...] = ()  # how stored vectors were searched, as written after --set
    seen: Exposure = "unknown"
    cached: bool = False
    scores: dict[str, float] = field(default_factory=dict)
    main_score: float | None = None
    documents: int | None = None
    queries: int | None = None
    unknown_tokens: float | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None
    record: str | None = None
    error: str | None = None
    next_step: str | None = None
    exit_code: int = 0
    expected: tuple[ExpectedScoreCheck, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        facts = asdict(self)
        return {key: value for key, value in facts.items() if key != "exit_code" and value is not None}


def classify_training_exposure(training_sets: tuple[str, ...] | None, task: dict[str, Any]) -> Exposure:
    """Return whether the model was trained on any variant of the task's collection; `task` is the task card."""
    if training_sets is None:
        return "unknown"
    collection = task.get("collection") or _get_collection_name(task["name"])
    trained_on = map(_get_collection_name, training_sets)
    if any(collection == name or collection.startswith(f"{name}/") for name in trained_on):
        return "seen"
    return "unknown" if UNKNOWN_TRAINING_SETS in training_sets else "unseen"


def _get_collection_name(name: str) -> str:
    """Return the collection that a task is a variant of; without a card, the name itself."""
    card = catalog.load_task_cards().cards.get(name)
    return (card.collection if card else None) or name


def build_cell(record: Record, path: str, cached: bool) -> Cell:
    """Build the cell of a finished run."""
    settings, sets = record.settings, record.cards["model"].get("training_sets")
    return Cell(
        record.model, record.method, record.task, record.suite, settings["split"], "done",
        settings_id=record.settings_id, sample=settings["sample"], engine=settings["engine"], cached=cached,
        rerank=tuple(reranker["rerank"] for reranker in settings["rerankers"]), variant=_list_variant(settings),
        seen=classify_training_exposure(tuple(sets) if sets is not None else None, record.cards["task"]),
        scores=record.scores, main_score=record.scores[record.cards["task"]["metric"]],
        documents=record.collection["documents"], queries=record.collection["queries"],
        unknown_tokens=_compute_unknown_share(record.texts),
        tokens_per_second=record.cost["tokens_per_second"], seconds=sum(record.cost["seconds"].values()), record=path,
    )  # fmt: skip


def _list_variant(settings: dict[str, Any]) -> tuple[str, ...]:
    encoder = settings["encoder"]
    if not encoder:
        return ()
    values = {key: encoder.get(key) for key in ("dimensions", "vector_dtype")}
    values["search"] = None if settings["retriever"] in VECTOR_KINDS else settings["retriever"]
    return tuple(f"{key}={value}" for key, value in values.items() if value is not None)


def _compute_unknown_share(texts: dict[str, Any]) -> float | None:
    """Return the share of tokens that stand for text the tokenizer does not know, on the side that has more of them."""
    sides = [side for side in (texts.get("query"), texts.get("document")) if side and side.get("unknown") is not None]
    return max((side["unknown"] / max(1, side["tokens"]) for side in sides), default=None)


def compute_exit_code(cells: list[Cell]) -> int:
    """Return 0 if all cells are done or skipped, 1 if some failed, and the code of the first cause if none is done."""
    if any(cell.status == "done" for cell in cells):
        return PARTLY_DONE if any(cell.status == "failed" for cell in cells) else 0
    return next((cell.exit_code for status in ("failed", "skipped") for cell in cells if cell.status == status), 0)
