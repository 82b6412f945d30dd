"""The collections of a study at toy size: twelve texts, as BEIR folders or candidate lists.

Each has the splits of its task and one to train on. Where the real collection has images, the texts are drawn as pages.
"""

import json
from pathlib import Path
from typing import Any

from retbench.cards.task import TaskCard
from retbench.corpora.rows import TextRow
from retbench.corpora.stdlib_pages import draw_rows

HALVED = ("miracl", "tool", "coco", "flickr30k", "fashion200k")  # suites of which plans take halves of the test queries
IMAGE_SUITES = ("coco", "flickr30k", "fashion200k", "mieb", "vidore")  # images without texts
IMAGES_TO_TEXTS = "-i2t"  # the end of a task's name: its queries are the images
KINDS = ("text", "code", "page")

TEXTS = (  # a title, a passage, a question that it answers
    ("Heart", "The heart pumps blood through the arteries of the body.", "Which organ moves the blood?"),
    ("Bones", "Vitamin D helps the bones to take up calcium.", "What makes bones strong?"),
    ("Paris", "Paris is the capital of France and lies on the Seine.", "What is the capital of France?"),
    ("Tides", "The moon pulls the water and makes the tides.", "Why does the sea rise and fall?"),
    ("Bees", "Bees carry pollen from one flower to the next.", "How do flowers get pollen?"),
    ("Bread", "Bread is baked from flour, water, salt and yeast.", "What is bread made of?"),
    ("Sum", "def add(a, b): return a + b", "function that adds two numbers"),
    ("Index", "An index makes the search through a table fast.", "How is a search in a table made faster?"),
    ("Sugar", "Insulin moves sugar from the blood into the cells.", "How does sugar get into cells?"),
    ("Bridge", "The bridge was built by the Romans.", "Who built the bridge?"),
    ("Light", "Light needs eight minutes from the sun to the earth.", "How long is sunlight on its way?"),
    ("Sleep", "Sleep helps the brain to keep what it has learned.", "What helps to remember?"),
)
DOCUMENTS = [(f"d{n}", title, text) for n, (title, text, _) in enumerate(TEXTS)]
TEST_QUERIES = [(f"q{n}", query, f"d{n}") for n, (_, _, query) in enumerate(TEXTS[:4])]
TRAIN_QUERIES = [(f"t{n}", query, f"d{n}") for n, (_, _, query) in enumerate(TEXTS[4:], start=4)]


def write_collection(card: TaskCard, folder: Path) -> None:
    """Write the collection of a task, with the splits of the real one and one to train on."""
    documents, queries = _build_rows(card)
    judged = {"train": TRAIN_QUERIES, card.published_split: TEST_QUERIES}
    if "/" in card.split or card.suite.startswith(HALVED):
        judged[card.published_split] = [*TEST_QUERIES, *TRAIN_QUERIES]
    if card.source.kind == "candidates":
        hits = [{"docid": name, "score": 9.0 - n, "content": text} for n, (name, _, text) in enumerate(DOCUMENTS)]
        lists = [{"query": text, "hits": [{"qid": query, **hit} for hit in hits]} for query, text, _ in TEST_QUERIES]
        _write_rows(folder / "candidates.jsonl", lists)
        judged.pop("train")
    else:
        _write_rows(folder / "corpus.jsonl", [_write_images(row, folder) for row in documents])
        _write_rows(folder / "queries.jsonl", [_write_images(row, folder) for row in queries])
    names = _name_rows(card)
    for split, rows in judged.items():
        lines = "".join(f"{names[query]}\t{names[document]}\t{card.relevant_from}\n" for query, _, document in rows)
        write_file(folder / "qrels" / f"{split}.tsv", f"query-id\tcorpus-id\tscore\n{lines}")


def _name_rows(card: TaskCard) -> dict[str, str]:
    """The id of every document and query in this task; it begins with the row's kind if the card says so."""
    names = {row[0]: row[0] for row in (*DOCUMENTS, *TEST_QUERIES, *TRAIN_QUERIES)}
    if not card.kinds_in_ids:
        return names
    kinds = {name: KINDS[number % len(KINDS)] for number, (name, _, _) in enumerate(DOCUMENTS)}
    asking = {query: f"text-to-{kinds[document]}" for query, _, document in (*TEST_QUERIES, *TRAIN_QUERIES)}
    return {name: f"{kind}:{name}" for name, kind in {**kinds, **asking}.items()}


def _build_rows(card: TaskCard) -> tuple[list[TextRow], list[TextRow]]:
    """The documents and queries; where the real ones are images, pages with the texts."""
    names = _name_rows(card)
    documents = [TextRow(names[name], title, text) for name, title, text in DOCUMENTS]
    queries = [TextRow(names[name], "", text) for name, text, _ in (*TEST_QUERIES, *TRAIN_QUERIES)]
    if card.images == "prefer":  # a text beside every image
        return list(draw_rows(documents, "page:" if card.kinds_in_ids else "")), queries
    if not card.suite.startswith(IMAGE_SUITES):
        return documents, queries
    if card.name.endswith(IMAGES_TO_TEXTS):
        return documents, [row._replace(text="") for row in draw_rows(queries)]
    return [row._replace(title="", text="") for row in draw_rows(documents)], queries


def _write_images(row: TextRow, folder: Path) -> dict[str, str]:
    """The row as a line of a BEIR folder; its image goes into a file."""
    line = {"_id": row.id, "title": row.title, "text": row.text}
    if row.image:
        line["image"] = f"images/{row.id.replace(':', '-')}.png"
        (folder / "images").mkdir(parents=True, exist_ok=True)
        (folder / line["image"]).write_bytes(row.image)
    return line


def write_training_data(folder: Path) -> None:
    """Write what stands in for training data of the hub: labelled queries, and the same as rankings."""
    texts = [text for _, _, text in DOCUMENTS]
    orders = [(query, [text, *(other for other in texts if other != text)]) for _, text, query in TEXTS[4:]]
    labelled = [{"query": query, "positives": order[:1], "negatives": order[1:]} for query, order in orders]
    ranked = [
        {"query": query, "document": order, "ranking": list(range(1, len(order) + 1)), "source": "msmarco"}
        for query, order in orders
    ]
    _write_rows(folder / "labelled.jsonl", labelled)
    _write_rows(folder / "ranked.jsonl", ranked)


def _write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    write_file(file, "".join(json.dumps(row) + "\n" for row in rows))


def write_file(file: Path, text: str) -> None:
    """Write a text and the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
