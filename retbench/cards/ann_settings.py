"""Settings of approximate search: `--set search=ivf:lists=1024,probes=32`, `hnsw:links=32`, `int8`, `binary:rescore=9`.

The default is exact search. An index (ivf, hnsw) scores only a part of the documents; int8 and binary score all of them
by compressed vectors. Both may change a score, so the setting is part of the settings-id. The recall against exact
search is measured on a sample of queries and recorded.
"""

from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

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


CompressedType = Literal["int8", "binary"]


@dataclass(frozen=True)
class Int8Settings:
    """A byte per number and one scale per vector; the first `rescore` documents are scored again in float32."""

    name: ClassVar[CompressedType] = "int8"
    rescore: int = 100

    def count_bytes(self, width: int) -> int:
        """The bytes of a document as it is searched."""
        return width + 4


@dataclass(frozen=True)
class BinarySettings:
    """The sign of each number; the first `rescore` documents are scored again in float32."""

    name: ClassVar[CompressedType] = "binary"
    rescore: int = 100

    def count_bytes(self, width: int) -> int:
        """The bytes of a document as it is searched."""
        return (width + 7) // 8


CompressedSettings = Int8Settings | BinarySettings
AnnSettings = IvfSettings | HnswSettings | CompressedSettings
ANN_CLASSES: dict[str, type[AnnSettings]] = {
    "ivf": IvfSettings, "hnsw": HnswSettings, "int8": Int8Settings, "binary": BinarySettings,
}  # fmt: skip
ZERO_OPTIONS = ("lists", "rescore")  # options whose zero has a meaning


def parse_ann_settings(text: str) -> AnnSettings | None:
    """Parse the value of `--set search=`; None for `exact`."""
    name, option_values = options.split_options(text)
    if name == "exact" and not option_values:
        return None
    if name not in ANN_CLASSES:
        raise UsageError(f"search={text}: there is no such search", suggest_names(name, ["exact", *ANN_CLASSES]))
    settings: AnnSettings = options.apply_options(ANN_CLASSES[name](), option_values)
    too_small = next((key for key, value in asdict(settings).items() if value < (key not in ZERO_OPTIONS)), None)
    if too_small:
        raise UsageError(f"search={text}: {too_small} is too small", f"give {too_small}=1 or more")
    return settings


def count_compressed_bytes(search: str, width: int) -> int | None:
    """The bytes of a document as a search scores it, by the search's name in settings; None unless it compresses."""
    name = options.split_options(search)[0]
    classes = (Int8Settings, BinarySettings)
    return next((compressed().count_bytes(width) for compressed in classes if compressed.name == name), None)


def format_ann_settings(settings: AnnSettings) -> str:
    """Write the settings with every option, so that a changed default does not change a settings-id."""
    name = next(name for name, settings_class in ANN_CLASSES.items() if isinstance(settings, settings_class))
    return options.join_options(name, {key: str(value) for key, value in asdict(settings).items()})
