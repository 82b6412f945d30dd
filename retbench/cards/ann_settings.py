"""Approximate search as it is typed: `--set search=ivf:lists=1024,probes=32` or `search=hnsw:links=32,breadth=128`.

Never the default: exact search is. An index looks at a part of the documents only, so the setting may change a score
and is part of the settings-id; how much of the exact ranking it finds is measured on some queries and recorded.
"""

from dataclasses import asdict, dataclass

from retbench.cards import options
from retbench.errors import UsageError, closest


@dataclass(frozen=True)
class Ivf:
    """Documents in lists around centres; the lists of the nearest centres are searched."""

    lists: int = 0  # 0: four times the root of the number of documents
    probes: int = 32


@dataclass(frozen=True)
class Hnsw:
    """A graph of neighbours, walked greedily with so many candidates in hand."""

    links: int = 32
    building: int = 200  # candidates in hand while the graph is built
    breadth: int = 128


Near = Ivf | Hnsw
KINDS: dict[str, type[Ivf] | type[Hnsw]] = {"ivf": Ivf, "hnsw": Hnsw}


def read(word: str) -> Near | None:
    """A setting as typed; none for `exact`."""
    name, wanted = options.split(word)
    if name == "exact" and not wanted:
        return None
    if name not in KINDS:
        raise UsageError(f"search={word}: no such search", closest(name, ["exact", *KINDS]))
    found: Near = options.changed(KINDS[name](), wanted)
    low = next((key for key, value in asdict(found).items() if value < (key != "lists")), None)
    if low:
        raise UsageError(f"search={word}: {low} is too small", f"give {low}=1 or more")
    return found


def named(near: Near) -> str:
    """The one way to write it, every option told: a new default changes no old setting."""
    name = next(name for name, kind in KINDS.items() if isinstance(near, kind))
    return options.joined(name, {key: str(value) for key, value in asdict(near).items()})
