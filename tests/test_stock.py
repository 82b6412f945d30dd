"""What lies in the cache: `fetch --list`, `list tasks`, `show task`, and a suite of which one part cannot be had."""

import json
from pathlib import Path
from typing import Any

import pytest
import small
from hub_layout import fetched, retrieval
from typer.testing import CliRunner

from retbench.cards import catalog
from retbench.cli.main import app
from retbench.corpora import opening
from retbench.corpora.opening import open_collection
from retbench.corpora.stock import stock
from retbench.errors import DataError, MissingError
from retbench.pipelines import fetch as story
from retbench.pipelines.protocol import protocol


def cached(task: str) -> None:
    source = catalog.task(task).source
    fetched(str(source.repo), str(source.revision), retrieval(small.DOCUMENTS, small.QUERIES, small.TEST))


def said(arguments: list[str], code: int = 0) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, done.output
    return done.output


def test_a_task_is_missing_then_fetched_then_cached() -> None:
    card = catalog.task("scifact")
    found = stock(card)
    assert (found.state, found.documents, found.queries, found.bytes) == ("missing", 5183, 300, 0)
    cached("scifact")
    found = stock(card)
    assert (found.state, found.documents) == ("fetched", 5183)
    assert found.bytes > 0
    open_collection(card)
    found = stock(card)
    assert (found.state, found.documents, found.queries) == ("cached", len(small.DOCUMENTS), 3)


def test_other_kinds_have_states_of_their_own(tmp_path: Path) -> None:
    assert stock(catalog.task("stdlib-code")).state == "made here"
    assert stock(small.card(tmp_path)).state == "your folder"
    assert stock(catalog.task("scifact-archive")).state == "missing"
    assert stock(catalog.task("loco-qmsum")).state == "missing"


def test_fetch_list_counts_what_tasks_share_once() -> None:
    cached("scifact")
    for name in ("scifact", "scifact-study"):
        open_collection(catalog.task(name))
    rows = {row["name"]: row for row in json.loads(said(["fetch", "--list", "--json"]))}
    assert rows["beir"]["state"] == "1 of 26 here"
    assert "nfcorpus" in rows["beir"]["missing"]
    assert "scifact" not in rows["beir"]["missing"]
    assert rows["specialized-beir"]["megabytes"] == rows["beir"]["megabytes"]


def test_fetch_list_of_names_tells_tasks_and_models() -> None:
    told = said(["fetch", "--list", "msmarco", "scifact", "minilm-l6", "bm25"])
    assert "msmarco-dev: missing, 0.0 MB, 8,841,823 documents, 6,980 queries" in told
    assert "minilm-l6: missing" in told
    assert "bm25: needs none" in told


def test_fetch_without_a_name_says_what_it_takes() -> None:
    assert "give --list" in said(["fetch"], 2)
    assert "there is no model, task or suite called 'beer'" in said(["fetch", "beer"], 2)


def refusing(*names: str) -> Any:
    fetch = opening.fetch

    def refuse(card: Any, say: Any) -> Any:
        if card.name in names:
            raise MissingError(f"{card.source.repo} is gated", "accept the licence, then set HF_TOKEN")
        return fetch(card, say)

    return refuse


def test_one_that_cannot_be_had_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story.opening, "fetch", refusing("stdlib-doc"))
    told = said(["fetch", "stdlib"], 1)
    assert "stdlib-code:" in told
    assert "stdlib-text:" in told
    assert "stdlib-doc: not fetched" in told
    assert "error: None is gated" in told
    assert "next:  accept the licence, then set HF_TOKEN" in told


def test_if_nothing_can_be_had_the_code_is_the_cause_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story.opening, "fetch", refusing("scifact"))
    rows = json.loads(said(["fetch", "scifact", "--json"], 3))
    assert rows[0]["exit_code"] == 3


def test_list_tasks_shows_counts_and_state() -> None:
    cached("scifact")
    open_collection(catalog.task("scifact"))
    rows = {row["name"]: row for row in json.loads(said(["list", "tasks", "--json"]))}
    assert (rows["scifact"]["documents"], rows["scifact"]["cached"]) == (len(small.DOCUMENTS), True)
    assert (rows["nfcorpus"]["documents"], rows["nfcorpus"]["cached"]) == (3633, False)
    assert "documents" in said(["list", "tasks"])


def test_show_task_tells_the_whole_protocol() -> None:
    told = said(["show", "task", "cosqa"])
    for fact in (
        "revision: bc5efb7e9d437246ce393ed19d772e08e4a79535",
        "state: missing",
        "documents: 20604",
        "512 tokens",
    ):
        assert fact in told
    assert "md5" not in told


def test_the_protocol_names_every_rule() -> None:
    rules = {
        name: " ".join(protocol(catalog.task(name)))
        for name in ("arguana", "bright-pony", "trec-dl-2019", "loco-qmsum")
    }
    assert "never ranked" in rules["arguana"]
    assert "forbids" in rules["bright-pony"]
    assert "grade of 2 or more" in rules["trec-dl-2019"]
    assert "a document at the model's own limit" in rules["loco-qmsum"]
    assert "one of 12 that count as one, cqadupstack" in " ".join(protocol(catalog.task("cqadupstack-gis")))


@pytest.mark.parametrize("spoil", [Path.unlink, lambda file: file.write_bytes(file.read_bytes()[:-8])])
def test_a_stored_file_that_was_lost_or_cut_is_an_error(spoil: Any, own_cache: Path) -> None:
    cached("scifact")
    open_collection(catalog.task("scifact"))
    spoil(next((own_cache / "collections").glob("SciFact-*/corpus.arrow")))
    with pytest.raises(DataError, match=r"corpus\.arrow is missing or cut short"):
        open_collection(catalog.task("scifact"))
