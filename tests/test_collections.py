"""Collections: every valid layout of a BEIR folder, every kind of damage, and sampling."""

import errno
import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.cards.model import LexicalSettings
from retbench.cards.task import SourceSpec, TaskCard
from retbench.corpora import beir_folder, collection_cache
from retbench.corpora.collection import DOCUMENTS_PER_QUERY, Collection, load_collection
from retbench.corpora.collection_cache import MANIFEST, compile_collection
from retbench.corpora.open_collection import open_collection
from retbench.corpora.rows import Judgment, RawCollection, TextRow
from retbench.corpora.texts import Texts, join_fields
from retbench.errors import DataError, MissingError, ResourceError, RetbenchError, UsageError
from retbench.records.load_run import read_rankings
from retbench.records.results_folder import decode_id, format_trec_run
from retbench.retrievers.bm25 import BM25Index
from tests import small_collection
from tests.small_collection import Layout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_collection.write_folder(tmp_path / "small")


def open_folder(folder: Path, **fields: object) -> Collection:
    return open_collection(small_collection.build_card(folder, **fields))


def replace_line(file: Path, number: int, line: str | bytes) -> None:
    lines = file.read_bytes().splitlines()
    lines[number - 1] = line if isinstance(line, bytes) else line.encode()
    file.write_bytes(b"\n".join(lines) + b"\n")


def test_a_collection_equals_what_was_written(folder: Path) -> None:
    collection = open_folder(folder)
    assert [tuple(row[:3]) for row in collection.corpus] == list(small_collection.DOCUMENTS)
    assert [(row.id, row.text) for row in collection.queries] == list(small_collection.QUERIES[:3])
    assert collection.judgments["q1"] == {"tea": 2, "coffee": 2, "kettle": 1}
    assert collection.judgments["q3"] == {"glacier": 1, "river": 0}


def test_queries_without_judgments_are_dropped_in_every_split(folder: Path) -> None:
    assert open_folder(folder).queries.read_ids().to_pylist() == ["q1", "q2", "q3"]
    assert open_folder(folder, split="train").queries.read_ids().to_pylist() == ["q4", "q5"]
    assert set(open_folder(folder, split="train").judgments) == {"q4", "q5"}


def test_an_empty_document_is_kept(folder: Path) -> None:
    corpus = open_folder(folder).corpus
    assert corpus[19] == TextRow("untold", "", "")
    assert join_fields(corpus[19], ("title", "text")) == ""


LAYOUTS = {
    "gzipped": Layout(gzipped=True),
    "windows line ends": Layout(newline="\r\n"),
    "byte order mark": Layout(byte_order_mark="\ufeff"),
    "no header": Layout(header=False),
    "four columns": Layout(columns=4),
    "four columns, no header": Layout(columns=4, header=False),
    "blank lines": Layout(blank_lines=True),
    "id without underscore": Layout(id_field="id"),
    "all of it": Layout(True, "\r\n", "\ufeff", False, 4, True, "id"),
}


def test_the_fingerprint_of_texts_is_that_of_their_json(tmp_path: Path) -> None:
    rows = [TextRow('a"b', "title \\ \u2028", "text\n\t\x00 é 漢 😀"), TextRow("2", "", "")]
    lines = [json.dumps(row[:3], ensure_ascii=False) for row in rows]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert collection_cache.write_texts(rows, tmp_path / "texts.arrow", "document").fingerprint == expected


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_same_collection_has_the_same_fingerprint(tmp_path: Path, folder: Path, layout: Layout) -> None:
    first, second = open_folder(folder), open_folder(small_collection.write_folder(tmp_path / "other", layout))
    assert second.fingerprint == first.fingerprint
    assert second.judgments == first.judgments
    assert list(second.corpus) == list(first.corpus)


# (file, line, new content)
CHANGES = {
    "a letter": ("corpus.jsonl", 2, '{"_id": "tea", "title": "Tea", "text": "Leave the leaves in hot water."}'),
    "a title": ("corpus.jsonl", 2, f'{{"_id": "tea", "title": "tea", "text": "{small_collection.DOCUMENTS[1][2]}"}}'),
    "a title moved to the text": (
        "corpus.jsonl", 2, f'{{"_id": "tea", "title": "", "text": "Tea {small_collection.DOCUMENTS[1][2]}"}}'
    ),
    "a query": ("queries.jsonl", 1, '{"_id": "q1", "text": "how to brew"}'),
    "a grade": ("qrels/test.tsv", 2, "q1\ttea\t1"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "number", "line"), CHANGES.values(), ids=CHANGES)
