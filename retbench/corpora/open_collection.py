"""Open the collection of a task card from the cache, or compile it there from a local source.

Only `fetch_collection` uses a network, and a run never calls it.
"""

import hashlib
import logging
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from retbench.cards import pins
from retbench.cards.task import TaskCard
from retbench.corpora import (
    beir_archives,
    candidate_source,
    folder_source,
    hub_source,
    loco_source,
    stdlib_long,
    stdlib_pages,
    stdlib_suite,
    stdlib_unified,
)
from retbench.corpora.collection import Collection, load_collection
from retbench.corpora.collection_cache import MANIFEST, compile_collection, discard_collection, read_manifest
from retbench.corpora.dataset_source import DatasetSource, StatusCallback, require_source_field
from retbench.corpora.rows import RawCollection
from retbench.errors import DataError, InapplicableError, MissingError
from retbench.system.file_locks import hold_lock
from retbench.system.user_config import encode_path_part, get_cache_folder

log = logging.getLogger(__name__)

MAX_KINDS = 30  # of rows; reports have a column for each
FORMAT_VERSION = 5  # increase it when the stored format changes


def open_collection(card: TaskCard, sample: int | None = None, with_images: bool = False) -> Collection:
    """Open a card's collection at its split and verify its fingerprint by the card or the pin of the first fetch.

    Only a caller that handles images asks for them. For all others a collection with images is an error: they would
    read what texts are left and call it the collection.
    """
    source = resolve_source(card)
    folder = _compile_if_missing(card, source)
    collection = load_collection(folder, card.split, excluded=card.excluded == "drop")
    _verify_fingerprint(card, source, collection.fingerprint)
    if card.kinds_in_ids:
        _require_kinds(card, collection)
    if card.images == "ignore":
        collection = collection.drop_images()
    elif card.images == "prefer" and not with_images:
        collection = keep_texts(collection, card, "this command")
    elif not with_images:
        require_texts(collection, card, "this command")
    return collection.sample(sample) if sample else collection


def list_splits(card: TaskCard) -> tuple[str, ...]:
    """List the splits of a card's collection, which is compiled if it is not yet."""
    return tuple(read_manifest(_compile_if_missing(card, resolve_source(card)))["splits"])


def _compile_if_missing(card: TaskCard, source: DatasetSource) -> Path:
    """Return the folder of the stored collection; compile it from its source if it is missing or damaged."""
    folder = get_collection_folder(source)
    if source.is_available():
        _discard_damaged(folder)
    if not (folder / MANIFEST).exists():
        if not source.is_available():
            raise MissingError(
                f"the collection of {card.name} ({source.origin}) is not in the cache",
                f"run `retbench fetch {card.name}` on a connected machine and copy its cache here, or give a BEIR "
                "folder with --task FOLDER, or use the offline suite: --suite stdlib",
            )
        with source.open_rows() as raw:
            compile_collection(raw, folder)
    return folder


def require_texts(collection: Collection, card: TaskCard, reader: str) -> None:
    """Refuse a collection with images where only texts are read."""
    if collection.has_images:
        parts = (("documents", collection.corpus), ("queries", collection.queries))
        counts = [f"{texts.images.count:,} of its {len(texts):,} {name}" for name, texts in parts if texts.images]
        raise InapplicableError(
            f"{card.name}: {' and '.join(counts)} have images, and {reader} reads only text",
            "use a model that reads images (docs/images.md), or only the texts: --set images=ignore with `run`, "
            'images = "ignore" in a task card',
        )


def keep_texts(collection: Collection, card: TaskCard, reader: str) -> Collection:
    """Return the texts beside the images; an image without a text is an error, because it could never be found."""
    for texts in (collection.corpus, collection.queries):
        if (name := texts.find_image_without_text()) is not None:
            raise InapplicableError(
                f"{card.name}: {name!r} has an image and no text, and {reader} reads only text",
                "use a model that reads images (docs/images.md)",
            )
    return collection.drop_images()


def _require_kinds(card: TaskCard, collection: Collection) -> None:
    """Raise an error if the ids do not begin with the kind of the row, as the card says."""
    for texts in (collection.corpus, collection.queries):
        ids = texts.read_ids().to_pylist()
        step = "write ids such as code:42 and text-to-code:7, or leave kinds_in_ids out of the card"
        if (name := next((name for name in ids if ":" not in name), None)) is not None:
            raise DataError(f"{card.name}: the id {name!r} does not begin with a kind and a colon", step)
        if (count := len({name.partition(":")[0] for name in ids})) > MAX_KINDS:
            raise DataError(f"{card.name}: its ids begin with {count:,} kinds of rows, {MAX_KINDS} are allowed", step)


