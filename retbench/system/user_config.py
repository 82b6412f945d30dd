"""The user's configuration: the cache, the card folders, the device and `retbench.toml`.

An environment variable overrides the file, and the file overrides the default.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import quote

from retbench.errors import ResourceError
from retbench.system import toml_parser

PACKAGE_FOLDER = Path(__file__).resolve().parent.parent
CONFIG_FILE = "retbench.toml"
DEFAULT_RESULTS = "retbench-results"  # not `results`, which a checkout of retbench has with committed records
MAX_PATH_PART = 180  # characters; file systems allow 255 bytes, of which endings such as .failed.json need some
CardFolder = Literal["model_cards", "tasks", "recipes", "methods", "prompts", "studies"]
CARD_FOLDERS: tuple[CardFolder, ...] = get_args(CardFolder)


@dataclass(frozen=True)
class TokenPrices:
    """The price of a million input tokens (`read`) and output tokens (`written`)."""

    read: float
    written: float


@dataclass(frozen=True)
class UserConfig:
    """The fields of `retbench.toml`."""

    cache: str | None = None
    cards: tuple[str, ...] = ()
    device: Literal["cpu", "cuda", "mps"] | None = None
    prices: dict[str, float] | None = None  # price per hour, by the GPU or processor name in a record
    rates: dict[str, TokenPrices] | None = None  # token prices, by model name
    currency: str = ""
    results: str | None = None


def load_user_config() -> UserConfig:
    """Load `retbench.toml` from the working folder; environment variables override it."""
    file = Path(CONFIG_FILE)
    from_file = toml_parser.load_card(UserConfig, file) if file.exists() else UserConfig()
    cards = os.environ.get("RETBENCH_CARDS")
    device = os.environ.get("RETBENCH_DEVICE") or from_file.device
    return UserConfig(
        cache=os.environ.get("RETBENCH_CACHE") or from_file.cache,
        results=os.environ.get("RETBENCH_RESULTS") or from_file.results,
        cards=tuple(filter(None, cards.split(os.pathsep))) if cards else from_file.cards,
        device=toml_parser.convert_value(
            UserConfig.__annotations__["device"], device, _build_environment_location("RETBENCH_DEVICE")
        )
        if device
        else None,
        prices=from_file.prices,
        rates=from_file.rates,
        currency=from_file.currency,
    )


def _build_environment_location(name: str) -> toml_parser.CardLocation:
    return toml_parser.CardLocation(Path("environment"), "", (name,))


def get_cache_folder() -> Path:
    """Return the folder of weights, collections and embeddings."""
    configured = load_user_config().cache
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retbench"
    return Path(configured).expanduser() if configured else default


def get_results_folder() -> Path:
    """Return the folder that runs are written to and read from, unless a command names another one."""
    return Path(load_user_config().results or DEFAULT_RESULTS).expanduser()


def require_disk_space(path: Path, size: float) -> None:
    """Raise an error if the disk of `path` has less than `size` bytes free."""
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise ResourceError(
            f"{path.parent} has {free / 1e9:.1f} GB free and this needs {size / 1e9:.1f} GB",
            "free disk space, or set RETBENCH_CACHE to a larger disk",
        )


def list_card_folders(kind: CardFolder) -> list[Path]:
    """List the folders of one kind of card: shipped, then the user's, then those that `finetune` wrote to the cache."""
    shipped = PACKAGE_FOLDER / "shipped" / kind
    packaged = shipped if shipped.is_dir() else PACKAGE_FOLDER.parent / kind
    user_folders = [
        Path(folder).expanduser() / kind for folder in (*list_installed_card_folders(), *load_user_config().cards)
    ]
    return [folder for folder in (packaged, *user_folders, get_cache_folder() / kind) if folder.is_dir()]


def list_installed_card_folders() -> list[str]:
    """List card folders of installed packages (entry points of the group `retbench.cards`), without an import."""
    specs = [
        importlib.util.find_spec(point.module) for point in importlib.metadata.entry_points(group="retbench.cards")
    ]
    return sorted(folder for spec in specs if spec for folder in spec.submodule_search_locations or ())


def encode_path_part(name: str) -> str:
    """Percent-encode a name as one path part, so that it cannot leave its folder.

    A name that is too long for a file name is cut and ends in its digest. `%~` is part of no encoded name, so two names
    never have the same part.
    """
    part = quote(name, safe="+@=,", errors="surrogatepass") or "%"
    part = f"%2E{part[1:]}" if part.startswith(".") else part
    if len(part) <= MAX_PATH_PART:
        return part
    digest = hashlib.sha256(part.encode()).hexdigest()[:16]
    return f"{part[: MAX_PATH_PART - len(digest) - 2]}%~{digest}"