def test_any_change_changes_the_fingerprint(folder: Path, file: str, number: int, line: str) -> None:
    before = open_folder(folder)
    replace_line(folder / file, number, line)
    after = open_folder(folder)
    assert after.fingerprint != before.fingerprint
    assert (after.corpus.fingerprint != before.corpus.fingerprint) == file.startswith("corpus")


def test_splits_have_fingerprints_of_their_own_and_share_the_corpus(folder: Path) -> None:
    test, train = open_folder(folder), open_folder(folder, split="train")
    assert test.fingerprint != train.fingerprint
    assert test.corpus.fingerprint == train.corpus.fingerprint


def test_whole_numbers_are_read_as_their_decimal_text(folder: Path) -> None:
    replace_line(folder / "corpus.jsonl", 2, '{"_id": 7, "text": "Leave the leaves in hot water."}')
    replace_line(folder / "qrels/test.tsv", 2, "q1\t7\t2")
    collection = open_folder(folder)
    assert collection.corpus[1].id == "7"
    assert collection.judgments["q1"]["7"] == 2


def test_a_null_title_is_empty_and_other_fields_are_ignored(folder: Path) -> None:
    replace_line(folder / "corpus.jsonl", 2, '{"_id": "tea", "title": null, "text": "x", "metadata": {"url": 3}}')
    assert open_folder(folder).corpus[1] == TextRow("tea", "", "x")


def test_a_grade_may_have_white_space_around_it(folder: Path) -> None:
    replace_line(folder / "qrels/test.tsv", 2, "q1\ttea\t\x1c2")
    assert open_folder(folder).judgments["q1"]["tea"] == 2


def test_grades_may_be_negative(folder: Path) -> None:
    replace_line(folder / "qrels/test.tsv", 2, "q1\ttea\t-1")
    assert open_folder(folder).judgments["q1"]["tea"] == -1


@pytest.mark.parametrize(("grade", "read"), [("1.0", 1), ("2.", 2), ("0.00", 0), ("-1.0", -1)])
def test_whole_grades_may_be_written_as_pandas_does(folder: Path, grade: str, read: int) -> None:
    replace_line(folder / "qrels/test.tsv", 2, f"q1\ttea\t{grade}")
    assert open_folder(folder).judgments["q1"]["tea"] == read


@pytest.mark.parametrize(
    ("row", "step"),
    [
        ('{"_id": "x", "title": "A long title of this row", "body": "x"}', "rename the field 'body' to 'text'"),
        ('{"_id": "x", "url": "https://example.org/a", "contents": "x"}', "rename the field 'contents' to 'text'"),
        ('{"_id": "x", "lang": "en", "wikitext": "The longest."}', "rename the field 'wikitext' to 'text'"),
        ('{"_id": "x", "title": "only"}', "add the field 'text'"),
    ],
)
def test_a_row_without_text_names_its_fields_and_offers_the_likely_one(folder: Path, row: str, step: str) -> None:
    replace_line(folder / "corpus.jsonl", 3, row)
    with pytest.raises(DataError) as caught:
        open_folder(folder)
    assert caught.value.cause == f"{folder / 'corpus.jsonl'}:3: there is no field 'text'; the row has " + ", ".join(
        json.loads(row)
    )
    assert caught.value.next_step.startswith(step)


def test_an_id_under_another_name_is_offered(folder: Path) -> None:
    replace_line(folder / "corpus.jsonl", 3, '{"docid": "x", "text": "y"}')
    with pytest.raises(DataError, match=":3: _id is None; the row has docid, text") as caught:
        open_folder(folder)
    assert caught.value.next_step == "rename the field 'docid' to '_id'"


