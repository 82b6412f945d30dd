"""What is in the cache: `fetch --list`, `list tasks`, `show task`, and a suite with one missing part."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from retbench.cards import catalog
from retbench.cards.task_rules import describe_task_rules
from retbench.cli.main import app
from retbench.corpora import open_collection as open_collection_module
from retbench.corpora.cache_status import get_cache_status
from retbench.corpora.collection import load_collection
from retbench.corpora.collection_cache import MANIFEST
from retbench.corpora.hub_snapshots import DatasetSnapshot
from retbench.corpora.open_collection import fetch_collection, open_collection
from retbench.engines import weights_cache
from retbench.errors import DataError, MissingError
from retbench.pipelines import fetch as story
from retbench.system import checksums
from tests import small_collection
from tests.hub_repositories import build_retrieval_configs, write_fetched_repository


def write_cached_dataset(task: str) -> None:
    source = catalog.find_task_card(task).source
    write_fetched_repository(
        str(source.repo),
        str(source.revision),
        build_retrieval_configs(small_collection.DOCUMENTS, small_collection.QUERIES, small_collection.TEST_JUDGMENTS),
    )


def run_command(arguments: list[str], code: int = 0) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, done.output
    return done.output


def test_a_task_is_missing_then_fetched_then_cached() -> None:
    card = catalog.find_task_card("scifact")
    status = get_cache_status(card)
    assert (status.state, status.documents, status.queries, status.bytes) == ("missing", 5183, 300, 0)
    write_cached_dataset("scifact")
    status = get_cache_status(card)
    assert (status.state, status.documents) == ("fetched", 5183)
    assert status.bytes > 0
    open_collection(card)
    status = get_cache_status(card)
    assert (status.state, status.documents, status.queries) == ("cached", len(small_collection.DOCUMENTS), 3)


def test_every_source_kind_has_a_status(tmp_path: Path) -> None:
    assert get_cache_status(catalog.find_task_card("stdlib-code")).state == "made here"
    assert get_cache_status(small_collection.build_card(tmp_path)).state == "your folder"
    assert get_cache_status(catalog.find_task_card("scifact-archive")).state == "missing"
    assert get_cache_status(catalog.find_task_card("loco-qmsum")).state == "missing"


def test_fetch_list_counts_what_tasks_share_once() -> None:
    write_cached_dataset("scifact")
    for name in ("scifact", "scifact-study"):
        open_collection(catalog.find_task_card(name))
    rows = {row["name"]: row for row in json.loads(run_command(["fetch", "--list", "--json"]))}
    assert rows["beir"]["state"] == "1 of 26 available"
    assert "nfcorpus" in rows["beir"]["missing"]
    assert "scifact" not in rows["beir"]["missing"]
    assert rows["specialized-beir"]["megabytes"] == rows["beir"]["megabytes"]


def test_fetch_list_of_names_shows_tasks_and_models() -> None:
    answer = run_command(["fetch", "--list", "msmarco", "scifact", "minilm-l6", "bm25"])
    rows = [line.split() for line in answer.splitlines()]
    assert ["msmarco-dev", "collection", "missing", "0.0", "8,841,823", "6,980"] in rows
    assert ["minilm-l6", "weights", "missing", "0.0", "–", "–"] in rows
    assert ["bm25", "weights", "needs", "none", "0.0", "–", "–"] in rows


def test_fetch_list_names_the_cached_models_and_a_damaged_one() -> None:
    """It listed only suites, though the help says what is cached."""
    for name, content in (("minilm-l6", None), ("e5-small-v2", "{")):
        folder = weights_cache.get_weights_folder(name)
        folder.mkdir(parents=True)
        if content:
            (folder / weights_cache.MANIFEST).write_text(content)
    answer = run_command(["fetch", "--list"], 1)
    assert "e5-small-v2" in answer
    assert "cannot be used" in answer
    assert "is not a valid manifest" in answer
    assert "minilm-l6" not in answer, "an empty folder is no cached model"


def test_fetch_without_a_name_explains_its_arguments() -> None:
    assert "or --list" in run_command(["fetch"], 2)
    assert "there is no model, task, suite or study called 'beer'" in run_command(["fetch", "beer"], 2)


def refuse_fetch_of(*names: str) -> Any:
    fetch = open_collection_module.fetch_collection

    def refuse(card: Any, say: Any) -> Any:
        if card.name in names:
            raise MissingError(f"{card.source.repo} is gated", "accept the licence, then set HF_TOKEN")
        return fetch(card, say)

    return refuse


def test_one_failed_fetch_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story.open_collection, "fetch_collection", refuse_fetch_of("stdlib-doc"))
    answer = run_command(["fetch", "stdlib"], 1)
    assert "stdlib-code:" in answer
    assert "stdlib-text:" in answer
    assert "stdlib-doc: not fetched" in answer
    assert "error: None is gated" in answer
    assert "next:  accept the licence, then set HF_TOKEN" in answer


def test_if_every_fetch_fails_the_exit_code_is_that_of_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story.open_collection, "fetch_collection", refuse_fetch_of("scifact"))
    rows = json.loads(run_command(["fetch", "scifact", "--json"], 3))
    assert rows[0]["exit_code"] == 3


def test_list_tasks_shows_counts_and_state() -> None:
    write_cached_dataset("scifact")
    open_collection(catalog.find_task_card("scifact"))
    rows = {row["name"]: row for row in json.loads(run_command(["list", "tasks", "--json"]))}
    assert (rows["scifact"]["documents"], rows["scifact"]["cached"]) == (len(small_collection.DOCUMENTS), True)
    assert (rows["nfcorpus"]["documents"], rows["nfcorpus"]["cached"]) == (3633, False)
    answer = run_command(["list", "tasks"])
    assert "documents" in answer
    assert rows["scifact"]["size"] in answer


def test_show_task_prints_the_whole_protocol() -> None:
    answer = run_command(["show", "task", "cosqa"])
    lines = [" ".join(line.split()) for line in answer.splitlines()]
    assert {
        "source.revision bc5efb7e9d437246ce393ed19d772e08e4a79535",
        "here.state missing",
        "documents 20,604",
        "lengths.query 512",
    } <= set(lines)
    assert "512 tokens" in answer
    assert "md5" not in answer


def test_the_protocol_lists_every_rule() -> None:
    rules = {
        name: " ".join(describe_task_rules(catalog.find_task_card(name)))
        for name in ("arguana", "bright-pony", "trec-dl-2019", "loco-qmsum")
    }
    assert "removed before the cut" in rules["arguana"]
    assert "excludes" in rules["bright-pony"]
    assert "grade of 2 or more" in rules["trec-dl-2019"]
    assert "a document at the model's limit" in rules["loco-qmsum"]
    assert "one of 12 tasks of the group cqadupstack" in " ".join(
        describe_task_rules(catalog.find_task_card("cqadupstack-gis"))
    )


def change_one_letter(file: Path) -> None:
    """Change one byte in the middle; size and modification time stay the same."""
    stat, content = file.stat(), bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "lost": Path.unlink,
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-8]),
    "one letter": change_one_letter,
}


@pytest.mark.parametrize("name", ["corpus.arrow", "queries.arrow", "judgments-0.arrow", MANIFEST])
@pytest.mark.parametrize("spoil", DAMAGE.values(), ids=DAMAGE)
def test_a_changed_stored_collection_is_read_again(
    name: str, spoil: Callable[[Path], object], own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_cached_dataset("scifact")
    right = open_collection(catalog.find_task_card("scifact"))
    file = next((own_cache / "collections").glob("SciFact-*")) / name
    spoil(file)
    with caplog.at_level(logging.WARNING):
        reopened = open_collection(catalog.find_task_card("scifact"))
    assert (reopened.fingerprint, list(reopened.corpus)) == (right.fingerprint, list(right.corpus))
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == (
        0 if spoil is Path.unlink and name == MANIFEST else 1
    )  # a folder without a manifest is ignored without a warning
    assert all(name in line and line.endswith("it is rebuilt from its source") for line in warnings)


@pytest.mark.parametrize("spoil", DAMAGE.values(), ids=DAMAGE)
def test_a_changed_stored_collection_without_its_source_ends_with_exit_4(
    spoil: Callable[[Path], object], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cached_dataset("scifact")
    open_collection(catalog.find_task_card("scifact"))
    file = next((own_cache / "collections").glob("SciFact-*/corpus.arrow"))
    right = checksums.compute_sha256(file)
    spoil(file)
    wrong = checksums.compute_sha256(file) if file.exists() else "missing"
    shutil.rmtree(own_cache / "collections" / "hub")
    readers: tuple[Callable[[], object], ...] = (
        lambda: open_collection(catalog.find_task_card("scifact")),  # a run
        lambda: load_collection(file.parent, "test"),  # a direct read of the cache, as in verify
    )
    for look in readers:
        with pytest.raises(DataError, match=rf"its checksum was {right} and is now {wrong}") as caught:
            look()
        assert caught.value.exit_code == 4
    fetched: list[str] = []
    monkeypatch.setattr(DatasetSnapshot, "fetch", lambda self, say: fetched.append(self.repo))
    with pytest.raises(DataError):  # the fake hub downloads nothing
        fetch_collection(catalog.find_task_card("scifact"), lambda _: None)
    assert fetched  # the damaged copy was not used


def test_a_collection_stored_before_checksums_is_read_again(own_cache: Path) -> None:
    write_cached_dataset("scifact")
    right = open_collection(catalog.find_task_card("scifact"))
    file = next((own_cache / "collections").glob("SciFact-*")) / MANIFEST
    old = json.loads(file.read_text())
    del old["sha256"]
    file.write_text(json.dumps(old))
    assert get_cache_status(catalog.find_task_card("scifact")).state == "fetched"
    assert open_collection(catalog.find_task_card("scifact")).fingerprint == right.fingerprint
    assert "sha256" in json.loads(file.read_text())


def test_an_untouched_collection_is_hashed_once_in_a_process(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cached_dataset("scifact")
    monkeypatch.setattr(checksums, "MIN_CACHED_BYTES", 1)
    open_collection(catalog.find_task_card("scifact"))
    monkeypatch.setattr(checksums, "compute_sha256", None)
    assert len(open_collection(catalog.find_task_card("scifact")).corpus)
