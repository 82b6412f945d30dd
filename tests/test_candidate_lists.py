"""Candidate lists: a first stage given as a file or as a hub set, scored and reranked without its corpus."""

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytrec_eval

from retbench.cards import catalog, pins
from retbench.corpora.open_collection import fetch_collection, open_collection
from retbench.errors import DataError, MissingError
from retbench.pipelines.runs import saved_run
from retbench.retrievers.candidate_ranking import rank_candidates
from tests import small_collection, tiny_models
from tests.hub_repositories import REVISION, list_hub_files
from tests.test_run import run_cells, run_command

TEXTS = {name: f"{title} {text}".strip() for name, title, text in small_collection.DOCUMENTS}
LISTS = {  # two documents of q1 have one score: the order of the list counts
    "q1": [("coffee", 9.5), ("bread", 7.0), ("tea", 7.0), ("ship", 1.0)],
    "q2": [("ship", 4.0), ("train", 2.5)],
    "q3": [("glacier", 3.0), ("untold", 1.0)],
}


def write_lists(file: Path) -> Path:
    """Write the lists as llm4ranking does; its query ids may be numbers."""
    queries = dict(small_collection.QUERIES)
    rows = [
        {
            "query": queries[query],
            "hits": [
                {"content": TEXTS[name], "qid": query, "docid": name, "rank": rank, "score": score}
                for rank, (name, score) in enumerate(hits, start=1)
            ],
        }
        for query, hits in LISTS.items()
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"query": "found nothing", "hits": []}]))
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with candidate lists and judgments, most of which are of documents in no list."""
    write_lists(tmp_path / "listed" / "candidates.jsonl")
    (tmp_path / "listed" / "qrels").mkdir()
    judgments = [f"{query} 0 {document} {grade}\n" for query, document, grade in small_collection.TEST_JUDGMENTS]
    (tmp_path / "listed" / "qrels" / "test.tsv").write_text("".join(judgments))
    return tmp_path / "listed"


def read_run(cell: dict[str, Any]) -> dict[str, list[str]]:
    run = saved_run.load_run(Path(cell["record"]))
    return run.ranking.to_document_ids(run.collection)


def test_the_first_stage_is_the_order_of_the_lists_and_counts_as_trec_eval_does(folder: Path, tmp_path: Path) -> None:
    (cell,) = run_cells("run", "--model", "candidate-list", "--task", folder, "--out", tmp_path / "out")
    assert read_run(cell) == {query: [name for name, _ in hits] for query, hits in LISTS.items()}
    judged: dict[str, dict[str, int]] = {}
    for query, document, grade in small_collection.TEST_JUDGMENTS:
        judged.setdefault(query, {})[document] = grade
    run = {query: {name: 1 / rank for rank, (name, _) in enumerate(hits, 1)} for query, hits in LISTS.items()}
    measured = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10", "recall.100"}).evaluate(run)
    record = json.loads((Path(cell["record"]) / "record.json").read_text())
    for metric, name in (("ndcg_at_10", "ndcg_cut_10"), ("recall_at_100", "recall_100")):
        mean = sum(scores[name] for scores in measured.values()) / len(measured)
        assert record["scores"][metric] == pytest.approx(mean, abs=1e-6)
    assert record["settings"]["retriever"] == "candidates"
    assert record["collection"]["documents"] == 7  # distinct ones in the lists of judged queries and of the others


def test_lists_are_reranked_by_vectors_without_their_corpus(folder: Path, tmp_path: Path) -> None:
    model = tiny_models.build_model(tmp_path / "tiny")
    line = ("run", "--model", "candidate-list", "--task", folder, "--out", tmp_path / "out")
    first_stage, baseline, listed = run_cells(*line, "--rerank", f"e2rank:model={model},method=e2rank,documents=2")
    assert (baseline["rerank"], listed["status"]) == (["vectors:method=e2rank,model=tiny"], "done")
    for query, names in read_run(first_stage).items():
        assert sorted(read_run(listed)[query]) == sorted(names)


def test_a_sample_keeps_the_candidates_of_its_queries(folder: Path, tmp_path: Path) -> None:
    line = ("run", "--model", "candidate-list", "--task", folder, "--out", tmp_path / "out")
    (cell,) = run_cells(*line, "--sample", 1)
    ((query, names),) = read_run(cell).items()
    assert names == [name for name, _ in LISTS[query]]


def test_a_file_of_lists_is_reranked_on_a_collection_that_is_here(tmp_path: Path) -> None:
    task = small_collection.write_folder(tmp_path / "pantry")
    model = tiny_models.build_model(tmp_path / "tiny")
    lists = write_lists(tmp_path / "bm25_top100.jsonl")
    line = ["rerank", lists, "--task", task, "--with", f"vectors:model={model}", "--out", tmp_path / "out"]
    first_stage, listed = run_cells(*line)
    assert read_run(first_stage) == {query: [name for name, _ in hits] for query, hits in LISTS.items()}
    assert sorted(read_run(listed)["q1"]) == sorted(name for name, _ in LISTS["q1"])


@pytest.mark.parametrize(
    ("hits", "message"),
    [
        ([{"qid": 1, "docid": "a", "score": 1}, {"qid": 2, "docid": "b", "score": 1}], "the hits name several queries"),
        ([{"qid": 1, "docid": "a", "score": 1}] * 2, "a document is listed twice"),
        ([{"qid": 1, "docid": "a"}], "not a candidate list"),
        ("none", "not a candidate list"),
    ],
)
def test_a_wrong_list_is_named_with_its_line(folder: Path, hits: Any, message: str) -> None:
    (folder / "candidates.jsonl").write_text(json.dumps({"query": "x", "hits": hits}) + "\n")
    with pytest.raises(DataError, match=rf"candidates\.jsonl:1: {message}"):
        open_collection(catalog.find_task_card(str(folder)))


def test_a_collection_without_lists_is_skipped(tmp_path: Path) -> None:
    task = small_collection.write_folder(tmp_path / "pantry")
    answer = run_command("run", "--model", "candidate-list", "--task", task, "--out", tmp_path / "out", "--json")
    (cell,) = json.loads(answer.stdout)
    assert cell["status"] == "skipped"
    assert "has no candidate lists" in cell["error"]


class FakeHub:
    """A dataset repository in a local folder, with the calls that fetch one of its files."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.listed, self.fetched = folder, list_hub_files(folder), list[str]()

    def dataset_info(self, repo: str, *, revision: str | None, files_metadata: bool) -> Any:
        assert files_metadata
        files = [SimpleNamespace(rfilename=n, size=s, blob_id=b, lfs=None) for n, (s, b) in self.listed.items()]
        return SimpleNamespace(sha=revision or REVISION, siblings=files)

    def hf_hub_download(self, repo: str, name: str, *, local_dir: Path, **_: Any) -> None:
        self.fetched.append(name)
        (local_dir / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.folder / name, local_dir / name)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    import huggingface_hub

    for name in ("signal", "news"):
        write_lists(tmp_path / "hub" / "bm25" / f"{name}_top100.jsonl")
    served = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: served)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", served.hf_hub_download)
    return served


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """The address of a web server with the files of the test's folder."""

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_one_file_of_a_hub_set_is_fetched_and_pinned(hub: FakeHub, web: str, tmp_path: Path) -> None:
    judgments = tmp_path / "qrels.txt"
    judgments.write_text("q1 0 tea 2\nq1 0 nowhere 1\nq2 0 train 1\n")
    content = judgments.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    card = catalog.find_task_card("signal1m-candidates")
    with pytest.raises(MissingError, match="is not in the cache"):
        open_collection(card)
    source = replace(card.source, url=f"{web}/qrels.txt", sha256=None, git_sha1=blob)
    collection = fetch_collection(replace(card, source=source), lambda _: None)
    assert hub.fetched == ["bm25/signal_top100.jsonl"]
    assert collection.judgments == {"q1": {"tea": 2, "nowhere": 1}, "q2": {"train": 1}}
    assert [name for name, _ in collection.candidates["q1"]] == ["coffee", "bread", "tea", "ship"]
    pin = pins.read_pin("datasets", "liuqi6777/retrieval_results")
    assert pin
    assert pin.revision == REVISION
    fetch_collection(replace(card, source=source), lambda _: None)
    assert hub.fetched == ["bm25/signal_top100.jsonl"]  # a fetched file is not fetched again
    wrong = replace(source, git_sha1="0" * 40)
    with pytest.raises(DataError, match=r"has git .* its card has 0000"):
        fetch_collection(replace(card, source=wrong), lambda _: None)


