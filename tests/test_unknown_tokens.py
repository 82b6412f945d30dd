"""Tokens for text that a tokenizer does not know: counted in the record, and pointed out from five percent."""

import json
from pathlib import Path
from typing import Any

import pytest

from retbench.cards import catalog
from retbench.cli.cells import describe_unknown_tokens
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.engines.tokenizers import load_tokenizer
from retbench.records.cell import Cell
from tests.test_run import run_command

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def build_bert(folder: Path, words: list[str]) -> Path:
    """A tiny BERT whose vocabulary is these words and no letters."""
    from transformers import BertConfig, BertModel, BertTokenizer

    vocabulary = [*SPECIAL, *words]
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=128,
    )  # fmt: skip
    folder.mkdir()
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer: Any = BertTokenizer(str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    return folder


def read_rows(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def list_words(task: Path) -> list[str]:
    """All words of a folder, as BERT's tokenizer splits them."""
    from transformers import BertTokenizer

    basic: Any = BertTokenizer(vocab={name: row for row, name in enumerate(SPECIAL)}).backend_tokenizer
    rows = [
        json.loads(line) for name in ("corpus", "queries") for line in (task / f"{name}.jsonl").read_text().splitlines()
    ]
    words: set[str] = set()
    for row in rows:
        text = basic.normalizer.normalize_str(f"{row.get('title', '')} {row['text']}")
        words.update(word for word, _ in basic.pre_tokenizer.pre_tokenize_str(text))
    return sorted(words)


def run(folder: Path, task: Path, out: Path) -> tuple[dict[str, Any], dict[str, Any], str]:
    line = ("run", "--model", folder, "--task", task, "--method", "mean", "--out", out)
    answer = run_command(*line)
    assert answer.exit_code == 0, answer.output
    (cell,) = json.loads(run_command(*line, "--json").stdout)
    return cell, json.loads((Path(cell["record"]) / "record.json").read_text()), answer.output


def test_unknown_tokens_are_counted_and_pointed_out(task: Path, tmp_path: Path) -> None:
    words = list_words(task)
    cell, record, printed = run(build_bert(tmp_path / "whole", words), task, tmp_path / "whole-results")
    assert (cell["unknown_tokens"], record["texts"]["document"]["unknown"]) == (0.0, 0)
    assert "does not know" not in printed
    folder = build_bert(tmp_path / "half", words[::2])
    cell, record, printed = run(folder, task, tmp_path / "half-results")
    sides = record["texts"]["query"], record["texts"]["document"]
    judged = {line.split("\t")[0] for line in (task / "qrels" / "test.tsv").read_text().splitlines()[1:]}
    queries = [
        row["text"]
        for row in map(json.loads, (task / "queries.jsonl").read_text().splitlines())
        if row["_id"] in judged
    ]
    ids = load_tokenizer(folder)(queries)["input_ids"]
    assert sides[0]["unknown"] == sum(row.count(SPECIAL.index("[UNK]")) for row in ids) > 0
    assert cell["unknown_tokens"] == max(side["unknown"] / side["tokens"] for side in sides) > 0.05
    assert " ".join(printed.split()).count("of the tokens stand for text that the tokenizer does not know") == 1


def test_a_tokenizer_that_knows_every_byte_has_no_share(model: Path, task: Path, tmp_path: Path) -> None:
    cell, record, _ = run(model, task, tmp_path / "results")
    assert "unknown_tokens" not in cell
    assert "unknown" not in record["texts"]["document"]


def test_an_unknown_token_with_another_meaning_is_not_counted(model: Path) -> None:
    tokenizer: Any = load_tokenizer(model)
    tokenizer.unk_token = tokenizer.eos_token  # as GPT-2's
    method = catalog.find_method("mean")
    assert PromptTokenizer(tokenizer, method).tokenize(["a text"], "query", 16).unknown is None


@pytest.mark.parametrize(("share", "is_noted"), [(None, False), (0.0499, False), (0.05, True), (1.0, True)])
def test_the_note_begins_at_five_percent(share: float | None, is_noted: bool) -> None:
    cell = Cell("m", "mean", "t", "s", "test", "done", unknown_tokens=share)
    assert (describe_unknown_tokens(cell) is not None) == is_noted