def test_the_form_of_a_row_is_shown_as_it_is_typed(folder: Path) -> None:
    replace_line(folder / "corpus.jsonl", 3, "[]")
    with pytest.raises(DataError) as caught:
        open_folder(folder)
    assert caught.value.next_step == 'write {"_id": ..., "text": ...}'


# (file, line, new content, part of the message); every message also names the file and the line
WRONG_LINES: dict[str, tuple[str, int, str | bytes, str]] = {
    "not JSON": ("corpus.jsonl", 3, '{"_id": "tea", "text": "Leave', "not valid JSON"),
    "two objects": ("corpus.jsonl", 3, '{"_id": "a"} {"_id": "b"}', "not valid JSON"),
    "a number of 5000 digits": ("corpus.jsonl", 3, '{"_id": ' + "7" * 5000 + "}", "not valid JSON"),
    "a list": ("corpus.jsonl", 3, '["coffee", "x"]', "expected an object"),
    "a text": ("queries.jsonl", 3, '"q3"', "expected an object"),
    "id with a point": ("corpus.jsonl", 3, '{"_id": 1.5, "text": "x"}', "_id is 1.5"),
    "id true": ("corpus.jsonl", 3, '{"_id": true, "text": "x"}', "_id is True"),
    "id null": ("corpus.jsonl", 3, '{"_id": null, "text": "x"}', "_id is None"),
    "id a list": ("corpus.jsonl", 3, '{"_id": ["x"], "text": "x"}', "_id is ['x']"),
    "id empty": ("corpus.jsonl", 3, '{"_id": "", "text": "x"}', "_id is ''"),
    "no id": ("queries.jsonl", 3, '{"text": "x"}', "_id is None"),
    "title a number": ("corpus.jsonl", 3, '{"_id": "x", "title": 3}', "title is int, not text"),
    "text a list": ("corpus.jsonl", 3, '{"_id": "x", "text": ["a"]}', "text is list, not text"),
    "incomplete surrogate pair": (
        "corpus.jsonl",
        3,
        r'{"_id": "x", "text": "\ud83d"}',
        "incomplete surrogate pair in document 'x'",
    ),
    "incomplete surrogate pair in an id": (
        "corpus.jsonl",
        3,
        r'{"_id": "x\ude00", "text": ""}',
        r"incomplete surrogate pair in document 'x\ude00'",
    ),
    "empty query": ("queries.jsonl", 3, '{"_id": "q3", "text": " \\t\\n"}', "query 'q3' is empty"),
    "query without text": ("queries.jsonl", 3, '{"_id": "q3", "title": "Title"}', "there is no field 'text'"),
    "two columns": ("qrels/test.tsv", 3, "q1\tcoffee", "2 columns"),
    "five columns": ("qrels/test.tsv", 3, "q1\t0\tcoffee\t1\tx", "5 columns"),
    "grade of a half": ("qrels/test.tsv", 3, "q1\tcoffee\t1.5", "grade is '1.5'"),
    "grade of a half, no header": ("qrels/test.tsv", 1, "q1\tbread\t0.5", "grade is '0.5'"),
    "latin-1": ("corpus.jsonl", 3, '{"_id": "ß", "text": ""}'.encode("latin-1"), "not UTF-8"),
    "grade too large": ("qrels/test.tsv", 3, "q1\tcoffee\t1588000000000", "grade is '1588000000000'"),
    "grade a word": ("qrels/test.tsv", 3, "q1\tcoffee\tgood", "grade is 'good'"),
    "no such document": ("qrels/test.tsv", 3, "q1\tcofee\t1", "there is no document 'cofee'"),
    "no such query": ("qrels/test.tsv", 3, "q0\tcoffee\t1", "there is no query 'q0'"),
    "ids in another case": ("qrels/test.tsv", 3, "Q1\tcoffee\t1", "there is no query 'Q1'"),
}


@pytest.mark.parametrize(("file", "number", "line", "problem"), WRONG_LINES.values(), ids=WRONG_LINES)
def test_a_wrong_line_is_named(folder: Path, file: str, number: int, line: str | bytes, problem: str) -> None:
    replace_line(folder / file, number, line)
    with pytest.raises(DataError) as caught:
        open_folder(folder)
    assert caught.value.cause.startswith(f"{folder / file}:{number}: ")
    assert problem in caught.value.cause
    assert caught.value.next_step
    caught.value.cause.encode()  # it can be printed: no lone surrogates


