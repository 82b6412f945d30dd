"""Embedding rerankers: the listwise prompt byte for byte, scores as computed plainly, invalid runs refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from retbench.cards import reranker_settings
from retbench.corpora.open_collection import open_collection
from retbench.encoders.dense_encoder import BackboneEncoder
from retbench.encoders.listwise_prompt import ListwisePromptTokenizer, build_listwise_prompt
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.engines import device
from retbench.engines.memory import CLEAR
from retbench.errors import DataError, UsageError
from retbench.pipelines.report import build_report
from retbench.pipelines.runs import saved_run
from retbench.rerankers import listwise_embedding
from retbench.rerankers.candidates import Candidates, iterate_windows, rerank_queries
from retbench.rerankers.embedding_rerankers import EmbeddingReranker
from retbench.retrievers.ranking import Ranking
from tests import small_collection, tiny_models
from tests.test_run import run_cells, run_command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=2048)


@pytest.fixture(scope="module")
def model_without_template(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model without a chat template."""
    folder = tmp_path_factory.mktemp("models") / "mute"
    folder.mkdir()
    for file in model.iterdir():
        if file.name != "chat_template.jinja":
            (folder / file.name).write_bytes(file.read_bytes())
    assert AutoTokenizer.from_pretrained(folder).chat_template is None
    return folder


def read_record(cell: dict[str, Any]) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((Path(cell["record"]) / "record.json").read_text())
    return record


def read_ranking(cell: dict[str, Any]) -> dict[str, list[str]]:
    return saved_run.load_run(Path(cell["record"])).ranking.to_document_ids(
        saved_run.load_run(Path(cell["record"])).collection
    )


def texts() -> dict[str, str]:
    return {name: f"{title} {text}".strip() for name, title, text in small_collection.DOCUMENTS}


