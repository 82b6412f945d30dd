"""Approximate search as it is typed: `--set search=ivf:lists=1024,probes=32` or `search=hnsw:links=32,breadth=128`.

Never the default: exact search is. An index looks at a part of the documents only, so the setting may change a score
and is part of the settings-id; how much of the exact ranking it finds is measured on some queries and recorded.
"""

from dataclasses import asdict, dataclass

from retbench.cards import options
from retbench.errors import UsageError, suggest_names


@dataclass(frozen=True)
class IvfSettings:
    """Documents in lists around centres; the lists of the nearest centres are searched."""

    lists: int = 0  # 0: four times the root of the number of documents
    probes: int = 32


@dataclass(frozen=True)
class HnswSettings:
    """A graph of neighbours, walked greedily with so many candidates in hand."""

    links: int = 32
    building: int = 200  # candidates in hand while the graph is built
    breadth: int = 128


AnnSettings = IvfSettings | HnswSettings
ANN_CLASSES: dict[str, type[IvfSettings] | type[HnswSettings]] = {"ivf": IvfSettings, "hnsw": HnswSettings}


def parse_ann_settings(word: str) -> AnnSettings | None:
    """A setting as typed; none for `exact`."""
    name, wanted = options.split_options(word)
    if name == "exact" and not wanted:
        return None
    if name not in ANN_CLASSES:
        raise UsageError(f"search={word}: no such search", suggest_names(name, ["exact", *ANN_CLASSES]))
    found: AnnSettings = options.apply_options(ANN_CLASSES[name](), wanted)
    low = next((key for key, value in asdict(found).items() if value < (key != "lists")), None)
    if low:
        raise UsageError(f"search={word}: {low} is too small", f"give {low}=1 or more")
    return found


def format_ann_settings(near: AnnSettings) -> str:
    """The one way to write it, every option told: a new default changes no old setting."""
    name = next(name for name, kind in ANN_CLASSES.items() if isinstance(near, kind))
    return options.join_options(name, {key: str(value) for key, value in asdict(near).items()})
