"""The suite of page images, and tasks in which a model of words reads the texts beside the images."""

import io
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import retbench
from retbench.cards import catalog
from retbench.cards.task import TaskCard
from retbench.corpora import stdlib_pages, stdlib_suite
from retbench.corpora.images import check_image
from retbench.corpora.open_collection import open_collection, resolve_source
from retbench.corpora.rows import Judgment, RawCollection, TextRow
from retbench.errors import InapplicableError
from retbench.pipelines.runs.saved_run import load_run
from tests import image_collection, small_collection, tiny_vision_models

TEXT = "Return the sum of two numbers.\n\n    An indented line.\n" + "word " * 400


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_vision_models.build_vision_model(tmp_path_factory.mktemp("pages") / "qwen2_vl", "qwen2_vl")


@pytest.fixture
def few_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three documents in place of the standard library, because reading that takes seconds."""
    texts = {"sum": "Return the sum of two numbers.", "file": "Open a file and read its lines.", "wait": "Wait here."}

    def generate(name: str) -> RawCollection:
        assert name == "stdlib-text"
        documents = [TextRow(key, "", text) for key, text in texts.items()]
        queries = [TextRow("q:sum", "", "add numbers"), TextRow("q:file", "", "lines of a file")]
        return RawCollection(documents, queries, {"test": [Judgment("q:sum", "sum", 1), Judgment("q:file", "file", 1)]})

    monkeypatch.setattr(stdlib_suite, "generate_collection", generate)


def test_a_page_shows_the_text_that_it_keeps() -> None:
    font = stdlib_pages._load_font()
    page = stdlib_pages.draw_page(TEXT, font)
    lines = page.text.split("\n")
    assert check_image(page.image, "page") == (stdlib_pages.WIDTH, stdlib_pages.HEIGHT)
    assert lines[:3] == ["Return the sum of two numbers.", "", "    An indented line."]
    assert all(font.getlength(line) <= stdlib_pages.WIDTH - 2 * stdlib_pages.MARGIN for line in lines)
    assert " ".join(page.text.split()) == " ".join(TEXT.split())  # wrapped, nothing lost
    pixels = np.asarray(Image.open(io.BytesIO(page.image)))
    dark_rows = np.flatnonzero((pixels < 128).any(axis=1)) - stdlib_pages.MARGIN
    assert set((dark_rows // stdlib_pages.LINE_HEIGHT).tolist()) == {
        number for number, line in enumerate(lines) if line.strip()
    }
    assert stdlib_pages.draw_page(TEXT, stdlib_pages._load_font()) == page  # the same bytes


def test_what_does_not_fit_on_the_page_is_not_in_the_text() -> None:
    page = stdlib_pages.draw_page("\n".join(map(str, range(100))), stdlib_pages._load_font())
    assert page.text.split("\n") == [str(number) for number in range(stdlib_pages.LINES)]
    long_word = stdlib_pages.draw_page("x" * 500, stdlib_pages._load_font())
    assert long_word.text.replace("\n", "") == "x" * 500


def test_documents_queries_and_judgments_are_those_of_stdlib_text(few_pages: None) -> None:
    texts, pages = stdlib_suite.generate_collection("stdlib-text"), stdlib_pages.generate_collection()
    assert [row[:3] for row in pages.documents] == [row[:3] for row in texts.documents]
    assert (list(pages.queries), pages.splits) == (list(texts.queries), texts.splits)


def test_pages_are_drawn_one_at_a_time(few_pages: None, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    draw = stdlib_pages.draw_page
    monkeypatch.setattr(stdlib_pages, "draw_page", lambda text, font: drawn.append(text) or draw(text, font))
    documents = iter(stdlib_pages.generate_collection().documents)
    assert drawn == []
    list(islice(documents, 1))
    assert len(drawn) == 1


def test_another_pillow_is_another_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    import PIL.Image

    monkeypatch.setattr(stdlib_suite, "compute_stamp", lambda: "cpython")
    card = catalog.find_task_card("stdlib-pages")
    key = resolve_source(card).compute_cache_key()
    monkeypatch.setattr(PIL.Image, "__version__", "0.0.1")
    assert resolve_source(card).compute_cache_key() != key


def run(model: Path | str, task: Path | str, out: Path, **options: Any) -> dict[str, Any]:
    [cell] = retbench.evaluate(model, tasks=task, out=out, **options)
    assert cell.status == "done", cell.error
    return json.loads((Path(cell.record) / "record.json").read_text()) | {"folder": Path(cell.record)}


def test_words_and_images_are_on_one_leaderboard(few_pages: None, model: Path, tmp_path: Path) -> None:
    suite = catalog.load_suites().find("stdlib-pages").expand_tasks()
    [cells] = [[run(name, task, tmp_path / "out", **options) for name, options in (
        ("bm25", {}), ("random", {}), (model, {"methods": "last", "overrides": {"max_pixels": 50176}}),
    )] for task in suite]  # fmt: skip
    words, _, seen = cells
    assert len({record["collection"]["fingerprint"] for record in cells}) == 1
    assert words["scores"]["ndcg_at_10"] == 1.0
    assert "document_images" not in words["collection"]
    assert seen["collection"]["document_images"] == 3
    sample = json.loads((seen["folder"] / "sample.json").read_text())
    assert "<|image_pad|>" in sample["document"]["read"]
    assert "Return" not in sample["document"]["read"]  # the page alone
    # a reranker of texts takes the run of words, and is told of the images in the other
    assert not load_run(words["folder"]).collection.has_images
    assert load_run(seen["folder"]).collection.corpus.prefers_images


def test_the_image_alone_has_a_vector_of_its_own(model: Path, tmp_path: Path) -> None:
    """The same rows read as image and text, and as image alone: other vectors, so other stored ones."""
    folder = write_rows_with_both(tmp_path)
    both = run(model, folder, tmp_path / "out", methods="last")
    alone = run(model, folder, tmp_path / "out", methods="last", overrides={"images": "prefer"})
    assert both["collection"]["fingerprint"] == alone["collection"]["fingerprint"]
    assert both["texts"]["document"]["tokens"] > alone["texts"]["document"]["tokens"]
    assert alone["texts"]["document"]["fingerprint"] != both["texts"]["document"]["fingerprint"]


def write_rows_with_both(tmp_path: Path) -> Path:
    folder = image_collection.write_folder(tmp_path / "both")
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    image_collection.write_rows(folder / "corpus.jsonl", [{"text": f"a {row['_id']} disc", **row} for row in rows])
    queries = [{"_id": "q1", "text": "a red disc"}, {"_id": "q2", "text": "words"}, {"_id": "q3", "text": "blue"}]
    image_collection.write_rows(folder / "queries.jsonl", queries)
    return folder


def test_an_image_without_a_text_is_not_dropped_in_silence(tmp_path: Path) -> None:
    folder = image_collection.write_folder(tmp_path / "discs")
    [cell] = retbench.evaluate("bm25", tasks=folder, out=tmp_path / "out", overrides={"images": "prefer"})
    assert (cell.status, "'red' has an image and no text" in str(cell.error)) == ("skipped", True)


def test_commands_of_texts_read_the_texts(tmp_path: Path) -> None:
    card = small_collection.build_card(write_rows_with_both(tmp_path))
    with pytest.raises(InapplicableError, match="have images"):
        open_collection(card)
    collection = open_collection(TaskCard(**{**vars(card), "images": "prefer"}))
    assert not collection.has_images
    assert collection.corpus[0].text == "a red disc"


def test_a_random_order_is_the_same_at_every_run(tmp_path: Path) -> None:
    folder = small_collection.write_folder(tmp_path / "small")
    first, second = (run("random", folder, tmp_path / name) for name in ("a", "b"))
    assert first["settings_id"] == second["settings_id"]
    runs = [(record["folder"] / "run.trec.gz").read_bytes() for record in (first, second)]
    assert runs[0] == runs[1]
