"""The cached state of a task's collection, without reading it: state, size and counts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retbench.cards.task import TaskCard
from retbench.corpora.collection_cache import peek_manifest
from retbench.corpora.open_collection import get_collection_folder, resolve_source

CacheState = Literal["cached", "fetched", "made here", "your folder", "missing"]


@dataclass(frozen=True)
class CacheStatus:
    """`cached`: ready to open; `fetched`: downloaded, to be compiled when first opened; `missing`: to be fetched."""

    task: str
    state: CacheState
    documents: int | None
    queries: int | None
    bytes: int
    origin: str
    paths: tuple[Path, ...] = ()

    @property
    def megabytes(self) -> float:
        """The size on this disk; files shared by several tasks count for each of them."""
        return round(self.bytes / 1e6, 1)


def get_cache_status(card: TaskCard) -> CacheStatus:
    """Get the status of one task; the counts come from the cache, else from the card."""
    source = resolve_source(card)
    if card.source.kind == "folder":  # its cache key would need all of its bytes
        return CacheStatus(card.name, "your folder", card.documents, card.queries, 0, source.origin)
    folder = get_collection_folder(source)
    paths = tuple(path for path in (folder, *source.source_paths) if path.exists())
    manifest = peek_manifest(folder)
    split = manifest.get("splits", {}).get(card.published_split, {})
    return CacheStatus(
        card.name, _resolve_state(card, bool(manifest), source.is_available()),
        manifest.get("corpus", {}).get("rows", card.documents),
        split.get("queries", card.queries), sum(map(measure_size, paths)), source.origin, paths,
    )  # fmt: skip


def _resolve_state(card: TaskCard, cached: bool, fetched: bool) -> CacheState:
    if cached:
        return "cached"
    if card.source.kind == "generator":
        return "made here"
    return "fetched" if fetched else "missing"


def measure_size(path: Path) -> int:
    """Measure the bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
