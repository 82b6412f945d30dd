"""One corpus of text, code and pages: the collection `stdlib-unified`, and the tables of each kind of row."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import retbench
from retbench.cards import catalog
from retbench.cards.task import SourceSpec, TaskCard
from retbench.corpora import stdlib_suite, stdlib_unified
from retbench.corpora.open_collection import open_collection, resolve_source
from retbench.errors import DataError
from retbench.pipelines.report import build_report
from retbench.records.results_folder import ResultsFolder
from retbench.reports.kind_tables import build_kind_tables
from retbench.reports.leaderboard import build_leaderboards
from tests import image_collection, small_stdlib

PLAN = {"text": ("text", "code", "page"), "code": ("text",)}  # kinds of queries, and of what they ask for
WORDS = {"text": "sea tide moon", "code": "def add a b", "page": "bridge roman arch"}


@pytest.fixture
def few_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred functions in place of the standard library."""
    monkeypatch.setattr(stdlib_suite, "iterate_definitions", lambda: iter(small_stdlib.build_definitions(200)))


@pytest.mark.usefixtures("few_definitions")
def test_a_definition_is_in_one_pairing_and_a_query_asks_for_one_kind() -> None:
    raw = stdlib_unified.generate_collection()
    documents, queries = {row.id: row for row in raw.documents}, {row.id: row for row in raw.queries}
    judgments = [judgment for split in raw.splits.values() for judgment in split]
    assert {len(list(split)) > 0 for split in raw.splits.values()} == {True}
    assert {row.partition(":")[0] for row in documents} == {"text", "code", "page"}
    pairings = {(query.partition(":")[0], document.partition(":")[0]) for query, document, *_ in judgments}
    assert pairings == {
        ("text-to-text", "text"), ("text-to-page", "page"), ("text-to-code", "code"), ("code-to-text", "text"),
        ("page-to-code", "code"),
    }  # fmt: skip
    definitions = [name.partition(":")[2] for name in documents]
    assert len(set(definitions)) == len(definitions) == len(queries)
    for query, document, *_ in judgments:
        assert (queries[query].image is not None) == query.startswith("page")
        assert (documents[document].image is not None) == document.startswith("page")
    code = next(row for name, row in documents.items() if name.startswith("code"))
    assert code.text.startswith("def function(left, right):")
    assert list(map(repr, stdlib_unified.generate_collection().documents)) == list(map(repr, documents.values()))


def test_the_stamp_has_the_rules_of_the_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stdlib_suite, "compute_stamp", lambda: "cpython")
    card = catalog.find_task_card("stdlib-unified")
    key = resolve_source(card).compute_cache_key()
    monkeypatch.setattr("retbench.corpora.stdlib_pages.RULES_VERSION", 99)
    assert resolve_source(card).compute_cache_key() != key


def write_task(folder: Path) -> Path:
    """Write a task of eight queries per kind: one word each finds its document, except where code asks."""
    documents, queries, lines = [], [], ["query-id\tcorpus-id\tscore"]
    for asking, wanted_kinds in PLAN.items():
        for wanted in wanted_kinds:
            for number in range(8):
                name = f"{asking}{wanted}{number}"
                documents.append({"_id": f"{wanted}:{name}", "text": f"{WORDS[wanted]} word{name}"})
                text = WORDS["code"] if asking == "code" else f"word{name}"
                queries.append({"_id": f"{asking}-to-{wanted}:{name}", "text": text})
                lines.append(f"{asking}-to-{wanted}:{name}\t{wanted}:{name}\t1")
    (folder / "qrels").mkdir(parents=True)
    image_collection.write_rows(folder / "corpus.jsonl", documents)
    image_collection.write_rows(folder / "queries.jsonl", queries)
    (folder / "qrels" / "test.tsv").write_text("\n".join(lines) + "\n")
    cards = folder.parent / "cards" / "tasks" / "mixed"
    cards.mkdir(parents=True)
    (cards / "suite.toml").write_text('name = "mixed"\ntasks = ["mixed"]\n')
    source = f'[source]\nkind = "folder"\npath = "{folder}"\n'
    (cards / "mixed.toml").write_text(f'name = "mixed"\nkinds_in_ids = true\n{source}')
    return folder.parent / "cards"


def test_each_kind_has_its_score_and_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_catalog: Callable[[], None]
) -> None:
    monkeypatch.setenv("RETBENCH_CARDS", str(write_task(tmp_path / "mixed")))
    fresh_catalog()
    out = tmp_path / "out"
    cells = retbench.evaluate(["bm25", "random"], tasks="mixed", out=out)
    assert {cell.status for cell in cells} == {"done"}
    (board,) = build_leaderboards(ResultsFolder(out).scan_runs().runs, [], [])
    scores, comparison, shares = build_kind_tables(board)
    _, heads, rows, note = scores
    assert heads == ["model", "method", "code-to-text", "text-to-code", "text-to-page", "text-to-text", "mean"]
    assert rows[0][:2] == ["bm25", board.rows[0].label]
    assert rows[0][3:6] == ["100.00"] * 3
    assert rows[-1][0] == "best model of each kind"
    assert "ndcg_at_10" in note
    record = json.loads((Path(cells[0].record) / "record.json").read_text())
    overall = sum(float(figure) for figure in rows[0][2:6]) / 4
    assert overall == pytest.approx(100 * record["scores"]["ndcg_at_10"], abs=0.01)  # eight queries of each kind

    report_cells = build_report(out).list_cells()
    kinds = next(cell["kinds"] for cell in report_cells if cell["model"] == "bm25" and cell["task"])
    assert [f"{100 * score:.2f}" for score in kinds.values()] == rows[0][2:6]

    worse, level = comparison[2][1][3:]
    assert "text-to-code (-" in worse
    assert "code-to-text" in level + worse
    assert comparison[2][0][3] == "–"  # bm25 is best on all kinds or level
    blocks = {(row[0], row[1]): row[2:] for row in shares[2]}
    assert shares[1] == ["model", "query", "code", "page", "text"]
    assert blocks["relevant documents", "code"] == ["0%", "0%", "100%"]
    assert blocks["relevant documents", "text"] == ["33%", "33%", "33%"]
    asked_by_code = blocks[f"bm25 · {board.rows[0].label}", "code"]
    assert int(asked_by_code[0].rstrip("%")) > 50  # words of code find code first, whatever is asked for


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["text:1", "2"], "the id '2' does not begin with a kind and a colon"),
        ([f"kind{n}:{n}" for n in range(40)], "its ids begin with 40 kinds of rows, 30 are allowed"),
    ],
)
def test_ids_without_kinds_are_refused(names: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    image_collection.write_rows(tmp_path / "corpus.jsonl", [{"_id": name, "text": "word"} for name in names])
    image_collection.write_rows(tmp_path / "queries.jsonl", [{"_id": "text-to-text:q", "text": "word"}])
    (tmp_path / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\ntext-to-text:q\t{names[0]}\t1\n")
    card = TaskCard("mixed", SourceSpec("folder", path=str(tmp_path)), kinds_in_ids=True)
    with pytest.raises(DataError, match=message):
        open_collection(card)
