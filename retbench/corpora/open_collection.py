"""From a task card to its collection: find it in the cache, or read the source that lies here and store it there.

Nothing here uses a network, and no socket is opened; only `fetch` may, and it is never called by a run.
"""

import hashlib
import logging
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from filelock import FileLock

from retbench.cards import pins
from retbench.cards.task import TaskCard
from retbench.cards.user_config import cache_folder, path_part
from retbench.corpora import beir_archives, hub_source, loco_source, stdlib_long, stdlib_suite
from retbench.corpora import folder_source as layout
from retbench.corpora.collection import Collection, load
from retbench.corpora.collection_cache import MANIFEST, compile_collection, discard, read_manifest
from retbench.corpora.dataset_source import Say, Supply, needed
from retbench.errors import DataError, MissingError

log = logging.getLogger(__name__)

FORMAT = 5  # raise it when the stored form changes


def open_collection(card: TaskCard, sample: int | None = None) -> Collection:
    """The collection of a card at its split, checked against the card's fingerprint or the pin of the first fetch."""
    source = supply(card)
    folder = place(source)
    if source.here():
        _discard_damaged(folder)
    if not (folder / MANIFEST).exists():
        if not source.here():
            raise MissingError(
                f"the collection of {card.name} ({source.origin}) is not here",
                f"run `retbench fetch {card.name}` on a connected machine and bring its cache, or give a BEIR folder "
                "with --task FOLDER, or use the offline suite: --suite stdlib",
            )
        with source.read() as raw:
            compile_collection(raw, folder)
    whole = load(folder, card.split, excluded=card.excluded == "drop")
    _check(card, source, whole.fingerprint)
    return whole.sample(sample) if sample else whole


def _damage(folder: Path) -> DataError | None:
    """What is wrong with a stored collection."""
    try:
        if (folder / MANIFEST).exists():
            read_manifest(folder)
    except DataError as damage:
        return damage
    return None


def _discard_damaged(folder: Path) -> None:
    """What changed on the disk since it was stored goes, where its source is at hand to be read anew."""
    if not _damage(folder):
        return
    with FileLock(folder.with_name(f"{folder.name}.lock")):  # two that see one damage must not remove its cure
        if damage := _damage(folder):
            log.warning("%s: it is read anew from its source", damage.cause)
            discard(folder)


def fetch(card: TaskCard, say: Say) -> Collection:
    """Fill the cache with a card's collection, and pin what came."""
    source = supply(card)
    folder = place(source)
    if not source.here() and (_damage(folder) or not (folder / MANIFEST).exists()):
        source.fetch(say)
        source = supply(card)  # the first fetch is what settles a revision
    say(f"reading {card.name}")
    collection = open_collection(card)
    if source.revision:
        pins.hold("collections", _pinned(card), pins.Pin(source.revision, collection.fingerprint))
    return collection


def supply(card: TaskCard) -> Supply:
    """The source of a card, by its kind."""
    return _SUPPLIES[card.source.kind](card)


def place(source: Supply) -> Path:
    """Where a source's collection is stored."""
    digest = hashlib.sha256(f"{FORMAT}\n{source.stamp()}".encode()).hexdigest()[:16]
    return cache_folder() / "collections" / f"{path_part(source.label)}-{digest}"


def _folder(card: TaskCard) -> Supply:
    path = Path(needed(card.name, "path", card.source.path)).expanduser()
    return Supply(
        card.name, lambda: layout.stamp(path), str(path), here=path.is_dir, read=lambda: nullcontext(layout.read(path))
    )


def _generator(card: TaskCard) -> Supply:
    name = needed(card.name, "generator", card.source.generator)
    maker = stdlib_long if name.startswith("stdlib-long") else stdlib_suite
    return Supply(
        card.name, lambda: f"{name}\n{maker.stamp()}", f"generator {name}", here=lambda: True,
        read=lambda: nullcontext(maker.generate(name)),
    )  # fmt: skip


_SUPPLIES: dict[str, Callable[[TaskCard], Supply]] = {
    "folder": _folder,
    "generator": _generator,
    "hub": hub_source.supply,
    "loco": loco_source.supply,
    "archive": beir_archives.supply,
}


def _pinned(card: TaskCard) -> str:
    return f"{card.name}/{card.split}"


def _check(card: TaskCard, source: Supply, fingerprint: str) -> None:
    """What is here must be what the card names, or what came first at the same revision."""
    if card.fingerprint:
        if fingerprint != card.fingerprint:
            raise DataError(
                f"{card.name} has fingerprint {fingerprint}, its card says {card.fingerprint}",
                "fetch the revision the card pins, or remove the card's fingerprint",
            )
        return
    pin = pins.read("collections", _pinned(card)) if source.revision else None
    if pin and pin.revision == source.revision and pin.fingerprint != fingerprint:
        raise DataError(
            f"{card.name} has fingerprint {fingerprint}, at the first fetch it was {pin.fingerprint}",
            f"delete {place(source)} and fetch it again",
        )
