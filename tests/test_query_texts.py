"""The texts of the HTML page: only where the licence allows it, from the cache alone, inert, and not too many."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import retbench
from retbench.cards.licenses import is_redistributable
from retbench.corpora.text_excerpts import SHOWN_CHARACTERS, find_rows, shorten_text
from retbench.corpora.texts import SCHEMA, Texts
from retbench.pipelines.report import build_report
from retbench.records.results_folder import ResultsFolder
from retbench.reports import query_texts
from retbench.system.user_config import get_cache_folder
from tests.finished_runs import write_finished_run

HOSTILE_TEXT = "</script><script>window.owned = 1</script><img src=x onerror=alert(1)> \u202e reversed"
LONG_TEXT = "kettle " * 100


def write_licensed_runs(folder: Path, license_name: str | None) -> Path:
    """Run two lexical models on a task whose card names a licence; return the results folder."""
    collection, results = folder / "kettles", folder / "results"
    (collection / "qrels").mkdir(parents=True)
    documents = {"d1": HOSTILE_TEXT, "d2": LONG_TEXT, "d3": "a kettle of water", "d4": "a reversed script"}
    lines = [json.dumps({"_id": name, "title": "", "text": text}) for name, text in documents.items()]
    (collection / "corpus.jsonl").write_text("\n".join(lines))
    queries = {"q1": "a kettle <b>of water</b>", "q2": "reversed script"}
    lines = [json.dumps({"_id": name, "text": text}) for name, text in queries.items()]
    (collection / "queries.jsonl").write_text("\n".join(lines))
    (collection / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td3\t1\nq1\td2\t0\nq2\td1\t1\n")
    for cell in retbench.evaluate(["bm25", "query-likelihood"], tasks=collection, out=results):
        set_license(Path(str(cell.record)), license_name)
    return results


def set_license(folder: Path, license_name: str | None) -> None:
    """Put a licence into the task card of a record, as if the task had had a card of its own."""
    record = json.loads((folder / "record.json").read_text())
    record["cards"]["task"]["license"] = license_name
    (folder / "record.json").write_text(json.dumps(record))


def read_query_data(page: str) -> dict[str, Any]:
    """Return what a page holds of the queries of its only task."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    (board,) = json.loads(found[1])
    data: dict[str, Any] = board["queries"]["kettles"]
    return data


def test_a_page_has_texts_if_the_licence_allows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = build_report(write_licensed_runs(tmp_path, "CC-BY-4.0")).format("html")
    data = read_query_data(page)
    assert data["texts"] == ["a kettle <b>of water</b>", "reversed script"]
    assert data["relevant"] == [["d3"], ["d1"]]  # d2 was judged irrelevant
    assert {*data["passages"]} == {name for ranking in data["documents"].values() for ids in ranking for name in ids}
    assert data["passages"]["d1"] == HOSTILE_TEXT
    assert len(data["passages"]["d2"]) == SHOWN_CHARACTERS
    assert "from kettles, licence CC-BY-4.0" in data["note"]
    assert "<script>window.owned" not in page
    monkeypatch.setattr(query_texts, "MAX_BYTES", 100)
    assert_only_ids(build_report(tmp_path / "results").format("html"), "a page holds at most")
    shutil.rmtree(get_cache_folder() / "collections")
    assert_only_ids(build_report(tmp_path / "results").format("html"), "not in the cache of the machine")
    assert not (get_cache_folder() / "collections").exists()  # a report compiles nothing


def test_without_such_a_licence_a_page_has_ids_and_the_reason(tmp_path: Path) -> None:
    results = write_licensed_runs(tmp_path, None)
    assert_only_ids(build_report(results).format("html"), "names no licence")
    for license_name in ("cc-by-nc-4.0", "unknown"):
        for file in results.rglob("record.json"):
            set_license(file.parent, license_name)
        assert_only_ids(build_report(results).format("html"), f"kettles, {license_name}, does not let everybody")


def test_the_card_of_today_wins_over_the_one_in_the_record(tmp_path: Path) -> None:
    folder = write_finished_run(tmp_path, "bm25", "msmarco", [0.5])
    set_license(folder, "mit")
    (run,) = ResultsFolder(tmp_path).scan_runs().runs
    assert "msr-la-nc, does not" in query_texts.TextCollector().collect(run, [])["note"]


def assert_only_ids(page: str, reason: str) -> None:
    data = read_query_data(page)
    assert reason in data["note"]
    assert {*data} == {"ids", "scores", "documents", "note"}
    assert "kettle kettle" not in page


def test_licences_are_known_by_their_name_before_a_remark() -> None:
    assert all(map(is_redistributable, ("mit", "MIT", "cc-by-4.0", "PSF-2.0 (the standard library)")))
    assert not any(map(is_redistributable, ("msr-la-nc", "cc-by-nc-4.0", "not mit", " ")))


def test_rows_are_found_across_chunks_and_selections(tmp_path: Path) -> None:
    ids = [f"d{number}" for number in range(50)]
    chunks = [pa.table([part, part, part], SCHEMA) for part in (ids[:20], ids[20:45], ids[45:])]
    texts = Texts(tmp_path / "none.arrow", pa.concat_tables(chunks), "f")
    assert find_rows(texts, ["d44", "d3", "d45", "absent"]) == {"d3": 3, "d44": 44, "d45": 45}
    selected = texts.take(np.arange(49, 29, -1))
    assert {name: selected[row].id for name, row in find_rows(selected, ids).items()} == {n: n for n in ids[30:]}


def test_a_long_text_is_cut_and_stands_on_one_line() -> None:
    assert shorten_text("a\n b\t c ") == "a b c"
    assert shorten_text("x" * SHOWN_CHARACTERS) == "x" * SHOWN_CHARACTERS
    assert shorten_text("x" * (SHOWN_CHARACTERS + 1)) == "x" * (SHOWN_CHARACTERS - 1) + "…"