def test_a_wrong_line_of_a_gzipped_file_is_named(tmp_path: Path) -> None:
    folder = small_collection.write_folder(tmp_path / "small", Layout(gzipped=True))
    file = folder / "corpus.jsonl.gz"
    lines = gzip.decompress(file.read_bytes()).splitlines(keepends=True)
    file.write_bytes(gzip.compress(b"".join([*lines[:4], b"oops\n", *lines[5:]])))
    with pytest.raises(DataError) as caught:
        open_folder(folder)
    assert caught.value.cause.startswith(f"{file}:5: not valid JSON")


def repeat_line(file: str, line: int) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        lines = (folder / file).read_text().splitlines()
        (folder / file).write_text("\n".join([*lines, lines[line - 1]]) + "\n")

    return spoil


def write_content(file: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(content) and None


def compress_file(file: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = gzip.compress((folder / file).read_bytes())
        (folder / file).unlink()
        (folder / f"{file}.gz").write_bytes(change(content))

    return spoil


def remove_file(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


# (how to damage the folder, error class, part of its cause)
DAMAGED_FOLDERS: dict[str, tuple[Callable[[Path], None], type[RetbenchError], str]] = {
    "a document twice": (repeat_line("corpus.jsonl", 3), DataError, "document id 'coffee' is repeated (1 such ids)"),
    "a query twice": (repeat_line("queries.jsonl", 2), DataError, "query id 'q2' is repeated"),
    "a judgment twice": (repeat_line("qrels/test.tsv", 2), DataError, "query 'q1' has two judgments of document 'tea'"),
    "no documents": (write_content("corpus.jsonl", b""), DataError, "the corpus is empty"),
    "only blank lines": (write_content("corpus.jsonl", b"\n \r\n\n"), DataError, "the corpus is empty"),
    "no queries": (write_content("queries.jsonl", b""), DataError, "the list of queries is empty"),
    "no judgments": (
        write_content("qrels/test.tsv", b"query-id\tcorpus-id\tscore\n"), DataError, "'test' has no judgments",
    ),
    "gzip cut in the middle": (compress_file("corpus.jsonl", lambda b: b[: len(b) // 2]), DataError, ".gz is damaged"),
    "gzip without its last bytes": (compress_file("corpus.jsonl", lambda b: b[:-4]), DataError, ".gz is damaged"),
    "gzip with a wrong bit": (
        compress_file("corpus.jsonl", lambda b: b[:-8] + bytes([b[-8] ^ 1]) + b[-7:]), DataError, ".gz is damaged"
    ),
    "gzip with a wrong block": (
        compress_file("corpus.jsonl", lambda b: b[:10] + b"\xff" + b[11:]), DataError, ".gz is damaged"
    ),
    "gzip that is none": (compress_file("qrels/test.tsv", lambda _: b"q1\ttea\t1\n"), DataError, ".gz is damaged"),
    "corpus missing": (remove_file("corpus.jsonl"), MissingError, "has no corpus.jsonl"),
    "queries missing": (remove_file("queries.jsonl"), MissingError, "has no queries.jsonl"),
    "judgments missing": (
        lambda folder: [f.unlink() for f in (folder / "qrels").iterdir()] and None, MissingError, "has no qrels/*.tsv"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "error", "problem"), DAMAGED_FOLDERS.values(), ids=DAMAGED_FOLDERS)
def test_a_damaged_folder_is_an_error(
    folder: Path, spoil: Callable[[Path], None], error: type[RetbenchError], problem: str
) -> None:
    spoil(folder)
    with pytest.raises(error) as caught:
        open_folder(folder)
    assert problem in caught.value.cause
    assert caught.value.next_step


def test_an_unknown_split_suggests_the_closest(folder: Path) -> None:
    with pytest.raises(UsageError, match="no split 'tets'; it has test, train") as caught:
        open_folder(folder, split="tets")
    assert caught.value.next_step == "give --set split=test"


def test_a_folder_with_another_split_only_offers_it(folder: Path) -> None:
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "gold.tsv")
    with pytest.raises(UsageError, match="no split 'test'; it has gold, train") as caught:
        open_folder(folder)
    assert caught.value.next_step == "give --set split=gold"


def test_a_fingerprint_that_differs_from_the_card_names_both(folder: Path) -> None:
    right = open_folder(folder).fingerprint
    assert open_folder(folder, fingerprint=right).fingerprint == right
    with pytest.raises(DataError) as caught:
        open_folder(folder, fingerprint="0" * 64)
    assert right in caught.value.cause
    assert "0" * 64 in caught.value.cause


def test_an_unavailable_source_is_missing() -> None:
    with pytest.raises(MissingError, match=r"the collection of far \(org/far\) is not in the cache"):
        open_collection(TaskCard("far", SourceSpec("hub", repo="org/far")))


# A collection is compiled once, completely or not at all


def list_finished_collections(cache: Path) -> list[Path]:
    return sorted((cache / "collections").glob(f"**/{MANIFEST}"))


def test_opening_again_reads_no_source(folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_folder(folder)
    monkeypatch.setattr(beir_folder, "read_collection", None)
    assert open_folder(folder).fingerprint == first.fingerprint
    assert open_folder(folder, split="train").fingerprint
    assert len(list_finished_collections(own_cache)) == 1


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), DataError("x", "y")], ids=["interrupted", "bad source"])
def test_an_interrupted_compilation_is_not_opened(
    folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    def failing(folder: Path) -> RawCollection:
        def documents() -> Iterator[TextRow]:
            yield TextRow("a", "", "one came through")
            raise fault

        return RawCollection(documents(), [], {})

    with monkeypatch.context() as patch:
        patch.setattr(beir_folder, "read_collection", failing)
        with pytest.raises(type(fault)):
            open_folder(folder)
    assert [path for path in own_cache.rglob("*") if path.is_file()] == []
    assert len(open_folder(folder).corpus) == len(small_collection.DOCUMENTS)
    assert len(list_finished_collections(own_cache)) == 1


def test_a_full_disk_is_an_error_and_leaves_no_files(
    folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(collection_cache, "_write_judgments", full)
        with pytest.raises(ResourceError, match="No space left on device"):
            open_folder(folder)
    assert [path for path in own_cache.rglob("*") if path.is_file()] == []
    assert open_folder(folder).judgments


def test_files_of_a_killed_process_are_never_opened(folder: Path, own_cache: Path) -> None:
    right = open_folder(folder).fingerprint
    (done,) = list_finished_collections(own_cache)
    done.parent.rename(
        done.parent.with_name(f"{done.parent.name}.1234abcd.partial")
    )  # as if the process was killed before the final rename
    assert open_folder(folder).fingerprint == right
    done.unlink()  # as if a removal was interrupted
    (done.parent / "corpus.arrow").write_bytes(b"")
    assert open_folder(folder).fingerprint == right


def test_two_processes_may_compile_the_same_collection(tmp_path: Path, folder: Path) -> None:
    compile_collection(beir_folder.read_collection(folder), tmp_path / "c")
    first = load_collection(tmp_path / "c", "test")
    compile_collection(beir_folder.read_collection(folder), tmp_path / "c")
    assert load_collection(tmp_path / "c", "test").fingerprint == first.fingerprint
    assert [row.id for row in first.queries] == ["q1", "q2", "q3"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("c")] == ["c"]


# Views and samples


def open_numbered_collection(folder: Path, queries: int, judged: int) -> Collection:
    """Open a collection of 600 documents in which no two queries judge the same document."""
    documents = [TextRow(f"d{number}", "", f"document {number}") for number in range(600)]
    query_rows = [TextRow(f"q{number}", "", f"query {number}") for number in range(queries)]
    judgments = [Judgment(f"q{q}", f"d{q * judged + n}", n % 2) for q in range(queries) for n in range(judged)]
    compile_collection(RawCollection(documents, query_rows, {"test": judgments}), folder)
    return load_collection(folder, "test")


@pytest.fixture(scope="module")
def numbered_collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return open_numbered_collection(tmp_path_factory.mktemp("large") / "collection", queries=11, judged=3)


@pytest.mark.parametrize("size", range(1, 11))
def test_a_sample_keeps_the_judged_documents_of_its_queries(numbered_collection: Collection, size: int) -> None:
    sample = numbered_collection.sample(size)
    documents = {row.id for row in sample.corpus}
    judged = {document for grades in sample.judgments.values() for document in grades}
    assert len(sample.queries) == len(sample.judgments) == size
    assert list(sample.judgments) == [row.id for row in sample.queries]
    assert all(sample.judgments[query] == numbered_collection.judgments[query] for query in sample.judgments)
    assert judged <= documents
    assert len(documents) == len(sample.corpus) == size * DOCUMENTS_PER_QUERY
    assert sample.fingerprint != numbered_collection.fingerprint


def test_a_sample_with_more_judged_documents_than_its_size_has_no_distractors(tmp_path: Path) -> None:
    sample = open_numbered_collection(tmp_path / "judged", queries=5, judged=30).sample(2)
    judged = {document for grades in sample.judgments.values() for document in grades}
    assert len(judged) == 60
    assert {row.id for row in sample.corpus} == judged


def test_a_sample_is_deterministic(numbered_collection: Collection) -> None:
    first_sample, second_sample = numbered_collection.sample(4), numbered_collection.sample(4)
    assert first_sample.fingerprint == second_sample.fingerprint
    assert list(first_sample.corpus) == list(second_sample.corpus)
    assert [row.id for row in first_sample.queries] == [
        "q2",
        "q3",
        "q4",
        "q10",
    ]  # fixed: a change of the sampling would change committed settings-ids
    assert [row.id for row in first_sample.corpus][:5] == ["d2", "d6", "d7", "d8", "d9"]
    assert len({numbered_collection.sample(size).fingerprint for size in range(1, 11)}) == 10


def test_a_sample_keeps_the_order_of_the_corpus(numbered_collection: Collection) -> None:
    numbers = [int(row.id[1:]) for row in numbered_collection.sample(3).corpus]
    assert numbers == sorted(numbers)


def test_a_sample_as_large_as_the_corpus_is_the_corpus(numbered_collection: Collection) -> None:
    assert numbered_collection.sample(11) is numbered_collection
    assert numbered_collection.sample(1000) is numbered_collection


def test_a_card_is_opened_with_a_sample(folder: Path) -> None:
    sample = open_collection(small_collection.build_card(folder), sample=2)
    assert len(sample.queries) == 2
    assert len(sample.corpus) == len(small_collection.DOCUMENTS)  # the limit is 40


def test_a_view_of_texts_has_the_selected_rows(numbered_collection: Collection) -> None:
    texts = numbered_collection.corpus
    view = texts.take([5, 3, 9])
    assert [row.id for row in view] == ["d5", "d3", "d9"]
    assert (len(view), view[1].id, view.read_ids().to_pylist()) == (3, "d3", ["d5", "d3", "d9"])
    assert [row.id for row in view.take([2, 0])] == ["d9", "d5"]
    assert list(texts.take([])) == []


def test_the_fingerprint_of_a_view_follows_its_rows(numbered_collection: Collection) -> None:
    texts = numbered_collection.corpus
    assert texts.take(range(len(texts))).fingerprint == texts.fingerprint
    prints = [texts.take(rows).fingerprint for rows in ([5, 3], [3, 5], [3], [])]
    assert len({texts.fingerprint, *prints}) == 5
    assert texts.take([5, 3]).fingerprint == prints[0]


def test_texts_of_many_chunks_are_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collection_cache, "ROWS_PER_BATCH", 7)
    documents = [TextRow(f"d{number}", "t", "x" * (number % 5)) for number in range(50)]
    compile_collection(
        RawCollection(documents, [TextRow("q", "", "x")], {"test": [Judgment("q", "d49", 1)]}), tmp_path / "chunks"
    )
    corpus: Texts = load_collection(tmp_path / "chunks", "test").corpus
    assert [row[:3] for row in corpus] == [row[:3] for row in documents]
    assert corpus[48][:3] == documents[48][:3]
    monkeypatch.undo()
    compile_collection(
        RawCollection(documents, [TextRow("q", "", "x")], {"test": [Judgment("q", "d49", 1)]}), tmp_path / "one"
    )
    assert load_collection(tmp_path / "one", "test").corpus.fingerprint == corpus.fingerprint


# (title, text, fields, joined text)
JOINED_FIELDS = [
    ("Tea", "Leaves.", ("title", "text"), "Tea Leaves."),
    ("Tea", "Leaves.", ("text",), "Leaves."),
    ("", "Leaves.", ("title", "text"), "Leaves."),
    (" ", "Leaves.", ("title", "text"), "Leaves."),
    ("Tea", "", ("title", "text"), "Tea"),
    (" Tea\n", " two  words ", ("title", "text"), "Tea two  words"),
]


@pytest.mark.parametrize(("title", "text", "fields", "joined_text"), JOINED_FIELDS)
def test_fields_are_joined_by_one_space(title: str, text: str, fields: tuple[str, ...], joined_text: str) -> None:
    assert join_fields(TextRow("d", title, text), fields) == joined_text


# Ids that are unsafe as paths or as words of a run file

ODD_IDS = (
    "../../escaped",
    "/etc/passwd",
    "a\\b",
    "two words",
    "line\nbreak",
    "nul\0",
    "bell\a",
    "nb\u00a0sp",
    ".",
    "é",
)


def test_unusual_ids_are_never_paths_and_survive_a_run(folder: Path, own_cache: Path) -> None:
    with (folder / "corpus.jsonl").open("a") as corpus:
        corpus.writelines(json.dumps({"_id": odd, "text": "zebra stripes"}) + "\n" for odd in ODD_IDS)
    with (folder / "queries.jsonl").open("a") as queries:
        queries.write('{"_id": "../q 7", "text": "a zebra"}\n')
    with (folder / "qrels/test.tsv").open("a") as judgments:
        judgments.write("../q 7\t../../escaped\t1\n../q 7\ttwo words\t1\n")
    collection = open_folder(folder)
    assert {path.name for path in own_cache.rglob("*") if path.is_file()} == {
        MANIFEST, "corpus.arrow", "queries.arrow", "judgments-0.arrow", "judgments-1.arrow"
    }  # fmt: skip
    index = BM25Index(LexicalSettings(), (join_fields(row, ("title", "text")) for row in collection.corpus))
    rankings = index.search((row.text for row in collection.queries), 100).to_document_ids(collection)
    lines = [line.split() for line in gzip.decompress(format_trec_run(rankings, "bm25:bm25")).decode().splitlines()]
    assert all(len(line) == 6 for line in lines)
    actual = [unquote(line[2]) for line in lines if unquote(line[0]) == "../q 7"]
    assert actual == list(ODD_IDS)


IDS = st.text(min_size=1) | st.lists(st.sampled_from(["%", "2", "0", "41", " ", "a", "\n"]), min_size=1).map("".join)


@given(st.lists(IDS, unique=True), st.text(min_size=1))
def test_any_id_is_one_word_in_a_run_file(documents: list[str], tag: str) -> None:
    content = gzip.decompress(format_trec_run({"a query": documents}, tag)).decode()
    lines = [line.split(" ") for line in content.split("\n")[:-1]]
    assert [line[:2] + line[3:5] for line in lines] == [
        ["a%20query", "Q0", str(rank), str(len(documents) - rank + 1)] for rank in range(1, len(documents) + 1)
    ]
    assert [decode_id(line[2]) for line in lines] == documents
    assert all(len(line) == 6 and not any(map(str.isspace, "".join(line))) for line in lines)


def test_a_run_file_reads_back_the_ids_of_its_collection(folder: Path, tmp_path: Path) -> None:
    collection = open_folder(folder)
    expected = {"q1": [row.id for row in collection.corpus][:2]}
    (tmp_path / "run.trec.gz").write_bytes(format_trec_run(expected, "x"))
    assert read_rankings(tmp_path, collection) == expected
    for wrong in ({"q1": ["stranger"]}, {"stranger": expected["q1"]}):
        (tmp_path / "run.trec.gz").write_bytes(format_trec_run(wrong, "x"))
        with pytest.raises(DataError, match="ranks 'stranger', which the collection does not have"):
            read_rankings(tmp_path, collection)
