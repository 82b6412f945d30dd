"""Settings of approximate search: `--set search=ivf:lists=1024,probes=32` or `search=hnsw:links=32,breadth=128`.

The default is exact search. An index scores only a part of the documents, so this setting may change a score and is
part of the settings-id. Its recall against exact search is measured on a sample of queries and recorded.
"""

from dataclasses import asdict, dataclass

from retbench.cards import options
from retbench.errors import UsageError, suggest_names


@dataclass(frozen=True)
class IvfSettings:
    """Inverted file: documents are clustered into lists, and the `probes` nearest lists of a query are searched."""

    lists: int = 0  # 0: four times the square root of the number of documents
    probes: int = 32


@dataclass(frozen=True)
class HnswSettings:
    """Hierarchical navigable small world: a graph of neighbours, searched greedily with `breadth` candidates."""

    links: int = 32
    building: int = 200  # candidates while the graph is built
    breadth: int = 128


AnnSettings = IvfSettings | HnswSettings
ANN_CLASSES: dict[str, type[IvfSettings] | type[HnswSettings]] = {"ivf": IvfSettings, "hnsw": HnswSettings}


def parse_ann_settings(text: str) -> AnnSettings | None:
    """Parse the value of `--set search=`; None for `exact`."""
    name, option_values = options.split_options(text)
    if name == "exact" and not option_values:
        return None
    if name not in ANN_CLASSES:
        raise UsageError(f"search={text}: there is no such search", suggest_names(name, ["exact", *ANN_CLASSES]))
    settings: AnnSettings = options.apply_options(ANN_CLASSES[name](), option_values)
    too_small = next((key for key, value in asdict(settings).items() if value < (key != "lists")), None)
    if too_small:
        raise UsageError(f"search={text}: {too_small} is too small", f"give {too_small}=1 or more")
    return settings


def format_ann_settings(settings: AnnSettings) -> str:
    """Write the settings with every option, so that a changed default does not change a settings-id."""
    name = next(name for name, settings_class in ANN_CLASSES.items() if isinstance(settings, settings_class))
    return options.join_options(name, {key: str(value) for key, value in asdict(settings).items()})
