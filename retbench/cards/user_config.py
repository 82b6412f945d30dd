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

PACKAGE_FOLDER = Path(__file__).resolve().parent.parent
CONFIG_FILE = "retbench.toml"
CardFolder = Literal["model_cards", "tasks", "recipes", "methods", "studies"]
CARD_FOLDERS: tuple[CardFolder, ...] = get_args(CardFolder)


@dataclass(frozen=True)
class TokenPrices:
    """The price of a million tokens, read and written."""

    read: float
    written: float


@dataclass(frozen=True)
class UserConfig:
    """What `retbench.toml` may say."""

    cache: str | None = None
    cards: tuple[str, ...] = ()
    device: Literal["cpu", "cuda", "mps"] | None = None
    prices: dict[str, float] | None = None  # what an hour costs, by the GPU or processor a record names
    rates: dict[str, TokenPrices] | None = None  # what a model asks for its tokens, by its name
    currency: str = ""


def load_user_config() -> UserConfig:
    """The settings in force: `retbench.toml` here, overruled by RETBENCH_CACHE, RETBENCH_CARDS, RETBENCH_DEVICE."""
    file = Path(CONFIG_FILE)
    written = toml_parser.load_card(UserConfig, file) if file.exists() else UserConfig()
    cards = os.environ.get("RETBENCH_CARDS")
    device = os.environ.get("RETBENCH_DEVICE") or written.device
    return UserConfig(
        cache=os.environ.get("RETBENCH_CACHE") or written.cache,
        cards=tuple(filter(None, cards.split(os.pathsep))) if cards else written.cards,
        device=toml_parser.convert_value(
            UserConfig.__annotations__["device"], device, _environment_location("RETBENCH_DEVICE")
        )
        if device
        else None,
        prices=written.prices,
        rates=written.rates,
        currency=written.currency,
    )


def _environment_location(name: str) -> toml_parser.CardLocation:
    return toml_parser.CardLocation(Path("environment"), "", (name,))


def cache_folder() -> Path:
    """The one folder for weights, collections and embeddings."""
    named = load_user_config().cache
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retbench"
    return Path(named).expanduser() if named else default


def require_disk_space(work: Path, size: float) -> None:
    """Refuse early what the disk cannot hold."""
    free = shutil.disk_usage(work.parent).free
    if free < size:
        raise ResourceError(
            f"{work.parent} has {free / 1e9:.1f} GB free and this needs {size / 1e9:.1f} GB",
            "make room, or set RETBENCH_CACHE to a bigger disk",
        )


def list_card_folders(kind: CardFolder) -> list[Path]:
    """The shipped cards first, then the user's own folders, then what `finetune` left in the cache."""
    shipped = PACKAGE_FOLDER / "shipped" / kind
    first = shipped if shipped.is_dir() else PACKAGE_FOLDER.parent / kind
    own = [Path(folder).expanduser() / kind for folder in (*list_installed_card_folders(), *load_user_config().cards)]
    return [folder for folder in (first, *own, cache_folder() / kind) if folder.is_dir()]


def list_installed_card_folders() -> list[str]:
    """Card folders of installed packages, named by entry points of the group `retbench.cards`; nothing is imported."""
    found = [
        importlib.util.find_spec(point.module) for point in importlib.metadata.entry_points(group="retbench.cards")
    ]
    return sorted(place for spec in found if spec for place in spec.submodule_search_locations or ())


def encode_path_part(name: str) -> str:
    """A name as one part of a path: nothing in it can climb or split."""
    part = quote(name, safe="+@=,") or "%"
    return f"%2E{part[1:]}" if part.startswith(".") else part
