"""Collections from the hub: mteb's loader reads a folder in the hub's layout, without network."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retbench.cards import pins
from retbench.cards.task import SourceSpec, TaskCard
from retbench.corpora import hub_snapshots
from retbench.corpora.open_collection import fetch_collection, open_collection, resolve_source
from retbench.errors import DataError, MissingError
from tests import small_collection
from tests.hub_repositories import (
    REVISION,
    build_retrieval_configs,
    build_source,
    list_hub_files,
    write_fetched_repository,
    write_repository,
)

SCIFACT = TaskCard("scifact", build_source(repo="mteb/scifact", mteb="SciFact"))


def ignore_status(_: str) -> None:
    """Ignore status lines."""


# Reading


def test_mteb_reads_the_same_collection_as_our_own_reader(tmp_path: Path) -> None:
    write_fetched_repository(
        "mteb/scifact",
        REVISION,
        build_retrieval_configs(small_collection.DOCUMENTS, small_collection.QUERIES, small_collection.TEST_JUDGMENTS),
    )
    ours = open_collection(small_collection.build_card(small_collection.write_folder(tmp_path / "beir")))
    theirs = open_collection(SCIFACT)
    assert list(theirs.corpus) == [row._replace(where="") for row in ours.corpus]
    assert (theirs.judgments, theirs.corpus.fingerprint) == (ours.judgments, ours.corpus.fingerprint)
    assert [row.id for row in theirs.queries] == [row.id for row in ours.queries]


def test_a_repository_without_an_mteb_task_is_read_by_the_generic_loader() -> None:
    write_fetched_repository(
        "me/mine",
        REVISION,
        build_retrieval_configs(small_collection.DOCUMENTS, small_collection.QUERIES, small_collection.TEST_JUDGMENTS),
    )
    assert len(open_collection(TaskCard("mine", build_source(repo="me/mine"))).corpus) == len(
        small_collection.DOCUMENTS
    )


def test_the_first_split_does_not_hide_the_second() -> None:
    write_fetched_repository(
        "mteb/msmarco",
        REVISION,
        build_retrieval_configs(
            small_collection.DOCUMENTS, small_collection.QUERIES, small_collection.TEST_JUDGMENTS, split="dev"
        ),
    )
    card = TaskCard("msmarco", build_source(repo="mteb/msmarco", mteb="MSMARCO"), split="dev")
    assert len(open_collection(card).queries) == 3
    cache_keys = {resolve_source(replace(card, split=split)).compute_cache_key() for split in ("dev", "test")}
    assert len(cache_keys) == 2


def test_cards_of_one_source_share_one_stored_collection(own_cache: Path) -> None:
    write_fetched_repository(
        "mteb/scifact",
        REVISION,
        build_retrieval_configs(small_collection.DOCUMENTS, small_collection.QUERIES, small_collection.TEST_JUDGMENTS),
    )
    for name in ("scifact", "scifact-study"):
        open_collection(replace(SCIFACT, name=name))
    assert len(list((own_cache / "collections").glob("SciFact-*"))) == 1


def test_temporary_files_of_the_reading_are_removed(own_cache: Path) -> None:
    write_fetched_repository(
        "mteb/scifact",
        REVISION,
        build_retrieval_configs(small_collection.DOCUMENTS, small_collection.QUERIES, small_collection.TEST_JUDGMENTS),
    )
    open_collection(SCIFACT)
    assert not list(own_cache.rglob("*.partial"))


@pytest.mark.parametrize("name", ["COIRCodeSearchNetRetrieval", "CodeSearchNetCCRetrieval"])
def test_a_codesearchnet_language_is_read(name: str) -> None:
    rows = build_retrieval_configs(
        small_collection.DOCUMENTS, small_collection.QUERIES, small_collection.TEST_JUDGMENTS, prefix="go-"
    )
    split, queries = rows["go-queries"]
    rows["go-queries"] = (split, [{**row, "partition": "train" if row["_id"] == "q3" else "test"} for row in queries])
    write_fetched_repository("CoIR-Retrieval/x", REVISION, rows)
    collection = open_collection(TaskCard("go", build_source(repo="CoIR-Retrieval/x", mteb=name, subset="go")))
    assert [row.id for row in collection.queries] == ["q1", "q2"]
    assert len(collection.corpus) == len(small_collection.DOCUMENTS)


def write_bright_repository() -> dict[str, Any]:
    documents = [{"id": i, "content": f"{t} {x}"} for i, t, x in small_collection.DOCUMENTS]
    examples = [
        {"id": "q1", "query": "how to brew", "gold_ids": ["tea"], "excluded_ids": ["coffee", "kettle"]},
        {"id": "q2", "query": "on rails", "gold_ids": ["train"], "excluded_ids": ["N/A"]},
    ]
    return {"documents": ("leetcode", documents), "examples": ("leetcode", examples)}


def test_bright_excluded_documents_are_used_if_the_card_says_so() -> None:
    write_fetched_repository("mteb/BRIGHT", REVISION, write_bright_repository())
    card = TaskCard(
        "bright", build_source(repo="mteb/BRIGHT", mteb="BrightLeetcodeRetrieval"), split="standard", excluded="drop"
    )
    strict, free = open_collection(card), open_collection(replace(card, excluded="keep"))
    assert strict.excluded == {"q1": {"coffee", "kettle"}}
    assert (strict.max_excluded, free.excluded) == (2, {})
    assert strict.fingerprint != free.fingerprint


def test_a_length_of_longembed_is_a_split() -> None:
    rows = [{"qid": f"q{n}", "doc_id": f"d{n}", "text": f"text {n}", "context_length": n} for n in (256, 512)]
    tables = {name: {"needle": (name, rows)} for name in ("queries", "corpus", "qrels")}
    folder = hub_snapshots.DatasetSnapshot("dwzhu/LongEmbed", REVISION).folder
    folder.mkdir(parents=True)
    lines = ["---", "configs:", "- config_name: needle", "  data_files:"]
    for name in tables:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        lines += [f"  - split: {name}", f"    path: {name}.jsonl"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    folder.with_name(f"{folder.name}.json").write_text("{}")
    card = TaskCard("needle", build_source(repo="dwzhu/LongEmbed", mteb="LEMBNeedleRetrieval"), split="test_512")
    collection = open_collection(card)
    assert [row.id for row in collection.corpus] == ["d512"]
    assert collection.judgments == {"q512": {"d512": 1}}


def test_the_r2med_layout_is_read() -> None:
    tables: dict[str, Any] = {
        "corpus": ("corpus", [{"id": i, "text": x or "-"} for i, _, x in small_collection.DOCUMENTS]),
        "query": ("query", [{"id": i, "text": x} for i, x in small_collection.QUERIES]),
        "qrels": ("qrels", [{"q_id": q, "p_id": d, "score": grade} for q, d, grade in small_collection.TEST_JUDGMENTS]),
    }
    write_fetched_repository("R2MED/Biology", REVISION, tables)
    collection = open_collection(TaskCard("bio", build_source(repo="R2MED/Biology", mteb="R2MEDBiologyRetrieval")))
    assert (len(collection.corpus), len(collection.queries)) == (len(small_collection.DOCUMENTS), 3)


def test_a_published_collection_with_missing_documents_is_read(own_cache: Path) -> None:
    judged = [*small_collection.TEST_JUDGMENTS, ("q1", "lost", 1), ("nobody", "tea", 1)]
    write_fetched_repository(
        "mteb/scifact", REVISION, build_retrieval_configs(small_collection.DOCUMENTS, small_collection.QUERIES, judged)
    )
    collection = open_collection(SCIFACT)
    assert collection.judgments["q1"]["lost"] == 1
    assert "nobody" not in collection.judgments
    manifest = json.loads(next((own_cache / "collections").glob("SciFact-*/manifest.json")).read_text())
    assert manifest["splits"]["test"]["unknown"] == {"queries": 1, "documents": 1}


def test_an_unexpected_layout_is_an_error() -> None:
    write_fetched_repository("mteb/scifact", REVISION, {"other": ("test", [{"a": 1}])})
    with pytest.raises(DataError, match="could not be read by mteb's loader SciFact"):
        open_collection(SCIFACT)


def test_an_unknown_mteb_task_is_named() -> None:
    write_fetched_repository("mteb/scifact", REVISION, {"other": ("test", [{"a": 1}])})
    with pytest.raises(DataError, match="SciFakt"):
        open_collection(TaskCard("x", build_source(repo="mteb/scifact", mteb="SciFakt")))


# LoCo, from two repositories

LOCO = TaskCard(
    "loco-qmsum",
    SourceSpec("loco", repo="h/Documents", queries_repo="h/Queries", subset="qmsum", revision=REVISION,
           queries_revision=REVISION),
)  # fmt: skip


def write_loco_repositories(passage: str = "passage") -> None:
    documents = [{"dataset": d, "pid": f"{d}_{n}", passage: "words"} for d in ("qmsum", "other") for n in range(3)]
    queries = [
        {"dataset": d, "qid": f"{d}_q", "query": "which?", "answer_pids": [f"{d}_1", f"{d}_1"]}
        for d in ("qmsum", "other")
    ]
    write_fetched_repository("h/Documents", REVISION, {"default": ("test", documents)})
    write_fetched_repository("h/Queries", REVISION, {"default": ("test", queries)})


def test_a_loco_task_is_the_rows_of_its_name_in_both_repositories() -> None:
    write_loco_repositories()
    collection = open_collection(LOCO)
    assert [row.id for row in collection.corpus] == ["qmsum_0", "qmsum_1", "qmsum_2"]
    assert collection.judgments == {"qmsum_q": {"qmsum_1": 1}}


@pytest.mark.parametrize("subset", ["qasper_title", "qasper_abstract"])
def test_papers_without_text_are_left_out_of_qasper(subset: str) -> None:
    """As in the benchmark's code (load_loco_from_hf): documents that are None, and the queries of the same papers."""
    texts = ["one text", None, "another text", ""]
    documents = [{"dataset": subset, "pid": f"{subset}_Passage_{n}", "passage": text} for n, text in enumerate(texts)]
    queries = [
        {"dataset": subset, "qid": f"{subset}_Query_{n}", "query": "which?", "answer_pids": [f"{subset}_Passage_{n}"]}
        for n in range(len(texts))
    ]
    write_fetched_repository("h/Documents", REVISION, {"default": ("test", documents)})
    write_fetched_repository("h/Queries", REVISION, {"default": ("test", queries)})
    collection = open_collection(replace(LOCO, name=subset, source=replace(LOCO.source, subset=subset)))
    assert [row.id for row in collection.corpus] == [f"{subset}_Passage_{n}" for n in (0, 2, 3)]
    assert collection.judgments == {f"{subset}_Query_{n}": {f"{subset}_Passage_{n}": 1} for n in (0, 2, 3)}