def compute_vectors(folder: Path, prompts: list[str]) -> np.ndarray:
    """Compute the last token's state with transformers alone, one text at a time."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    actual = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        if not ids.shape[1]:
            ids = torch.tensor([[tokenizer.eos_token_id]])
        with torch.inference_mode():
            actual.append(torch.nn.functional.normalize(model(ids).last_hidden_state[0, -1].float(), dim=0).numpy())
    return np.stack(actual)


FLOAT32 = ("--set", "dtype=float32")  # on a machine with fast bfloat16 the results would be rounded
LISTWISE_OPTIONS = (
    "<|im_start|>system\nYou are a tiny helpful model.<|im_end|>\n<|im_start|>user\n"
    "Given a web search query and some relevant documents, rerank the documents that answer the query:\n"
    "Documents:\n[1] {0}\n[2] {1}\n[3] {2}\nSearch Query: {3}<|im_end|>\n<|im_start|>assistant\n"
)


def test_the_listwise_prompt_and_its_cosines_equal_a_plain_computation(model: Path, task: Path, out: Path) -> None:
    first_stage, listed = run_cells(
        "run",
        *FLOAT32,
        "--model",
        model,
        "--task",
        task,
        "--method",
        "last",
        "--rerank",
        "e2rank:documents=3",
        "--out",
        out,
    )
    assert (first_stage["rerank"], listed["rerank"]) == ([], ["e2rank:documents=3"])
    documents, first_ranking = texts(), read_ranking(first_stage)
    document_vectors = compute_vectors(model, list(documents.values()))
    for query, query_text in small_collection.QUERIES[:3]:
        shown_texts = [" ".join(documents[name].split()) for name in first_ranking[query][:3]]
        (query_vector,) = compute_vectors(model, [LISTWISE_OPTIONS.format(*shown_texts, query_text)])
        scores = dict(zip(documents, document_vectors @ query_vector, strict=True))
        reranked = read_ranking(listed)[query]
        assert sorted(reranked) == sorted(first_ranking[query])
        assert [scores[name] for name in reranked] == sorted(scores.values(), reverse=True)
    sample = json.loads((Path(listed["record"]) / "sample.json").read_text())
    names = first_ranking["q1"][:3]
    assert sample["prompt"] == LISTWISE_OPTIONS.format(*(documents[name] for name in names), "how to brew a hot drink")
    facts = read_record(listed)["cost"]["rerank"][0]
    assert (facts["form"], facts["prompts"], facts["prompts_cut"]) == ("chat", 3, 0)
    assert facts["latency"].keys() == {"mean", "median", "longest"}


def test_a_dry_run_shows_the_listwise_prompt_of_the_run_on_disk(model: Path, task: Path, out: Path) -> None:
    line = ("run", "--model", model, "--task", task, "--out", out, "--rerank", "e2rank:documents=2")
    *_, cell = run_cells(*line)
    sample = json.loads((Path(cell["record"]) / "sample.json").read_text())
    (plan,) = run_cells(*line, "--dry-run")
    assert [plan["rerank"][0][name] for name in ("prompt", "ids")] == [sample["prompt"], sample["ids"]]


def test_thinking_is_disabled_if_the_chat_template_supports_it(model: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template += "{% if enable_thinking is false %}<think></think>{% endif %}"
    sheet = ListwisePromptTokenizer(PromptTokenizer(tokenizer, _method("last")), chat=True, limit=999)
    assert tokenizer.decode(sheet.tokenize("x")[0]).endswith("assistant\n<think></think>")


def _method(name: str) -> Any:
    from retbench.cards import catalog

    return catalog.find_method(name)


def test_without_a_template_the_same_text_is_a_query_of_the_method(
    model_without_template: Path, task: Path, out: Path
) -> None:
    line = ("run", "--model", model_without_template, "--task", task, "--method", "last", "--out", out)
    *_, listed = run_cells(*line, "--rerank", "e2rank:documents=2")
    sample = json.loads((Path(listed["record"]) / "sample.json").read_text())
    assert sample["prompt"].startswith("Given a web search query")
    assert sample["prompt"].endswith("Search Query: how to brew a hot drink")
    refused = run_command(*line, "--rerank", "e2rank:form=chat", "--json")
    (_, skipped) = json.loads(refused.stdout)
    assert (skipped["status"], refused.exit_code) == ("skipped", 0)
    assert "no chat template" in skipped["error"]


def test_documents_share_the_remaining_tokens_equally(model_without_template: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_without_template)
    documents = ["short", "bread " * 400, "water " * 300]
    settings = reranker_settings.E2RankSettings(documents=3)

    def fitted(limit: int) -> tuple[list[int], Any]:
        sheet = ListwisePromptTokenizer(PromptTokenizer(tokenizer, _method("last")), chat=False, limit=limit)
        prompt_builder: Any = listwise_embedding.ListwisePromptBuilder(sheet, settings, str)
        ids = prompt_builder.fit_prompt("why?", documents).flat
        assert len(ids) <= limit
        parts = tokenizer.decode(ids).partition("Documents:\n")[2].partition("\nSearch Query")[0].split("\n")
        return [sheet.count_tokens(part.partition("] ")[2]) for part in parts], prompt_builder.counts

    (first_, second, third), counts = fitted(300)
    assert (first_, counts.prompts_cut, counts.documents_left_out) == (len(tokenizer("short")["input_ids"]), 1, 0)
    assert abs(second - third) <= 1
    free_tokens = 300 - len(tokenizer(build_listwise_prompt("why?", [*documents[:1], "", ""]))["input_ids"])
    assert abs(second + third - free_tokens) < 8  # joined texts may have other tokens than separate texts
    sheet = ListwisePromptTokenizer(PromptTokenizer(tokenizer, _method("last")), chat=False, limit=0)
    shortest_prompt = build_listwise_prompt(
        "why?", sheet.truncate_texts(documents, listwise_embedding.MIN_DOCUMENT_TOKENS)
    )
    lengths, counts = fitted(len(sheet.tokenize(shortest_prompt).flat) - 1)
    assert (len(lengths), counts.documents_left_out) == (2, 1)
    with pytest.raises(UsageError, match="cannot hold two documents"):
        fitted(60)


def test_a_query_that_is_too_long_is_truncated_and_counted(model_without_template: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_without_template)
    sheet = ListwisePromptTokenizer(PromptTokenizer(tokenizer, _method("last")), chat=False, limit=300)
    prompt_builder: Any = listwise_embedding.ListwisePromptBuilder(sheet, reranker_settings.E2RankSettings(), str)
    assert len(prompt_builder.fit_prompt("north " * 500, ["one", "two"]).flat) <= 300
    assert prompt_builder.counts.queries_cut == 1


def test_the_cell_is_skipped_if_fewer_than_two_documents_fit(
    model_without_template: Path, task: Path, out: Path
) -> None:
    line = (
        "run",
        "--model",
        model_without_template,
        "--task",
        task,
        "--method",
        "last",
        "--rerank",
        "e2rank:length=40",
        "--out",
        out,
    )
    answer = run_command(*line, "--json")
    first_stage, skipped = json.loads(answer.stdout)
    assert (first_stage["status"], skipped["status"], answer.exit_code) == ("done", "skipped", 0)
    assert "cannot hold two documents" in skipped["error"]
    board = run_command("report", out).output
    assert "e2rank:length=40" in board


def test_documents_are_not_embedded_again(model: Path, task: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = ("run", *FLOAT32, "--model", model, "--task", task, "--method", "last", "--out", out)
    run_cells(*line)
    seen: list[int] = []
    embed = BackboneEncoder.encode
    monkeypatch.setattr(BackboneEncoder, "encode", lambda self, batch: seen.append(len(batch)) or embed(self, batch))
    run_cells(*line, "--rerank", "rocchio")
    assert seen == []
    run_cells(*line, "--rerank", "e2rank")
    assert seen == [1, 1, 1]
    run_cells(*line, "--rerank", "e2rank")
    assert seen == [1, 1, 1]


def test_only_candidates_are_embedded_if_the_corpus_is_not_cached(model: Path, task: Path, out: Path) -> None:
    line = ("run", "--model", "bm25", "--task", task, "--out", out, "--rerank", f"e2rank:model={model},method=last")
    first_stage, baseline, listed = run_cells(*line)
    assert baseline["rerank"] == ["vectors:method=last,model=tiny"]
    assert listed["rerank"] == ["e2rank:method=last,model=tiny"]
    actual, documents = read_ranking(first_stage), texts()
    for query, query_text in small_collection.QUERIES[:3]:
        query_vector, *candidate_vectors = compute_vectors(
            model, [query_text, *(documents[name] for name in actual[query])]
        )
        scores = {
            name: float(query_vector @ document_vector)
            for name, document_vector in zip(actual[query], candidate_vectors, strict=True)
        }
        assert read_ranking(baseline)[query] == sorted(actual[query], key=lambda name: -scores[name])
    assert str(model) not in (Path(listed["record"]) / "record.json").read_text()
    assert read_record(listed)["cards"]["rerankers"][0]["name"] == "tiny"
    (cached_cell, *_) = run_cells(*line)
    assert cached_cell["cached"]


def test_e2rank_as_its_authors_evaluate_it(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain loop after src/eval.py: a document's first words and the padding token, no limit in tokens."""
    monkeypatch.setattr(device, "has_fast_bf16", lambda: False)  # `--set dtype` does not reach a reranker
    folder = small_collection.write_folder(tmp_path / "long")
    documents = {name: f"{title} {text * 20}".strip() for name, title, text in small_collection.DOCUMENTS}
    rows = [{"_id": name, "title": "", "text": text} for name, text in documents.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    method = "e2rank-reranking:document_words=140"
    reranker = f"e2rank:model={model},method={method},words=140,documents=3,max_length=2048,length=2048"
    line = ("run", "--model", "bm25", "--task", folder, "--out", tmp_path / "results")
    first_stage, baseline, listed = run_cells(*line, "--rerank", reranker)
    assert "max_length=2048" in baseline["rerank"][0]
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    cut_texts = {name: " ".join(text.split()[:140]) for name, text in documents.items()}
    assert max(len(tokenizer(text)["input_ids"]) for text in cut_texts.values()) > 512  # more than the task's limit
    assert any(text != cut_texts[name] for name, text in documents.items())
    ranked = read_ranking(first_stage)
    for query, query_text in small_collection.QUERIES[:3]:
        shown = [f"[{number}] {cut_texts[name]}\n" for number, name in enumerate(ranked[query][:3], start=1)]
        head, _, rest = LISTWISE_OPTIONS.partition("[1] {0}")
        prompt = f"{head}{''.join(shown)}Search Query: {query_text}{rest.partition('{3}')[2]}"
        instructed = (
            f"Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:{query_text}"
        )
        ends = [f"{text}{tokenizer.pad_token}" for text in (instructed, *(cut_texts[name] for name in ranked[query]))]
        list_vector, query_vector, *vectors = compute_vectors(model, [prompt, *ends])
        for cell, vector in ((listed, list_vector), (baseline, query_vector)):
            scores = {name: float(vector @ other) for name, other in zip(ranked[query], vectors, strict=True)}
            assert read_ranking(cell)[query] == sorted(ranked[query], key=lambda name: -scores[name])


def test_the_ids_of_earlier_records_stay() -> None:
    """A younger field is not in the settings of a record while it has its default."""
    stored = {"model": None, "method": None, "depth": 100}
    assert reranker_settings.describe_settings(reranker_settings.VectorsSettings()) == stored
    changed = reranker_settings.describe_settings(reranker_settings.VectorsSettings(max_length=64))
    assert changed == {**stored, "max_length": 64}


def test_rocchio_equals_the_textbook_formula(model: Path, task: Path, out: Path) -> None:
    reranker = "rocchio:documents=2,alpha=0.5,beta=2,gamma=0.25"
    first_stage, reranked_cell = run_cells(
        "run", *FLOAT32, "--model", model, "--task", task, "--method", "last", "--rerank", reranker, "--out", out
    )
    documents, first_ranking = texts(), read_ranking(first_stage)
    document_vectors = dict(zip(documents, compute_vectors(model, list(documents.values())), strict=True))
    for query, query_text in small_collection.QUERIES[:3]:
        (query_vector,) = compute_vectors(model, [query_text])
        order = first_ranking[query]
        query_vector = 0.5 * query_vector + 2 * np.mean([document_vectors[name] for name in order[:2]], axis=0)
        query_vector = query_vector - 0.25 * np.mean([document_vectors[name] for name in order[-2:]], axis=0)
        assert read_ranking(reranked_cell)[query] == sorted(
            order, key=lambda name: -float(document_vectors[name] @ query_vector)
        )


@pytest.mark.skipif(not CLEAR.exists(), reason="elsewhere the mark is the process's since its start")
def test_the_peak_memory_of_a_reranked_cell_is_its_own(task: Path, out: Path) -> None:
    line = ("run", "--model", "bm25", "--task", task, "--out", out)
    (first_stage,) = run_cells(*line)
    large = np.ones(1 << 27)  # a peak of one gigabyte outside the cell
    del large
    *_, ordered = run_cells(*line, "--rerank", "ql")
    assert read_record(ordered)["cost"]["peak_memory_mb"] < read_record(first_stage)["cost"]["peak_memory_mb"] + 500


def test_ql_equals_the_likelihood_of_words(task: Path, out: Path) -> None:
    """Computed by hand: smoothed counts of the words that remain after stemming and stop words."""
    answer = run_command("run", "--model", "query-likelihood", "--task", task, "--out", out, "--json")
    (cell,) = json.loads(answer.stdout)
    file = task.parent / "theirs.txt"
    file.write_text("".join(f"q1 Q0 {name} {n} {-n} x\n" for n, (name, _, _) in enumerate(small_collection.DOCUMENTS)))
    _, ordered = run_cells("rerank", file, "--task", task, "--with", "ql", "--out", out)
    actual = read_ranking(cell)["q1"]
    assert read_ranking(ordered)["q1"][: len(actual)] == actual
    candidate_vectors = [name for name, _, _ in small_collection.DOCUMENTS if name not in actual]
    assert read_ranking(ordered)["q1"][len(actual) :] == candidate_vectors
    assert reranker_settings.parse_reranker("ql:model=some").spelling == "likelihood:model=some"


def test_rerankers_are_chained_and_every_stage_is_a_row(model: Path, task: Path, out: Path) -> None:
    line = ("run", *FLOAT32, "--model", model, "--task", task, "--method", "last", "--out", out)
    *_, last = run_cells(*line, "--rerank", "e2rank:documents=2", "--rerank", "rocchio")
    assert last["rerank"] == ["e2rank:documents=2", "rocchio"]
    assert [one["rerank"] for one in read_record(last)["cost"]["rerank"]] == ["e2rank:documents=2", "rocchio"]
    board = run_command("report", out).output
    for row in ("| last |", "| last + e2rank:documents=2 |", "| last + e2rank:documents=2 + rocchio |"):
        assert row in board


def test_a_reranking_depth_keeps_the_tail() -> None:
    class Reversed:
        depth = 3

        def rerank(self, candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
            return np.arange(len(candidates.rows))[::-1], np.array([0.9, 0.5, 0.1])[: len(candidates.rows)]

        collect_statistics = sample = dict

    ranking = Ranking([np.array([4, 7, 1, 9, 2]), np.array([3])], [np.arange(5, 0, -1.0), np.array([1.0])])
    actual = rerank_queries(ranking, ["a", "b"], Reversed(), lambda: None)
    assert actual.ranking.rows[0].tolist() == [1, 7, 4, 9, 2]
    assert np.all(np.diff(actual.ranking.scores[0]) < 0)
    assert actual.ranking.rows[1].tolist() == [3]  # a single candidate needs no reranking
    assert len(actual.seconds_per_query) == 2


def test_sliding_windows_move_a_document_to_the_top() -> None:
    assert [(w.start, w.stop) for w in iterate_windows(10, 4, 2)] == [(6, 10), (4, 8), (2, 6), (0, 4)]
    assert [(w.start, w.stop) for w in iterate_windows(5, 4, 3)] == [(1, 5), (0, 2)]
    assert list(iterate_windows(3, 4, 2)) == [slice(0, 3)] == list(iterate_windows(3, 0, 10))

    class Ask:
        def embed(self, candidates: Candidates) -> np.ndarray:
            return np.array([1.0], dtype=np.float32)

        collect_statistics = sample = dict

    by = EmbeddingReranker(Ask(), lambda rows: rows[:, None].astype(np.float32), 10, window=4, step=2)
    order, scores = by.rerank(Candidates(0, "?", np.arange(10), np.arange(10, 0, -1.0)))
    assert order[0] == 9
    assert sorted(order) == list(range(10))
    assert np.all(np.diff(scores) < 0)


RUN = "q1 Q0 coffee 1 9.5 x\nq1 Q0 tea 2 7.25 x\nq1 Q0 bread 3 7 x\nq2 Q0 train 1 2 x\nother Q0 tea 1 1 x\n"


def test_an_imported_run_is_reranked(model: Path, task: Path, out: Path) -> None:
    file = task.parent / "theirs.txt"
    file.write_text(RUN)
    line = ("rerank", file, "--task", task, "--with", f"rocchio:model={model}", "--out", out)
    imported, baseline, reranked_cell = run_cells(*line)
    assert [cell["model"] for cell in (imported, baseline, reranked_cell)] == ["theirs"] * 3
    assert read_ranking(imported)["q1"] == ["coffee", "tea", "bread"]
    assert sorted(read_ranking(reranked_cell)["q1"]) == ["bread", "coffee", "tea"]
    assert read_ranking(reranked_cell)["q3"] == []
    assert "theirs" in run_command("report", out).output
    run_cells("run", "--model", "bm25", "--task", task, "--out", out)
    (board,) = build_report(out).boards
    assert {(row.model, row.method) for row in board.rows} >= {("theirs", "run"), ("bm25", "bm25")}
    cells = run_cells("rerank", imported["settings_id"], "--with", f"rocchio:model={model}", "--out", out)
    assert cells[-1]["settings_id"] == reranked_cell["settings_id"]
    assert cells[-1]["cached"]


def test_two_runs_of_one_name_are_two_rows(task: Path, out: Path) -> None:
    file = task.parent / "theirs.txt"
    for run in (RUN, RUN.replace("coffee", "ship")):
        file.write_text(run)
        run_cells("rerank", file, "--task", task, "--with", "ql", "--out", out)
    (board,) = build_report(out).boards
    assert len({row.label for row in board.rows}) == 4


@pytest.mark.parametrize(
    ("run", "with_", "words", "code"),
    [
        ("q1 Q0 nothing 1 1 x\n", "rocchio", "ranks 'nothing', which is not in the collection", 4),
        ("q1 Q0 tea 1 2 x\nq1 Q0 tea 2 1 x\n", "rocchio", "ranks a document twice", 4),
        ("strange Q0 tea 1 1 x\n", "rocchio", "none of the 3 queries", 4),
        ("q1 tea 1\n", "rocchio", "is not a TREC run", 4),
        (RUN, "rocchio", "has no vectors to rerank by", 2),
        (RUN, "rocchio:model=bm25", "bm25 is a lexical model without vectors", 2),
        (RUN, "rochio", "did you mean rocchio", 2),
        (RUN, "e2rank:documents=1", "too few for a listwise prompt", 2),
        (RUN, "e2rank:window=5,step=6", "cannot move a document up", 2),
        (RUN, "vectors:depth=0", "depth=0 must be at least 1", 2),
        (RUN, "vectors:deep=3", "did you mean depth", 2),
    ],
)
def test_bad_runs_and_options_are_refused_by_name(
    task: Path, out: Path, run: str, with_: str, words: str, code: int
) -> None:
    file = task.parent / "theirs.txt"
    file.write_text(run)
    answer = run_command("rerank", file, "--task", task, "--with", with_, "--out", out)
    assert answer.exit_code == code
    assert words in answer.output


def test_a_failed_reranker_keeps_finished_cells(task: Path, out: Path) -> None:
    run_cells("run", "--model", "bm25", "--task", task, "--out", out)
    (run,) = out.rglob("record.json")
    missing_reranker = "listwise:model=./nowhere"
    answer = run_command(
        "rerank", run.parent, "--with", "ql", "--with", missing_reranker, "--with", "ql", "--out", out, "--json"
    )
    assert answer.exit_code == 1
    assert [(cell["rerank"], cell["status"]) for cell in json.loads(answer.stdout)] == [
        ([], "done"), (["ql"], "done"), (["ql", missing_reranker], "failed"),
    ]  # fmt: skip
    (failed,) = [cell for cell in json.loads(run_command("report", out, "--json").stdout) if cell["status"] == "failed"]
    assert (failed["method"], failed["rerank"]) == ("bm25", ["ql", missing_reranker])


@pytest.mark.parametrize("finished_before", [False, True])
def test_the_failure_file_is_removed_when_the_reranker_succeeds(
    model: Path, task: Path, out: Path, tmp_path: Path, finished_before: bool
) -> None:
    folder = tmp_path / "tiny"
    line = ("run", "--model", "bm25", "--task", task, "--out", out, "--rerank", f"e2rank:documents=3,model={folder}")
    if finished_before:  # the same cell was finished under another name of the model
        run_cells(*line[:-1], f"e2rank:documents=3,model={model}")
    assert run_command(*line).exit_code == 1
    assert list(out.rglob("*.failed.json"))
    folder.symlink_to(model)
    assert run_cells(*line)[-1]["cached"] is finished_before
    assert not list(out.rglob("*.failed.json"))


def test_a_run_file_needs_its_task(task: Path, out: Path) -> None:
    file = task.parent / "theirs.txt"
    file.write_text(RUN)
    answer = run_command("rerank", file, "--with", "rocchio", "--out", out)
    assert (answer.exit_code, "--task TASK" in answer.output) == (2, True)


def test_reranking_never_returns_excluded_documents(
    model: Path, task: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = task.parent / "theirs.txt"
    file.write_text(RUN)
    opened: Callable[..., Any] = open_collection
    monkeypatch.setattr(
        saved_run,
        "open_collection",
        lambda card, **options: replace(opened(card, **options), excluded={"q1": frozenset({"coffee"})}),
    )
    imported, _ = saved_run.import_trec_run(file, str(task), out, "retbench rerank")
    assert imported.ranking.to_document_ids(imported.collection)["q1"] == ["tea", "bread"]


def test_other_weights_than_those_of_the_run_are_refused(model: Path, task: Path, out: Path) -> None:
    (cell,) = run_cells("run", *FLOAT32, "--model", model, "--task", task, "--method", "last", "--out", out)
    document_vector = saved_run.load_run(Path(cell["record"]))
    from retbench.pipelines.reranking.base import ModelResolver
    from retbench.pipelines.reranking.factory import build_reranker_spec

    reranked_cell = replace(
        document_vector,
        record=replace(
            document_vector.record, model=str(tiny_models.build_model(task.parent / "tiny2", hidden_size=32))
        ),
    )
    with pytest.raises(DataError, match="are not the weights of the run"):
        build_reranker_spec(
            reranker_settings.parse_reranker("rocchio"), reranked_cell, None, ModelResolver(lambda _: None)
        )


def test_equal_rerankers_have_one_spelling() -> None:
    assert reranker_settings.parse_reranker("e2rank:step=10,depth=50").spelling == "e2rank:depth=50"
    assert reranker_settings.parse_reranker("rocchio:beta=1,alpha=2").spelling == "rocchio:alpha=2.0,beta=1.0"
