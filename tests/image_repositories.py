"""Writes dataset repositories with images in the layouts of the hub: tables of parquet, for mteb's loaders to read."""

from pathlib import Path
from typing import Any

from retbench.cards.task import TaskCard
from tests.image_collection import COLOURS, draw, encode

Rows = dict[str, list[Any]]


def hold(data: bytes | None) -> dict[str, Any] | None:
    """An image as the library datasets stores it in parquet."""
    return None if data is None else {"bytes": data, "path": None}


def write_image_tables(folder: Path, configs: dict[str, tuple[str, Rows]]) -> Path:
    """Write a repository; each configuration has one split, given as (split, columns)."""
    import datasets

    folder.mkdir(parents=True)
    lines = ["---", "configs:"]
    for name, (split, rows) in configs.items():
        table = datasets.Dataset.from_dict(rows)
        if "image" in rows:
            table = table.cast_column("image", datasets.Image())
        table.to_parquet(folder / f"{name}.parquet")
        lines += [f"- config_name: {name}", "  data_files:", f"  - split: {split}", f"    path: {name}.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


def write_photographs(card: TaskCard, folder: Path, queries: list[tuple[str, str, str]]) -> None:
    """Write a task whose captions ask for photographs: queries as (id, text, id of the document)."""
    documents = sorted({document for _, _, document in queries})
    colours = list(COLOURS)
    images = [encode(draw(colours[n % len(colours)], (40 + n, 40))) for n in range(len(documents))]
    ids, texts, relevant = (list(column) for column in zip(*queries, strict=True))
    configs: dict[str, tuple[str, Rows]] = {
        "corpus": ("test", {"id": documents, "image": [hold(image) for image in images]}),
        "queries": ("test", {"id": ids, "text": texts, "image": [None] * len(ids)}),
        "qrels": ("test", {"query-id": ids, "corpus-id": relevant, "score": [1] * len(ids)}),
    }
    write_image_tables(folder, {name: (card.published_split, rows) for name, (_, rows) in configs.items()})
