"""How retbench was installed, and the command that adds an extra to this installation.

retbench is on no package index, so `pip install 'retbench[train]'` fails. pip notes in `direct_url.json` (PEP 610) what
it installed from: a checkout, a copy of one, or a wheel.
"""

import json
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

DISTRIBUTION = "retbench"
CHECKOUT = Path(__file__).parents[2]


def suggest_extra(*extras: str) -> str:
    """Return the command that adds extras to this installation, with this Python's own pip."""
    return f"{_shorten(sys.executable)} -m pip install {_format_source(','.join(extras))}"


def _format_source(extras: str) -> str:
    """Return the arguments of pip: what to install from, and the extras."""
    origin = _read_origin()
    url = urlsplit(origin.get("url", ""))
    if "dir_info" in origin and url.scheme == "file":
        option = "-e " if origin["dir_info"].get("editable") else ""
        return option + shlex.quote(f"{_shorten(unquote(url.path))}[{extras}]")
    if url.scheme:  # a wheel or an archive
        return shlex.quote(f"{DISTRIBUTION}[{extras}] @ {origin['url']}")
    if (CHECKOUT / "pyproject.toml").is_file():  # imported from a checkout that was never installed
        return "-e " + shlex.quote(f"{_shorten(str(CHECKOUT))}[{extras}]")
    return shlex.quote(f"{DISTRIBUTION}[{extras}]")


def _read_origin() -> dict[str, Any]:
    """Read what pip installed from; empty if it came from an index or was not installed."""
    try:
        text = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return {}
    origin: dict[str, Any] = json.loads(text) if text else {}
    return origin


def _shorten(path: str) -> str:
    """Return a path relative to the working folder if it is inside it; symbolic links are kept."""
    folder = Path.cwd()
    return str(Path(path).relative_to(folder)) if Path(path).is_relative_to(folder) else path
