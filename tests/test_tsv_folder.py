"""The MS MARCO layout, and the lines and judgments that every folder consists of, with every kind of damage."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from retbench.corpora import text_lines as reading
from retbench.corpora.collection import Collection
from retbench.corpora.judgments import read_judgments
from retbench.corpora.open_collection import open_collection
from retbench.corpora.text_lines import read_lines
from retbench.errors import DataError, MissingError, RetbenchError, UsageError
from retbench.retrievers.ranking import Ranking
from retbench.scoring.metrics import score_query
from tests import small_collection


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with MS MARCO's file names: untitled passages, two overlapping query files, TREC judgments."""
    folder_path = tmp_path / "msmarco"
    folder_path.mkdir()
    (folder_path / "collection.tsv").write_text("".join(f"{i}\t{x or '-'}\n" for i, _, x in small_collection.DOCUMENTS))
    (folder_path / "queries.dev.small.tsv").write_text("".join(f"{i}\t{x}\n" for i, x in small_collection.QUERIES))
    (folder_path / "queries.train.tsv").write_text("".join(f"{i}\t{x}\n" for i, x in small_collection.QUERIES[3:]))
    (folder_path / "qrels.dev.small.tsv").write_text(
        "".join(f"{q}\t0\t{d}\t{g}\n" for q, d, g in small_collection.TEST_JUDGMENTS)
    )
    (folder_path / "2019qrels-pass.txt").write_text(
        "".join(f"{q} 0 {d} {g}\n" for q, d, g in small_collection.TRAIN_JUDGMENTS)
    )
    return folder_path


def open_folder(folder: Path, split: str = "dev.small") -> Collection:
    return open_collection(small_collection.build_card(folder, split=split))


def test_an_ms_marco_folder_is_read(folder: Path) -> None:
    collection = open_folder(folder)
    assert len(collection.corpus) == len(small_collection.DOCUMENTS)
    assert [row.id for row in collection.queries] == ["q1", "q2", "q3"]
    assert collection.judgments["q1"] == {"tea": 2, "coffee": 2, "kettle": 1}
    assert collection.corpus[1].title == ""


def test_every_file_of_judgments_is_a_split(folder: Path) -> None:
    assert open_folder(folder, "2019-pass").judgments == {"q4": {"owl": 1}, "q5": {"compass": 1}}
    with pytest.raises(UsageError, match="no split 'test'") as caught:
        open_folder(folder, "test")
    assert "dev.small" in caught.value.cause


def test_a_gzipped_folder_gives_the_same_collection(folder: Path) -> None:
    plain = open_folder(folder).fingerprint
    for file in list(folder.iterdir()):
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    assert open_folder(folder).fingerprint == plain


@pytest.mark.parametrize(
    ("file", "content", "error", "problem"),
    [
        ("collection.tsv", "no tab here\n", DataError, r"collection\.tsv:1: no tab after the id"),
        ("collection.tsv", "\ttext\n", DataError, r"collection\.tsv:1: no tab after the id"),
        ("collection.tsv", "a\tx\na\ty\n", DataError, "document id 'a' is repeated"),
        ("queries.train.tsv", "q1\tanother text\n", DataError, "query 'q1' has a different text in another file"),
        ("qrels.dev.small.tsv", "q1\t0\tnowhere\t1\n", DataError, "there is no document 'nowhere'"),
        ("qrels.dev.small.tsv", "nobody\t0\ttea\t1\n", DataError, "there is no query 'nobody'"),
    ],
)
def test_a_wrong_line_is_named(folder: Path, file: str, content: str, error: type[RetbenchError], problem: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(error, match=problem):
        open_folder(folder)


@pytest.mark.parametrize(("pattern", "problem"), [("*queries*", "no queries"), ("*qrels*", "no judgments")])
def test_a_missing_part_is_named(folder: Path, pattern: str, problem: str) -> None:
    for file in folder.glob(pattern):
        file.unlink()
    with pytest.raises(MissingError, match=problem):
        open_folder(folder)


# Lines


def test_a_line_above_the_length_limit_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_LINE_CHARACTERS", 1000)
    (tmp_path / "f").write_text("short\n" + "x" * 999 + "\n" + "y" * 1500 + "\n")
    with pytest.raises(DataError, match=r"f:3: a line of over 1,000 characters"):
        list(read_lines(tmp_path / "f"))


def test_a_line_of_ten_million_characters_is_read(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x" * 10_000_000 + "\nshort\n")
    assert [len(line) for line, _ in read_lines(tmp_path / "f")] == [10_000_000, 5]


def test_a_truncated_gzip_file_that_is_not_utf8_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "f.gz").write_bytes(gzip.compress(b"line 1\nline \xc2x")[:-8])
    with pytest.raises(DataError, match=r"f\.gz is damaged"):
        list(read_lines(tmp_path / "f.gz"))


@pytest.mark.parametrize(
    ("kept_bytes", "place"), [(9, "from its first line on"), (40, "from its first line on"), (200, r"after line \d+")]
)
def test_a_truncated_gzip_file_names_the_last_line(tmp_path: Path, kept_bytes: int, place: str) -> None:
    content = gzip.compress("".join(f"line {n} of many\n" for n in range(1000)).encode())
    (tmp_path / "f.gz").write_bytes(content[:kept_bytes])
    with pytest.raises(DataError, match=rf"f\.gz is damaged {place}") as caught:
        list(read_lines(tmp_path / "f.gz"))
    assert caught.value.next_step == "download it again"


def test_byte_order_marks_and_carriage_returns_are_removed(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo\r\n")
    assert [line for line, _ in read_lines(tmp_path / "f")] == ["one", "two"]


@pytest.mark.parametrize(
    "content",
    [
        "query-id\tcorpus-id\tscore\nq\td\t1\n", "q\td\t1\n", "q\t0\td\t1\n", "q 0 d 1\n", "q d +1\r\n",
        "query iter doc grade\nq 0 d 1\n",
    ],
)  # fmt: skip
def test_judgments_of_every_shape_are_the_same(tmp_path: Path, content: str) -> None:
    (tmp_path / "f").write_text(content, newline="")
    assert [judgment[:3] for judgment in read_judgments(tmp_path / "f")] == [("q", "d", 1)]


# Evaluation rules of a task card


def test_excluded_documents_are_removed_before_the_cutoff(folder: Path) -> None:
    whole = open_folder(folder)
    collection = Collection(whole.corpus, whole.queries, whole.judgments, {"q1": frozenset({"tea", "kettle"})})
    ranking = Ranking([np.arange(4)] * 3, [np.arange(4, 0, -1.0)] * 3).filter_and_cut(collection, False, 2)
    assert ranking.to_document_ids(collection) == {
        "q1": ["coffee", "bread"], "q2": ["kettle", "tea"], "q3": ["kettle", "tea"]
    }  # fmt: skip


def test_a_lowest_relevant_grade_changes_only_binary_metrics() -> None:
    judged = {"a": 1, "b": 2, "c": 3}
    all_grades, high = score_query(["a", "b"], judged, 10), score_query(["a", "b"], judged, 10, relevant_from=2)
    assert high["ndcg_at_10"] == all_grades["ndcg_at_10"]
    assert (all_grades["mrr_at_10"], high["mrr_at_10"]) == (1.0, 0.5)
    assert (all_grades["recall_at_10"], high["recall_at_10"]) == (pytest.approx(2 / 3), 0.5)
    assert score_query(["a"], {"a": 1}, 10, relevant_from=2)["ndcg_at_10"] == 1.0
    assert score_query(["a"], {"a": 1}, 10, relevant_from=2)["recall_at_10"] == 0.0