def test_a_loco_repository_whose_columns_changed_is_named() -> None:
    write_loco_repositories(passage="body")
    with pytest.raises(
        DataError, match=r"h/Documents has no column passage \(it has body, dataset, pid\)|has no column"
    ):
        open_collection(LOCO)


# Fetching


class FakeHub:
    """A fake hub that returns the files of a folder, with the interface of the hub's library."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.listed, self.asked = folder, list_hub_files(folder), 0

    def dataset_info(self, repo: str, *, revision: str | None, files_metadata: bool) -> Any:
        assert files_metadata
        self.asked += 1
        files = [
            SimpleNamespace(rfilename=name, size=size, blob_id=blob, lfs=None)
            for name, (size, blob) in self.listed.items()
        ]
        return SimpleNamespace(sha=revision or REVISION, siblings=files)

    def snapshot_download(self, repo: str, *, local_dir: Path, **_: Any) -> None:
        shutil.copytree(self.folder, local_dir, dirs_exist_ok=True)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    import huggingface_hub

    folder = write_repository(
        tmp_path / "hub",
        build_retrieval_configs(small_collection.DOCUMENTS, small_collection.QUERIES, small_collection.TEST_JUDGMENTS),
    )
    (folder / "loader.py").write_text("raise SystemExit")
    served = FakeHub(folder)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: served)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", served.snapshot_download)
    return served


def test_fetch_fills_the_cache_and_pins_the_revision(hub: FakeHub) -> None:
    collection = fetch_collection(SCIFACT, ignore_status)
    pin = pins.read_pin("collections", "scifact/test")
    assert pin == pins.Pin(REVISION, collection.fingerprint)
    assert pins.read_pin("datasets", "mteb/scifact") is not None


def test_a_finished_fetch_sends_no_request(hub: FakeHub) -> None:
    fetch_collection(SCIFACT, ignore_status)
    fetch_collection(SCIFACT, ignore_status)
    fetch_collection(replace(SCIFACT, name="scifact-study"), ignore_status)
    assert hub.asked == 1


def test_without_a_revision_in_the_card_the_first_fetch_pins_it(hub: FakeHub) -> None:
    card = replace(SCIFACT, source=replace(SCIFACT.source, revision=None))
    with pytest.raises(MissingError, match="is not in the cache"):
        open_collection(card)
    fetch_collection(card, ignore_status)
    assert resolve_source(card).revision == REVISION
    assert len(open_collection(card).queries) == 3


def test_a_damaged_file_is_refused_and_fetched_again(hub: FakeHub) -> None:
    right = hub.listed["corpus.jsonl"]
    hub.listed["corpus.jsonl"] = (right[0], "0" * 40)
    with pytest.raises(DataError, match=r"corpus\.jsonl of mteb/scifact is .* the hub lists"):
        fetch_collection(SCIFACT, ignore_status)
    with pytest.raises(MissingError, match="is not in the cache"):
        open_collection(SCIFACT)
    hub.listed["corpus.jsonl"] = right
    assert len(fetch_collection(SCIFACT, ignore_status).corpus) == len(small_collection.DOCUMENTS)


def test_a_truncated_file_is_refused(hub: FakeHub) -> None:
    hub.listed["queries.jsonl"] = (hub.listed["queries.jsonl"][0] + 5, hub.listed["queries.jsonl"][1])
    with pytest.raises(DataError, match=r"queries\.jsonl of mteb/scifact is"):
        fetch_collection(SCIFACT, ignore_status)


def test_a_file_that_did_not_arrive_is_missing(hub: FakeHub) -> None:
    hub.listed["more.jsonl"] = (5, "0" * 40)
    with pytest.raises(MissingError, match=r"more\.jsonl of mteb/scifact was not downloaded"):
        fetch_collection(SCIFACT, ignore_status)


def test_changed_content_at_the_pinned_revision_ends_with_exit_4(hub: FakeHub, own_cache: Path) -> None:
    first = fetch_collection(SCIFACT, ignore_status).fingerprint
    shutil.rmtree(own_cache / "collections")
    write_repository(
        hub.folder,
        build_retrieval_configs(
            small_collection.DOCUMENTS, small_collection.QUERIES, small_collection.TEST_JUDGMENTS[:-1]
        ),
    )
    hub.listed = list_hub_files(hub.folder)
    with pytest.raises(DataError) as caught:
        fetch_collection(SCIFACT, ignore_status)
    assert caught.value.exit_code == 4
    shutil.rmtree(own_cache / "collections")
    pins.get_pins_file().write_text(f'[collections."scifact/test"]\nrevision = "{REVISION}"\nfingerprint = "{first}"\n')
    with pytest.raises(DataError, match=first):
        fetch_collection(SCIFACT, ignore_status)


def test_a_gated_repository_ends_with_two_lines_and_exit_3(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import GatedRepoError

    def gated(*_: Any, **__: Any) -> Any:
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr(hub, "dataset_info", gated)
    with pytest.raises(MissingError) as caught:
        fetch_collection(SCIFACT, ignore_status)
    assert caught.value.exit_code == 3
    assert "gated" in caught.value.cause
    assert "https://huggingface.co/datasets/mteb/scifact" in caught.value.next_step
    assert "HF_TOKEN" in caught.value.next_step


def test_the_token_is_stored_nowhere(hub: FakeHub, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    fetch_collection(SCIFACT, ignore_status)
    files_with_token = [
        file for file in own_cache.rglob("*") if file.is_file() and b"hf_verysecret" in file.read_bytes()
    ]
    assert files_with_token == []


def test_without_network_the_error_names_the_next_step(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    class Unreachable:
        def dataset_info(self, *_: Any, **__: Any) -> Any:
            raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "HfApi", Unreachable)
    with pytest.raises(MissingError, match="mteb/scifact could not be fetched: no route to host") as caught:
        fetch_collection(SCIFACT, ignore_status)
    assert "--task FOLDER" in caught.value.next_step


OFFLINE = """
import socket, sys
class NoSocket(socket.socket):
    def __init__(self, *a, **k):
        raise RuntimeError("a socket was opened")
socket.socket = NoSocket
from retbench.cli.main import app
app(["run", "--model", "bm25", "--task", "scifact", "--out", sys.argv[1], "--json"])
"""


def test_a_run_on_a_full_cache_opens_no_socket(tmp_path: Path) -> None:
    revision = "d56462d0e63a25450459c4f213e49ffdb866f7f9"
    write_fetched_repository(
        "mteb/scifact",
        revision,
        build_retrieval_configs(small_collection.DOCUMENTS, small_collection.QUERIES, small_collection.TEST_JUDGMENTS),
    )
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(tmp_path / "results")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["documents"] == len(small_collection.DOCUMENTS)
