"""Where things are on this machine: the cache, the card folders, and the user's `retbench.toml`.

Every value has an environment name; the environment wins over the file, the file over the default.
"""

import importlib.metadata
import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import quote

from retbench.cards import toml_parser
from retbench.errors import ResourceError

PACKAGE = Path(__file__).resolve().parent.parent
FILE = "retbench.toml"
Kind = Literal["model_cards", "tasks", "recipes", "methods", "studies"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Rate:
    """The price of a million tokens, read and written."""

    read: float
    written: float


@dataclass(frozen=True)
class Home:
    """What `retbench.toml` may say."""

    cache: str | None = None
    cards: tuple[str, ...] = ()
    device: Literal["cpu", "cuda", "mps"] | None = None
    prices: dict[str, float] | None = None  # what an hour costs, by the GPU or processor a record names
    rates: dict[str, Rate] | None = None  # what a model asks for its tokens, by its name
    currency: str = ""


def home() -> Home:
    """The settings in force: `retbench.toml` here, overruled by RETBENCH_CACHE, RETBENCH_CARDS, RETBENCH_DEVICE."""
    file = Path(FILE)
    written = toml_parser.load(Home, file) if file.exists() else Home()
    cards = os.environ.get("RETBENCH_CARDS")
    device = os.environ.get("RETBENCH_DEVICE") or written.device
    return Home(
        cache=os.environ.get("RETBENCH_CACHE") or written.cache,
        cards=tuple(filter(None, cards.split(os.pathsep))) if cards else written.cards,
        device=toml_parser.convert(Home.__annotations__["device"], device, _environment("RETBENCH_DEVICE"))
        if device
        else None,
        prices=written.prices,
        rates=written.rates,
        currency=written.currency,
    )


def _environment(name: str) -> toml_parser.Place:
    return toml_parser.Place(Path("environment"), "", (name,))


def cache_folder() -> Path:
    """The one folder for weights, collections and embeddings."""
    named = home().cache
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retbench"
    return Path(named).expanduser() if named else default


def need_room(work: Path, size: float) -> None:
    """Refuse early what the disk cannot hold."""
    free = shutil.disk_usage(work.parent).free
    if free < size:
        raise ResourceError(
            f"{work.parent} has {free / 1e9:.1f} GB free and this needs {size / 1e9:.1f} GB",
            "make room, or set RETBENCH_CACHE to a bigger disk",
        )


def card_folders(kind: Kind) -> list[Path]:
    """The shipped cards first, then the user's own folders, then what `finetune` left in the cache."""
    shipped = PACKAGE / "shipped" / kind
    first = shipped if shipped.is_dir() else PACKAGE.parent / kind
    own = [Path(folder).expanduser() / kind for folder in (*installed_cards(), *home().cards)]
    return [folder for folder in (first, *own, cache_folder() / kind) if folder.is_dir()]


def installed_cards() -> list[str]:
    """Card folders of installed packages, named by entry points of the group `retbench.cards`; nothing is imported."""
    found = [
        importlib.util.find_spec(point.module) for point in importlib.metadata.entry_points(group="retbench.cards")
    ]
    return sorted(place for spec in found if spec for place in spec.submodule_search_locations or ())


def path_part(name: str) -> str:
    """A name as one part of a path: nothing in it can climb or split."""
    part = quote(name, safe="+@=,") or "%"
    return f"%2E{part[1:]}" if part.startswith(".") else part
