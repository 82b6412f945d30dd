"""What lies in the cache of one task's collection, found without reading it: state, size, counts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retbench.cards.task import TaskCard
from retbench.corpora.collection_cache import peek_manifest
from retbench.corpora.open_collection import get_collection_folder, resolve_source

CacheState = Literal["cached", "fetched", "made here", "your folder", "missing"]


@dataclass(frozen=True)
class CacheStatus:
    """`cached`: ready to be opened; `fetched`: the first opening reads what lies here; `missing`: to be fetched."""

    task: str
    state: CacheState
    documents: int | None
    queries: int | None
    bytes: int
    origin: str
    paths: tuple[Path, ...] = ()

    @property
    def megabytes(self) -> float:
        """Its size on this disk; what several tasks share counts in each."""
        return round(self.bytes / 1e6, 1)


def get_cache_status(card: TaskCard) -> CacheStatus:
    """The state of one task. The counts are the cache's, else those in the card."""
    source = resolve_source(card)
    if card.source.kind == "folder":  # naming its content would mean to read it
        return CacheStatus(card.name, "your folder", card.documents, card.queries, 0, source.origin)
    folder = get_collection_folder(source)
    places = tuple(path for path in (folder, *source.source_paths) if path.exists())
    manifest = peek_manifest(folder)
    split = manifest.get("splits", {}).get(card.split, {})
    return CacheStatus(
        card.name, _resolve_state(card, bool(manifest), source.is_available()), manifest.get("corpus", {}).get("rows", card.documents),
        split.get("queries", card.queries), sum(map(measure_size, places)), source.origin, places,
    )  # fmt: skip


def _resolve_state(card: TaskCard, cached: bool, here: bool) -> CacheState:
    if cached:
        return "cached"
    if card.source.kind == "generator":
        return "made here"
    return "fetched" if here else "missing"


def measure_size(path: Path) -> int:
    """Bytes of a file, or of everything in a folder."""
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
