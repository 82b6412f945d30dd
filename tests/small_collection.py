"""A collection of twenty documents and five judged queries, written in every variant of a BEIR folder."""

import gzip
import json
from pathlib import Path
from typing import NamedTuple

from retbench.cards.task import SourceSpec, TaskCard

DOCUMENTS = (
    ("kettle", "Kettle", "Water boils in a kettle at a hundred degrees."),
    ("tea", "Tea", "Leave the leaves in hot water for three minutes."),
    ("coffee", "Coffee", "Ground beans give their taste to hot water under pressure."),
    ("bread", "Bread", "Dough of flour and water rises by yeast and is baked."),
    ("cheese", "Cheese", "Milk is thickened with rennet, salted and left to ripen."),
    ("bicycle", "Bicycle", "Two wheels, a chain and pedals carry a rider."),
    ("train", "Train", "An engine pulls carriages along two rails of steel."),
    ("ship", "Ship", "A hull of steel floats because it displaces water."),
    ("bridge", "Bridge", "An arch of stone carries the road over the river."),
    ("river", "River", "Rain from the mountains flows through the valley to the sea."),
    ("mountain", "Mountain", "Rock is pushed up where two plates meet."),
    ("glacier", "Glacier", "Snow becomes ice under its own weight and creeps downhill."),
    ("volcano", "Volcano", "Molten rock breaks through the crust and builds a cone."),
    ("bee", "Bee", "It carries pollen between flowers and stores honey for the winter."),
    ("owl", "Owl", "Soft feathers let it fly at night without a sound."),
    ("whale", "Whale", "The largest animal of the sea feeds on tiny shrimps."),
    ("compass", "Compass", "A needle of magnetised steel points to the north."),
    ("clock", "Clock", "A pendulum swings and the hands turn at an even pace."),
    ("lens", "Lens", "Curved glass bends light to one point."),
    ("untold", "", ""),  # an empty document is kept
)
QUERIES = (
    ("q1", "how to brew a hot drink"),
    ("q2", "what carries people on rails or wheels"),
    ("q3", "frozen water in the mountains"),
    ("q4", "animals that hunt at night"),
    ("q5", "an instrument that shows the north — « Kompaß »"),
    ("q6", "a question that nobody judged"),
)
TEST_JUDGMENTS = (
    ("q1", "tea", 2),
    ("q1", "coffee", 2),
    ("q1", "kettle", 1),
    ("q2", "train", 1),
    ("q2", "bicycle", 1),
    ("q3", "glacier", 1),
    ("q3", "river", 0),
)
TRAIN_JUDGMENTS = (("q4", "owl", 1), ("q5", "compass", 1))


class Layout(NamedTuple):
    """A variant in which the collection is written."""

    gzipped: bool = False
    newline: str = "\n"
    byte_order_mark: str = ""
    header: bool = True
    columns: int = 3
    blank_lines: bool = False
    id_field: str = "_id"


PLAIN = Layout()


def write_folder(folder: Path, layout: Layout = PLAIN) -> Path:
    """Write the collection as a BEIR folder."""
    name = layout.id_field
    _write_lines(folder / "corpus.jsonl", [_to_json({name: i, "title": t, "text": x}) for i, t, x in DOCUMENTS], layout)
    _write_lines(folder / "queries.jsonl", [_to_json({name: i, "text": x}) for i, x in QUERIES], layout)
    for split, judgments in (("train", TRAIN_JUDGMENTS), ("test", TEST_JUDGMENTS)):
        head = ["query-id", "corpus-id", "score"] if layout.columns == 3 else ["query", "iter", "document", "grade"]
        rows = [[q, *["0"] * (layout.columns - 3), d, str(grade)] for q, d, grade in judgments]
        _write_lines(
            folder / "qrels" / f"{split}.tsv", ["\t".join(row) for row in ([head] * layout.header + rows)], layout
        )
    return folder


def build_card(folder: Path, **fields: object) -> TaskCard:
    """Build a task card for a folder."""
    return TaskCard(**{"name": "small", "source": SourceSpec(kind="folder", path=str(folder)), **fields})  # type: ignore[arg-type]


def _to_json(row: dict[str, str]) -> str:
    return json.dumps(row, ensure_ascii=False)


def _write_lines(file: Path, lines: list[str], layout: Layout) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    ending = layout.newline * (2 if layout.blank_lines else 1)
    content = (layout.byte_order_mark + "".join(line + ending for line in lines)).encode()
    if layout.gzipped:
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(content))
    else:
        file.write_bytes(content)
