"""What lies in the cache of one task's collection, found without reading it: state, size, counts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retbench.cards.task import TaskCard
from retbench.corpora.collection_cache import facts
from retbench.corpora.open_collection import place, supply

State = Literal["cached", "fetched", "made here", "your folder", "missing"]


@dataclass(frozen=True)
class Stock:
    """`cached`: ready to be opened; `fetched`: the first opening reads what lies here; `missing`: to be fetched."""

    task: str
    state: State
    documents: int | None
    queries: int | None
    bytes: int
    origin: str
    places: tuple[Path, ...] = ()

    @property
    def megabytes(self) -> float:
        """Its size on this disk; what several tasks share counts in each."""
        return round(self.bytes / 1e6, 1)


def stock(card: TaskCard) -> Stock:
    """The state of one task. The counts are the cache's, else those in the card."""
    source = supply(card)
    if card.source.kind == "folder":  # naming its content would mean to read it
        return Stock(card.name, "your folder", card.documents, card.queries, 0, source.origin)
    folder = place(source)
    places = tuple(path for path in (folder, *source.kept) if path.exists())
    manifest = facts(folder)
    split = manifest.get("splits", {}).get(card.split, {})
    return Stock(
        card.name, _state(card, bool(manifest), source.here()), manifest.get("corpus", {}).get("rows", card.documents),
        split.get("queries", card.queries), sum(map(size, places)), source.origin, places,
    )  # fmt: skip


def _state(card: TaskCard, cached: bool, here: bool) -> State:
    if cached:
        return "cached"
    if card.source.kind == "generator":
        return "made here"
    return "fetched" if here else "missing"


def size(path: Path) -> int:
    """Bytes of a file, or of everything in a folder."""
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