def _find_damage(folder: Path) -> DataError | None:
    """Return the error of a damaged stored collection; None if it is intact or absent."""
    try:
        if (folder / MANIFEST).exists():
            read_manifest(folder)
    except DataError as damage:
        return damage
    return None


def _discard_damaged(folder: Path) -> None:
    """Remove a damaged stored collection, so that it is rebuilt from its source."""
    if not _find_damage(folder):
        return
    with hold_lock(folder.with_name(f"{folder.name}.lock")):  # another process may have rebuilt it meanwhile
        if damage := _find_damage(folder):
            log.warning("%s; it is rebuilt from its source", damage.cause)
            discard_collection(folder)


def fetch_collection(card: TaskCard, log_status: StatusCallback) -> Collection:
    """Fetch a card's collection into the cache, and pin its revision and fingerprint."""
    source = resolve_source(card)
    folder = get_collection_folder(source)
    if not source.is_available() and (_find_damage(folder) or not (folder / MANIFEST).exists()):
        source.fetch(log_status)
        source = resolve_source(card)  # the first fetch decides on the revision
    log_status(f"reading {card.name}")
    collection = open_collection(card, with_images=True)
    if source.revision:
        pins.write_pin("collections", _build_pin_name(card), pins.Pin(source.revision, collection.fingerprint))
    return collection


def resolve_source(card: TaskCard) -> DatasetSource:
    """Build the source of a card by its kind."""
    return _SOURCE_BUILDERS[card.source.kind](card)


def get_collection_folder(source: DatasetSource) -> Path:
    """Return the folder in which a source's collection is stored."""
    digest = hashlib.sha256(f"{FORMAT_VERSION}\n{source.compute_cache_key()}".encode()).hexdigest()[:16]
    return get_cache_folder() / "collections" / f"{encode_path_part(source.label)}-{digest}"


def _build_folder_source(card: TaskCard) -> DatasetSource:
    path = Path(require_source_field(card.name, "path", card.source.path)).expanduser()
    return DatasetSource(
        card.name,
        lambda: folder_source.hash_folder(path),
        str(path),
        is_available=path.is_dir,
        open_rows=lambda: nullcontext(folder_source.read_folder(path)),
    )


def _build_generator_source(card: TaskCard) -> DatasetSource:
    name = require_source_field(card.name, "generator", card.source.generator)
    stamp: Callable[[], str]
    generate: Callable[[], RawCollection]
    if name == stdlib_pages.NAME:
        key, stamp, generate = name, stdlib_pages.compute_stamp, stdlib_pages.generate_collection
    elif name == stdlib_unified.NAME:
        key, stamp, generate = name, stdlib_unified.compute_stamp, stdlib_unified.generate_collection
    elif name.startswith("stdlib-long"):  # each split has documents of its own
        split = card.published_split
        key = name if split == "test" else f"{name}/{split}"
        stamp, generate = stdlib_long.compute_stamp, partial(stdlib_long.generate_collection, name, split)
    else:
        key, stamp, generate = name, stdlib_suite.compute_stamp, partial(stdlib_suite.generate_collection, name)
    return DatasetSource(
        card.name, lambda: f"{key}\n{stamp()}", f"generator {name}", is_available=lambda: True,
        open_rows=lambda: nullcontext(generate()),
    )  # fmt: skip


_SOURCE_BUILDERS: dict[str, Callable[[TaskCard], DatasetSource]] = {
    "folder": _build_folder_source,
    "generator": _build_generator_source,
    "hub": hub_source.build_hub_source,
    "loco": loco_source.build_loco_source,
    "archive": beir_archives.build_archive_source,
    "candidates": candidate_source.build_candidate_source,
}


def _build_pin_name(card: TaskCard) -> str:
    return f"{card.name}/{card.split}"


def _verify_fingerprint(card: TaskCard, source: DatasetSource, fingerprint: str) -> None:
    """Verify the fingerprint by the card, or by the pin of the same revision."""
    if card.fingerprint:
        if fingerprint != card.fingerprint:
            raise DataError(
                f"{card.name} has fingerprint {fingerprint}; its card has {card.fingerprint}",
                "fetch the revision in the card, or remove the card's fingerprint",
            )
        return
    pin = pins.read_pin("collections", _build_pin_name(card)) if source.revision else None
    if pin and pin.revision == source.revision and pin.fingerprint != fingerprint:
        raise DataError(
            f"{card.name} has fingerprint {fingerprint}; at the first fetch it was {pin.fingerprint}",
            f"delete {get_collection_folder(source)} and fetch it again",
        )
