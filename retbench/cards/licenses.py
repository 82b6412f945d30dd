"""Whether the texts of a collection may be passed on, by the licence that its task card names (`licenses.toml`)."""

import tomllib
from functools import cache

from retbench.system.user_config import PACKAGE_FOLDER


def is_redistributable(license_name: str) -> bool:
    """Whether a licence lets anybody pass on the texts; a remark may follow the name: `PSF-2.0 (generated here)`."""
    return license_name.split(maxsplit=1)[0].lower() in _load_redistributable() if license_name.strip() else False


@cache
def _load_redistributable() -> frozenset[str]:
    file = PACKAGE_FOLDER / "cards" / "licenses.toml"
    return frozenset(tomllib.loads(file.read_text(encoding="utf-8"))["redistributable"])