def test_lists_and_judgments_of_one_hub_set_leave_out_what_a_query_excludes(
    hub: FakeHub, web: str, tmp_path: Path
) -> None:
    """The authors' ids have spaces, and their judgments, which TREC's tools read, have `_` for each."""
    hits = [{"qid": 1, "docid": name, "score": 9 - n, "content": name} for n, name in enumerate(("own", "a b", "c"))]
    lists = tmp_path / "hub" / "reasonir" / "bright-aops_top100.jsonl"
    lists.parent.mkdir()
    lists.write_text(json.dumps({"query": "x", "hits": hits}) + "\n")
    judgments = tmp_path / "hub" / "topics_and_qrels" / "qrels.bright-aops.test.txt"
    judgments.parent.mkdir()
    judgments.write_text("1 0 a_b 1\n")
    hub.listed = list_hub_files(hub.folder)
    content = b"1 own\n2 other\n"
    (tmp_path / "excluded.txt").write_bytes(content)
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    card = catalog.find_task_card("bright-aops-reasonir")
    source = replace(card.source, exclusions_url=f"{web}/excluded.txt", exclusions_git_sha1=blob)
    collection = fetch_collection(replace(card, source=source), lambda _: None)
    assert sorted(hub.fetched) == ["reasonir/bright-aops_top100.jsonl", "topics_and_qrels/qrels.bright-aops.test.txt"]
    assert collection.judgments == {"1": {"a_b": 1}}
    ranking = rank_candidates(collection, 100).filter_and_cut(collection, False, 100)
    assert ranking.to_document_ids(collection) == {"1": ["a_b", "c"]}


def test_a_damaged_list_is_refused(hub: FakeHub, web: str, tmp_path: Path) -> None:
    hub.listed = {name: (size, "0" * 40) for name, (size, _) in hub.listed.items()}
    judgments = tmp_path / "qrels.txt"
    judgments.write_text("q1 0 tea 2\n")
    card = catalog.find_task_card("trec-news-candidates")
    digest = hashlib.sha256(judgments.read_bytes()).hexdigest()
    source = replace(card.source, url=f"{web}/qrels.txt", sha256=digest)
    with pytest.raises(DataError, match="the hub lists"):
        fetch_collection(replace(card, source=source), lambda _: None)
