"""Checks of numbers in settings, raised as errors that name the field."""

from typing import Any

from retbench.errors import DataError


def require_at_least(settings: Any, least: float, *names: str) -> None:
    """Raise if one of these settings is below `least`; one that is not given is not checked."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < least:
            raise DataError(f"{name} = {value} is below {least:g}", f"write {least:g} or more")


def require_above_zero(settings: Any, *names: str) -> None:
    """Raise if one of these settings is zero or less; one that is not given is not checked."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value <= 0:
            raise DataError(f"{name} = {value} is not above 0", "write a number above 0")


def require_share(settings: Any, *names: str) -> None:
    """Raise if one of these settings is not between 0 and 1."""
    for name in names:
        value = getattr(settings, name)
        if not 0 <= value <= 1:
            raise DataError(f"{name} = {value} is not between 0 and 1", "write a number from 0 to 1")
