"""Paths that must not be opened: pipes, devices and sockets, whose reading may never end, and names without UTF-8."""

import stat
from pathlib import Path

from retbench.errors import DataError, build_path_encoding_error


def is_special_file(path: Path) -> bool:
    """Whether a path, also through a link, leads to something that is neither a file nor a folder."""
    try:
        mode = path.stat().st_mode
    except OSError:  # nothing is there, or it may not be seen: the reader says so
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def require_utf8_path(path: Path) -> None:
    """Raise an error for a path with bytes that are not UTF-8 before the work: Arrow and safetensors cannot open it."""
    try:
        str(path.resolve()).encode()
    except UnicodeEncodeError as problem:
        raise build_path_encoding_error(path) from problem


def require_regular_file(path: Path) -> None:
    """Raise an error for a pipe, a device or a socket."""
    if is_special_file(path):
        raise DataError(f"{path} is a pipe or a device, not a file", "put a regular file in its place")
