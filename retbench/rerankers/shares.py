"""Sharing a room out: what is too long is cut so that every document has the same share, the largest that fits."""

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
LEAST = 8  # tokens below which a document says nothing


def largest(most: int, make: Callable[[int], T], fits: Callable[[T], bool]) -> T | None:
    """What is made with the largest share from LEAST to `most` that fits; none if not even the least does."""
    best, low, high = None, LEAST, most
    while low <= high:
        share = (low + high) // 2
        made = make(share)
        if fits(made):
            best, low = made, share + 1
        else:
            high = share - 1
    return best
