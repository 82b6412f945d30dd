"""Rewritten queries of BRIGHT and the queries of DL-Hard, over collections of the hub."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retbench.cards import catalog
from retbench.cards.task import TaskCard
from retbench.corpora import hub_files
from retbench.corpora.open_collection import fetch_collection, open_collection
from retbench.errors import DataError
from tests import small_collection
from tests.hub_repositories import build_retrieval_configs, list_hub_files, write_fetched_repository
from tests.test_candidate_lists import web  # noqa: F401  # a fixture


def write_bright(card: TaskCard) -> None:
    """Write BRIGHT's layout: documents and examples, with a split for each domain."""
    documents = [{"id": name, "content": f"{title} {text}"} for name, title, text in small_collection.DOCUMENTS]
    examples = [
        {"id": f"q{n}", "query": text, "gold_ids": [gold], "excluded_ids": ["N/A"]}
        for n, text, gold in ((1, "how to brew", "tea"), (2, "on rails", "train"), (3, "frozen", "glacier"))
    ]
    write_fetched_repository(
        str(card.source.repo), str(card.source.revision),
        {"documents": ("biology", documents), "examples": ("biology", examples)},
    )  # fmt: skip


@pytest.fixture
def rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of rewritten queries, which a stand-in of the hub serves."""
    file = tmp_path / "hub" / str(catalog.find_task_card("bright-biology-gpt4-reason").source.queries_file)
    file.parent.mkdir(parents=True)

    def download(repo: str, revision: str, name: str, folder: Path) -> None:
        assert (repo, len(revision)) == ("xlangai/BRIGHT", 40)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(tmp_path / "hub" / name, folder / name)

    monkeypatch.setattr(hub_files, "_download", download)

    def list_files(repo: str, revision: str) -> tuple[str, dict[str, tuple[int, str]]]:
        listed = list_hub_files(tmp_path / "hub").items()
        return revision, {name: (size, f"git:{blob}") for name, (size, blob) in listed}

    monkeypatch.setattr(hub_files, "list_repo_files", list_files)
    return file


def write_rewritten(file: Path, ids: list[str]) -> None:
    pq.write_table(pa.table({"id": ids, "query": [f"thoughts about {i}" for i in ids], "gold_ids": ids}), file)


def test_bright_is_asked_with_the_queries_that_a_model_rewrote(rewritten: Path) -> None:
    card = catalog.find_task_card("bright-biology-gpt4-reason")
    plain = catalog.find_task_card("bright-biology")
    assert replace(card.source, queries_repo=None, queries_revision=None, queries_file=None) == plain.source
    write_bright(card)
    write_rewritten(rewritten, ["q3", "q2", "q1"])
    collection = fetch_collection(card, lambda _: None)
    original = open_collection(plain)
    assert [(row.id, row.text) for row in collection.queries] == [(f"q{n}", f"thoughts about q{n}") for n in (1, 2, 3)]
    assert (collection.judgments, list(collection.corpus)) == (original.judgments, list(original.corpus))
    assert collection.fingerprint != original.fingerprint


def test_a_query_without_a_rewritten_text_is_an_error(rewritten: Path) -> None:
    """With ids that do not fit, mteb's judgments of unknown queries would be left out without a word."""
    card = catalog.find_task_card("bright-biology-gpt4-reason")
    write_bright(card)
    write_rewritten(rewritten, ["0", "1", "2"])
    with pytest.raises(DataError, match="has no text for query 'q1'"):
        fetch_collection(card, lambda _: None)


def test_dl_hard_has_its_own_queries_and_judgments_over_the_passages(web: str, tmp_path: Path) -> None:  # noqa: F811
    card = catalog.find_task_card("dl-hard")
    configs = build_retrieval_configs(
        small_collection.DOCUMENTS, small_collection.QUERIES, small_collection.TEST_JUDGMENTS, split=card.split
    )
    write_fetched_repository(str(card.source.repo), str(card.source.revision), configs)
    (tmp_path / "topics.tsv").write_text("915593\twhat types of food can you cook sous vide\n7\tsculpture shape\n")
    (tmp_path / "hard.qrels").write_text("915593 Q0 bread 2\n915593 Q0 tea 0\n7 Q0 ship 1\n")
    digests = [hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("topics.tsv", "hard.qrels")]
    source = replace(
        card.source, queries_url=f"{web}/topics.tsv", queries_sha256=digests[0], url=f"{web}/hard.qrels",
        sha256=digests[1],
    )  # fmt: skip
    collection = fetch_collection(replace(card, source=source), lambda _: None)
    assert [(row.id, row.text) for row in collection.queries] == [
        ("915593", "what types of food can you cook sous vide"),
        ("7", "sculpture shape"),
    ]
    assert collection.judgments == {"915593": {"bread": 2, "tea": 0}, "7": {"ship": 1}}
    assert len(collection.corpus) == len(small_collection.DOCUMENTS)
