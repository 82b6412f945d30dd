"""`retbench overlap`: counts by hand, a text that is copied, and what is too short to count."""

import json
from pathlib import Path

import pytest

from retbench.errors import UsageError
from retbench.pipelines.checks.measure_overlap import OverlapRequest, SequenceIndex, list_sequences, measure_overlap
from tests import small_collection
from tests.test_run import run_command
from tests.test_train_loop import write_jsonl


def test_sequences_of_words() -> None:
    assert list(list_sequences("Water, boils: in a KETTLE!", 4)) == ["water boils in a", "boils in a kettle"]
    assert list(list_sequences("too short", 4)) == []


def test_overlap_computed_by_hand() -> None:
    index = SequenceIndex(["one two three four five", "six seven eight", "ONE two, three"], 3)
    for text in ("zero one two three", "one two three", "four five six"):
        index.mark(text)
    assert index.seen.tolist() == [1, 0, 1]  # a sequence counts once, however often it is seen
    assert index.identical.tolist() == [False, False, True]
    overlap = index.summarise()
    assert (overlap.texts, overlap.identical, overlap.any_sequence, overlap.most_sequences) == (3, 1, 2, 1)
    assert overlap.examples == ("100%: ONE two, three", "33%: one two three four five")


def test_a_copied_document_and_a_copied_query_are_found(tmp_path: Path) -> None:
    task = small_collection.write_folder(tmp_path / "pantry")
    text = next(text for key, _, text in small_collection.DOCUMENTS if key == "bread")
    query = small_collection.QUERIES[1][1]
    rows = [{"query": query.upper(), "positives": [f"Before it. {text} After it."], "negatives": ["nothing of it"]}]
    report = measure_overlap(OverlapRequest(str(write_jsonl(tmp_path / "train.jsonl", *rows)), str(task), words=5))
    assert (report.queries.identical, report.queries.any_sequence) == (1, 1)
    assert (report.documents.identical, report.documents.any_sequence, report.documents.most_sequences) == (0, 1, 1)
    assert report.training_texts == 3
    assert report.documents.texts == len(small_collection.DOCUMENTS)


def test_a_large_corpus_is_sampled_with_a_seed(tmp_path: Path) -> None:
    task = small_collection.write_folder(tmp_path / "pantry")
    data = str(write_jsonl(tmp_path / "train.jsonl", {"query": "q", "positives": ["p"], "negatives": ["n"]}))
    reports = [measure_overlap(OverlapRequest(data, str(task), documents=7)) for _ in range(2)]
    assert reports[0] == reports[1]
    assert reports[0].documents.texts == 7


def test_the_command_prints_both_roles(tmp_path: Path) -> None:
    task = small_collection.write_folder(tmp_path / "pantry")
    answer = run_command("overlap", task, task, "--words", 3)
    assert answer.exit_code == 0, answer.output
    assert "queries: 3; identical 0" in answer.stdout
    as_json = json.loads(run_command("overlap", task, task, "--words", 3, "--json").stdout)
    assert as_json["documents"]["identical"] == 2  # the positives of the split train
    with pytest.raises(UsageError, match="at least 1"):
        measure_overlap(OverlapRequest(str(task), str(task), words=0))


def test_a_missing_split_is_answered_with_the_option_of_the_command(tmp_path: Path) -> None:
    """The next step was `--set split`, which only `finetune` has."""
    task = small_collection.write_folder(tmp_path / "pantry")
    (task / "qrels" / "train.tsv").unlink()
    answer = run_command("overlap", task, task)
    assert answer.exit_code == 2
    assert answer.output.endswith("it has test\nnext:  name one of them: --split NAME\n")
