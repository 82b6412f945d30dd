"""Listwise training (e2rank): the prompt, RankNet by hand, the gradient in passes, a whole run."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retbench.cards import catalog
from retbench.cards.recipe import BatchSettings, ListwiseTraining
from retbench.encoders.listwise_prompt import ListwisePromptTokenizer
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.engines.tokenizers import load_tokenizer
from retbench.errors import DataError
from retbench.training import hub_datasets
from retbench.training.contrastive_batches import ContrastiveBatch
from retbench.training.gradient_caching import backward_batch
from retbench.training.listwise_batches import ListwiseBatchSource, limit_queries_per_source
from retbench.training.losses import ranknet_loss
from retbench.training.training_set import TrainingQuery, TrainingSet, read_training_file
from tests import small_collection, tiny_models
from tests.test_run import run_cells, run_command
from tests.test_train_loop import RECIPE, build_encoder, collect_gradients

LISTWISE_SETTINGS = ListwiseTraining(max_documents=4, weight=0.5, temperature=0.2, max_tokens=600)
LISTWISE_RECIPE = replace(RECIPE, objective="e2rank", listwise=LISTWISE_SETTINGS, lora=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=1024)


def build_ranked_training_set() -> TrainingSet:
    """Build six queries with five documents each; the teacher prefers the third."""
    queries = [
        TrainingQuery(tiny_models.SENTENCES[n], (n + 6,), tuple(range(n + 7, n + 11)), (0.2, 0.1, 0.9, 0.3, 0.0))
        for n in range(6)
    ]
    return TrainingSet("sentences", queries, tiny_models.SENTENCES, "f")


def build_batch_source(folder: Path, lists: ListwiseTraining = LISTWISE_SETTINGS) -> ListwiseBatchSource:
    sheet = ListwisePromptTokenizer(PromptTokenizer(load_tokenizer(folder), RECIPE.method), chat=True)
    return ListwiseBatchSource(build_ranked_training_set(), lists, sheet, seed=1)


def test_the_first_text_of_the_teacher_is_the_positive_and_the_list_is_sampled(folder: Path) -> None:
    source = build_batch_source(folder)
    group = source.build_batch(np.arange(6), 0)
    assert group.passages[:6] == [tiny_models.SENTENCES[n + 8] for n in range(6)]
    assert (len(group.passages), len(group.list_prompts)) == (24, 6)
    assert group.owner.tolist() == [*range(6), *np.repeat(np.arange(6), 3)]
    assert group.teacher_scores is not None
    for query in range(6):
        values = group.teacher_scores[group.owner == query]
        assert values[0] == 0.9
        assert np.all(np.diff(values) <= 0)
    firsts = [prompt.index(f"] {group.passages[n]}") for n, prompt in enumerate(group.list_prompts)]
    assert (
        len({prompt[at - 1] for prompt, at in zip(group.list_prompts, firsts, strict=True)}) > 1
    )  # the positive is not always the first document
    same_batch = source.build_batch(np.arange(6), 0)
    assert same_batch.list_prompts == group.list_prompts
    assert source.build_batch(np.arange(6), 1).list_prompts != group.list_prompts


def test_the_prompt_in_training_byte_for_byte(folder: Path) -> None:
    source = build_batch_source(folder, replace(LISTWISE_SETTINGS, max_documents=2))
    group = source.build_batch(np.array([0]), 0)
    first_text, second_text = sorted(group.passages, key=group.list_prompts[0].index)
    tokens = source.listwise_prompt.tokenize(group.list_prompts[0])
    assert source.listwise_prompt.prompt_tokenizer.tokenizer.decode(tokens[0]) == (
        "<|im_start|>system\nYou are a tiny helpful model.<|im_end|>\n<|im_start|>user\n"
        "Given a query and some relevant documents, rerank the documents that are the most relevant to the query:\n"
        f"Documents:\n[1] {first_text}\n[2] {second_text}\n"
        f"Query: {group.queries[0]}<|endoftext|><|im_end|>\n<|im_start|>assistant\n"
    )


def test_documents_of_a_long_list_share_its_length(folder: Path) -> None:
    source = build_batch_source(folder, replace(LISTWISE_SETTINGS, max_tokens=256 + 4 * 5))
    shown_documents = source.build_batch(np.array([0]), 0).list_prompts[0].partition("Documents:\n")[2].split("\n")[:4]
    assert all(1 <= source.listwise_prompt.count_tokens(line.partition("] ")[2]) <= 6 for line in shown_documents)


def test_ranknet_computed_by_hand() -> None:
    lists, passages = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    group = ContrastiveBatch(
        [], [], np.array([0, 1, 0]), np.zeros((2, 3), dtype=bool), np.array([1.0, 5.0, 2.0]), ("a", "b")
    )
    r = math.sqrt(0.5)  # list 0 has cosine 1 with passage 0 and r with passage 2; the teacher prefers passage 2
    assert ranknet_loss(lists, passages, group, 0.5).item() == pytest.approx(
        math.log1p(math.exp((1 - r) / 0.5)), abs=1e-6
    )
    level = replace(group, teacher_scores=np.ones(3))
    assert ranknet_loss(lists, passages, level, 0.5).item() == 0


def test_the_gradient_does_not_depend_on_the_passes(folder: Path) -> None:
    group = build_batch_source(folder).build_batch(np.arange(4), 0)
    actual = []
    for tokens, caching in ((100_000, False), (300, False), (300, True)):
        encoder = build_encoder(folder, replace(LISTWISE_RECIPE, batch=BatchSettings(4, 8, tokens, caching)))
        actual.append((backward_batch(encoder, group, 1.0, (0,))[0], collect_gradients(encoder)))
    for value, other in actual[1:]:
        assert value == pytest.approx(actual[0][0], abs=1e-5)
        for name, gradient in actual[0][1].items():
            torch.testing.assert_close(other[name], gradient, atol=1e-4, rtol=1e-3)
    plain = build_encoder(folder, replace(LISTWISE_RECIPE, objective="contrastive", listwise=None))
    assert backward_batch(plain, replace(group, list_prompts=()), 1.0, (0,))[0] < actual[0][0]


def write_jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_of_permutations_is_read(tmp_path: Path) -> None:
    row = {"query": "a", "document": ["x", "y", "z"], "ranking": [3, 1, 2], "source": "msmarco"}
    (query,) = (training_set := read_training_file(write_jsonl(tmp_path / "own.jsonl", row))).queries
    assert [training_set.passages[p] for p in (*query.positives, *query.negatives)] == ["z", "x", "y"]
    assert query.scores == (0.0, -1.0, -2.0)
    with pytest.raises(DataError, match="does not rank every document once"):
        read_training_file(write_jsonl(tmp_path / "bad.jsonl", {**row, "ranking": [1, 1, 2]}))
    with pytest.raises(DataError, match="does not rank every document once"):
        read_training_file(write_jsonl(tmp_path / "worse.jsonl", {**row, "ranking": None}))


AUTHORS_INSTRUCTIONS = {  # two of the eleven of src/data.py; of nq the code reads the first letters of one joined text
    "hotpotqa": (
        "Given a multi-hop question, retrieval the documents that can help answer the question",
        "Given a multi-hop question and some relevant documents, rerank the documents that answer the question",
    ),
    "nq": "Given a question, retrieval Wikipedia documents that answer the question"
    "Given a question and some relevant documents, rerank the documents that answer the question",
}


def write_sources(path: Path, rows: int = 3) -> Path:
    lines: list[object] = [
        {"query": f"{source} {n}?", "document": [f"{source} {n} x", "y", "z"], "ranking": [3, 1, 2], "source": source}
        for source in (*AUTHORS_INSTRUCTIONS, "own")
        for n in range(rows)
    ]
    return write_jsonl(path, *lines)


def test_each_source_has_its_instructions_and_prompts_list_documents_as_given(folder: Path, tmp_path: Path) -> None:
    """The texts of a batch against those that the collator of the authors' code builds from the same rows."""
    recipe = catalog.find_recipe("e2rank")
    assert recipe.listwise
    training_set = read_training_file(write_sources(tmp_path / "mixed.jsonl", rows=1))
    tokenizer = load_tokenizer(folder)
    sheet = ListwisePromptTokenizer(PromptTokenizer(tokenizer, recipe.method, "The task."), chat=True)
    batch = ListwiseBatchSource(training_set, recipe.listwise, sheet, seed=1).build_batch(np.arange(3), 0)
    encoder = replace(build_encoder(folder, replace(recipe, lora=None)), prompt_tokenizer=sheet.prompt_tokenizer)
    tokens = encoder.tokenize(batch.queries, batch.passages, batch.list_prompts, batch.instructions)
    texts = [tokenizer.decode(ids) for ids in tokens]
    sources: list[tuple[str, Any]] = [
        *AUTHORS_INSTRUCTIONS.items(),
        ("own", ("The task.", "Given a query and some relevant documents, rerank the documents that are the most "
                 "relevant to the query")),
    ]  # fmt: skip
    for row, (source, instructions) in enumerate(sources):
        end = tokenizer.pad_token
        assert texts[row] == f"Instruct: {instructions[0]}\nQuery:{source} 0?{end}"
        listed = f"[1] {source} 0 x\n[2] y\n[3] z"
        assert f"user\n{instructions[1]}:\nDocuments:\n{listed}\nQuery: {source} 0?{end}<|im_end|>" in texts[-3:][row]
    assert texts[3] == f"z{tokenizer.pad_token}"  # the teacher's first


def test_at_most_so_many_queries_of_a_source_are_drawn(tmp_path: Path) -> None:
    training_set = read_training_file(write_sources(tmp_path / "mixed.jsonl", rows=9))
    limited = limit_queries_per_source(training_set, 4, seed=1)
    texts = [query.text for query in limited.queries]
    assert limited.facts["sources"] == {"hotpotqa": 4, "nq": 4, "own": 4}
    assert texts == sorted(texts, key=[query.text for query in training_set.queries].index)
    assert texts == [query.text for query in limit_queries_per_source(training_set, 4, seed=1).queries]
    assert texts != [query.text for query in limit_queries_per_source(training_set, 4, seed=2).queries]
    assert limit_queries_per_source(training_set, None, seed=1) is training_set


def test_the_public_ranking_data_is_read_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library `datasets` reads an imitation of the repository: one file, train.jsonl."""
    import datasets

    write_sources(tmp_path / "train.jsonl")
    load = datasets.load_dataset

    def load_local(repo: str, split: str) -> Any:
        assert repo == "Alibaba-NLP/E2Rank_ranking_datasets"
        return load(str(tmp_path), split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", load_local)
    monkeypatch.setattr("retbench.training.hub_datasets.require_hub_set", lambda name: None)
    training_set = hub_datasets.load_hub_training_set("e2rank-ranking")
    assert [query.source for query in training_set.queries] == [*["hotpotqa"] * 3, *["nq"] * 3, *["own"] * 3]
    assert [training_set.passages[row] for row in training_set.queries[0].listed] == ["hotpotqa 0 x", "y", "z"]
    assert {"msmarco", "nq"} < set(hub_datasets.list_collections("e2rank-ranking"))  # what a model has seen then
    assert hub_datasets.list_collections("scifact") == ("scifact",)


def test_a_query_with_one_document_cannot_be_ranked(folder: Path) -> None:
    lonely = replace(
        build_ranked_training_set(), queries=[TrainingQuery("a", (1,)), *build_ranked_training_set().queries]
    )
    with pytest.raises(DataError, match="1 queries of sentences have one document"):
        replace(build_batch_source(folder), training_set=lonely)


def test_listwise_settings_need_the_listwise_objective() -> None:
    with pytest.raises(DataError, match="need each other"):
        replace(RECIPE, listwise=LISTWISE_SETTINGS)
    listwise = catalog.find_recipe("e2rank").listwise
    assert listwise
    assert replace(listwise, order="shuffled", max_queries_per_source=None, source_instructions=None) == (
        ListwiseTraining()
    )


@pytest.mark.usefixtures("fresh_catalog")
def test_a_model_is_trained_and_reranks(folder: Path, tmp_path: Path) -> None:
    rows = [
        {
            "query": text[:20],
            "document": [text, small_collection.DOCUMENTS[n - 1][2] or "nothing", "salt"],
            "ranking": [1, 3, 2],
        }
        for n, (_, _, text) in enumerate(small_collection.DOCUMENTS[:8])
    ]
    data = write_jsonl(tmp_path / "own.jsonl", *rows)
    settings = (
        "dtype=float32",
        "gradient_checkpointing=false",
        "batch.train_batch_size=4",
        "batch.contrastive_batch_size=2",
        "optimizer.max_steps=2",
        "listwise.max_tokens=600",
    )
    line = ["finetune", data, "--model", folder, "--objective", "e2rank", "--name", "listed", "--json"]
    answer = run_command(*line, *(word for setting in settings for word in ("--set", setting)))
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.stdout)["steps"] == 2
    task = small_collection.write_folder(tmp_path / "pantry")
    actual = run_cells("run", "--model", "listed", "--task", task, "--rerank", "e2rank", "--out", tmp_path / "results")
    assert [cell["method"] for cell in actual] == ["e2rank", "e2rank"]
