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
def mute(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model without a chat template."""
    folder = tmp_path_factory.mktemp("models") / "mute"
    folder.mkdir()
    for file in model.iterdir():
        if file.name != "chat_template.jinja":
            (folder / file.name).write_bytes(file.read_bytes())
    assert AutoTokenizer.from_pretrained(folder).chat_template is None
    return folder


def read_record(cell: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(cell["record"]) / "record.json").read_text())
    return found


def read_ranking(cell: dict[str, Any]) -> dict[str, list[str]]:
    return saved_run.load_run(Path(cell["record"])).ranking.to_document_ids(
        saved_run.load_run(Path(cell["record"])).collection
    )


def texts() -> dict[str, str]:
    return {name: f"{title} {text}".strip() for name, title, text in small_collection.DOCUMENTS}


def compute_vectors(folder: Path, prompts: list[str]) -> np.ndarray:
    """Last states by transformers alone, one text at a time."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    found = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        if not ids.shape[1]:
            ids = torch.tensor([[tokenizer.eos_token_id]])
        with torch.inference_mode():
            found.append(torch.nn.functional.normalize(model(ids).last_hidden_state[0, -1].float(), dim=0).numpy())
    return np.stack(found)


FLOAT32 = ("--set", "dtype=float32")  # a machine with fast bfloat16 would round where the plain computation does not
LISTWISE_OPTIONS = (
    "<|im_start|>system\nYou are a tiny helpful model.<|im_end|>\n<|im_start|>user\n"
    "Given a web search query and some relevant documents, rerank the documents that answer the query:\n"
    "Documents:\n[1] {0}\n[2] {1}\n[3] {2}\nSearch Query: {3}<|im_end|>\n<|im_start|>assistant\n"
)


def test_the_listwise_prompt_and_its_cosines_equal_a_plain_computation(model: Path, task: Path, out: Path) -> None:
    plain, listed = run_cells(
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
    assert (plain["rerank"], listed["rerank"]) == ([], ["e2rank:documents=3"])
    documents, before = texts(), read_ranking(plain)
    every = compute_vectors(model, list(documents.values()))
    for query, wording in small_collection.QUERIES[:3]:
        shown = [" ".join(documents[name].split()) for name in before[query][:3]]
        (asked,) = compute_vectors(model, [LISTWISE_OPTIONS.format(*shown, wording)])
        scores = dict(zip(documents, every @ asked, strict=True))
        after = read_ranking(listed)[query]
        assert sorted(after) == sorted(before[query])
        assert [scores[name] for name in after] == sorted(scores.values(), reverse=True)
    sample = json.loads((Path(listed["record"]) / "sample.json").read_text())
    names = before["q1"][:3]
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


def test_without_a_template_the_same_text_is_a_query_of_the_method(mute: Path, task: Path, out: Path) -> None:
    line = ("run", "--model", mute, "--task", task, "--method", "last", "--out", out)
    *_, listed = run_cells(*line, "--rerank", "e2rank:documents=2")
    sample = json.loads((Path(listed["record"]) / "sample.json").read_text())
    assert sample["prompt"].startswith("Given a web search query")
    assert sample["prompt"].endswith("Search Query: how to brew a hot drink")
    refused = run_command(*line, "--rerank", "e2rank:form=chat", "--json")
    (_, skipped) = json.loads(refused.stdout)
    assert (skipped["status"], refused.exit_code) == ("skipped", 0)
    assert "no chat template" in skipped["error"]


def test_documents_share_the_remaining_tokens_equally(mute: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(mute)
    documents = ["short", "bread " * 400, "water " * 300]
    settings = reranker_settings.E2RankSettings(documents=3)

    def fitted(limit: int) -> tuple[list[int], Any]:
        sheet = ListwisePromptTokenizer(PromptTokenizer(tokenizer, _method("last")), chat=False, limit=limit)
        asked: Any = listwise_embedding.ListwisePromptBuilder(sheet, settings, str)
        ids = asked.fit_prompt("why?", documents).flat
        assert len(ids) <= limit
        parts = tokenizer.decode(ids).partition("Documents:\n")[2].partition("\nSearch Query")[0].split("\n")
        return [sheet.count_tokens(part.partition("] ")[2]) for part in parts], asked.counts

    (first_, second, third), counts = fitted(300)
    assert (first_, counts.prompts_cut, counts.documents_left_out) == (len(tokenizer("short")["input_ids"]), 1, 0)
    assert abs(second - third) <= 1
    room = 300 - len(tokenizer(build_listwise_prompt("why?", [*documents[:1], "", ""]))["input_ids"])
    assert abs(second + third - room) < 8  # texts joined have other tokens than texts apart
    sheet = ListwisePromptTokenizer(PromptTokenizer(tokenizer, _method("last")), chat=False, limit=0)
    least = build_listwise_prompt("why?", sheet.truncate_texts(documents, listwise_embedding.MIN_DOCUMENT_TOKENS))
    lengths, counts = fitted(len(sheet.tokenize(least).flat) - 1)
    assert (len(lengths), counts.documents_left_out) == (2, 1)
    with pytest.raises(UsageError, match="cannot hold two documents"):
        fitted(60)


def test_a_query_that_is_too_long_is_truncated_and_counted(mute: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(mute)
    sheet = ListwisePromptTokenizer(PromptTokenizer(tokenizer, _method("last")), chat=False, limit=300)
    asked: Any = listwise_embedding.ListwisePromptBuilder(sheet, reranker_settings.E2RankSettings(), str)
    assert len(asked.fit_prompt("north " * 500, ["one", "two"]).flat) <= 300
    assert asked.counts.queries_cut == 1


def test_the_cell_is_skipped_if_fewer_than_two_documents_fit(mute: Path, task: Path, out: Path) -> None:
    line = ("run", "--model", mute, "--task", task, "--method", "last", "--rerank", "e2rank:length=40", "--out", out)
    answer = run_command(*line, "--json")
    plain, skipped = json.loads(answer.stdout)
    assert (plain["status"], skipped["status"], answer.exit_code) == ("done", "skipped", 0)
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
    plain, baseline, listed = run_cells(*line)
    assert baseline["rerank"] == ["vectors:method=last,model=tiny"]
    assert listed["rerank"] == ["e2rank:method=last,model=tiny"]
    found, documents = read_ranking(plain), texts()
    for query, wording in small_collection.QUERIES[:3]:
        asked, *rest = compute_vectors(model, [wording, *(documents[name] for name in found[query])])
        scores = {name: float(asked @ other) for name, other in zip(found[query], rest, strict=True)}
        assert read_ranking(baseline)[query] == sorted(found[query], key=lambda name: -scores[name])
    assert str(model) not in (Path(listed["record"]) / "record.json").read_text()
    assert read_record(listed)["cards"]["rerankers"][0]["name"] == "tiny"
    (again, *_) = run_cells(*line)
    assert again["cached"]


def test_rocchio_equals_the_textbook_formula(model: Path, task: Path, out: Path) -> None:
    word = "rocchio:documents=2,alpha=0.5,beta=2,gamma=0.25"
    plain, moved = run_cells(
        "run", *FLOAT32, "--model", model, "--task", task, "--method", "last", "--rerank", word, "--out", out
    )
    documents, before = texts(), read_ranking(plain)
    every = dict(zip(documents, compute_vectors(model, list(documents.values())), strict=True))
    for query, wording in small_collection.QUERIES[:3]:
        (asked,) = compute_vectors(model, [wording])
        order = before[query]
        asked = 0.5 * asked + 2 * np.mean([every[name] for name in order[:2]], axis=0)
        asked = asked - 0.25 * np.mean([every[name] for name in order[-2:]], axis=0)
        assert read_ranking(moved)[query] == sorted(order, key=lambda name: -float(every[name] @ asked))


@pytest.mark.skipif(not CLEAR.exists(), reason="elsewhere the mark is the process's since its start")
def test_the_peak_memory_of_a_reranked_cell_is_its_own(task: Path, out: Path) -> None:
    line = ("run", "--model", "bm25", "--task", task, "--out", out)
    (plain,) = run_cells(*line)
    large = np.ones(1 << 27)  # a gigabyte, for something else
    del large
    *_, ordered = run_cells(*line, "--rerank", "ql")
    assert read_record(ordered)["cost"]["peak_memory_mb"] < read_record(plain)["cost"]["peak_memory_mb"] + 500


def test_ql_equals_the_likelihood_of_words(task: Path, out: Path) -> None:
    """By hand: counts smoothed by the collection's, for the words that stemming and stop words leave."""
    own = run_command("run", "--model", "query-likelihood", "--task", task, "--out", out, "--json")
    (whole,) = json.loads(own.stdout)
    file = task.parent / "theirs.txt"
    file.write_text("".join(f"q1 Q0 {name} {n} {-n} x\n" for n, (name, _, _) in enumerate(small_collection.DOCUMENTS)))
    _, ordered = run_cells("rerank", file, "--task", task, "--with", "ql", "--out", out)
    found = read_ranking(whole)["q1"]
    assert read_ranking(ordered)["q1"][: len(found)] == found
    rest = [name for name, _, _ in small_collection.DOCUMENTS if name not in found]
    assert read_ranking(ordered)["q1"][len(found) :] == rest
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
    found = rerank_queries(ranking, ["a", "b"], Reversed(), lambda: None)
    assert found.ranking.rows[0].tolist() == [1, 7, 4, 9, 2]
    assert np.all(np.diff(found.ranking.scores[0]) < 0)
    assert found.ranking.rows[1].tolist() == [3]  # one candidate is no question
    assert len(found.seconds_per_query) == 2


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
    own, baseline, moved = run_cells(*line)
    assert [cell["model"] for cell in (own, baseline, moved)] == ["theirs"] * 3
    assert read_ranking(own)["q1"] == ["coffee", "tea", "bread"]
    assert sorted(read_ranking(moved)["q1"]) == ["bread", "coffee", "tea"]
    assert read_ranking(moved)["q3"] == []
    assert "theirs" in run_command("report", out).output
    run_cells("run", "--model", "bm25", "--task", task, "--out", out)
    (board,) = build_report(out).boards
    assert {(row.model, row.method) for row in board.rows} >= {("theirs", "run"), ("bm25", "bm25")}
    again = run_cells("rerank", own["settings_id"], "--with", f"rocchio:model={model}", "--out", out)
    assert again[-1]["settings_id"] == moved["settings_id"]
    assert again[-1]["cached"]


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
    lost = "listwise:model=./nowhere"
    answer = run_command("rerank", run.parent, "--with", "ql", "--with", lost, "--with", "ql", "--out", out, "--json")
    assert answer.exit_code == 1
    assert [(cell["rerank"], cell["status"]) for cell in json.loads(answer.stdout)] == [
        ([], "done"), (["ql"], "done"), (["ql", lost], "failed"),
    ]  # fmt: skip
    (failed,) = [cell for cell in json.loads(run_command("report", out, "--json").stdout) if cell["status"] == "failed"]
    assert (failed["method"], failed["rerank"]) == ("bm25", ["ql", lost])


@pytest.mark.parametrize("before", [False, True])
def test_the_failure_file_is_removed_when_the_reranker_succeeds(
    model: Path, task: Path, out: Path, tmp_path: Path, before: bool
) -> None:
    place = tmp_path / "tiny"
    line = ("run", "--model", "bm25", "--task", task, "--out", out, "--rerank", f"e2rank:documents=3,model={place}")
    if before:  # done already, by another name of the same model
        run_cells(*line[:-1], f"e2rank:documents=3,model={model}")
    assert run_command(*line).exit_code == 1
    assert list(out.rglob("*.failed.json"))
    place.symlink_to(model)
    assert run_cells(*line)[-1]["cached"] is before
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
        saved_run, "open_collection", lambda card: replace(opened(card), excluded={"q1": frozenset({"coffee"})})
    )
    own, _ = saved_run.import_trec_run(file, str(task), out, "retbench rerank")
    assert own.ranking.to_document_ids(own.collection)["q1"] == ["tea", "bread"]


def test_other_weights_than_those_of_the_run_are_refused(model: Path, task: Path, out: Path) -> None:
    (cell,) = run_cells("run", *FLOAT32, "--model", model, "--task", task, "--method", "last", "--out", out)
    other = saved_run.load_run(Path(cell["record"]))
    from retbench.pipelines.reranking.base import ModelResolver
    from retbench.pipelines.reranking.factory import build_reranker_spec

    moved = replace(
        other, record=replace(other.record, model=str(tiny_models.build_model(task.parent / "tiny2", hidden_size=32)))
    )
    with pytest.raises(DataError, match="are not the weights of the run"):
        build_reranker_spec(reranker_settings.parse_reranker("rocchio"), moved, None, ModelResolver(lambda _: None))


def test_equal_rerankers_have_one_spelling() -> None:
    assert reranker_settings.parse_reranker("e2rank:step=10,depth=50").spelling == "e2rank:depth=50"
    assert reranker_settings.parse_reranker("rocchio:beta=1,alpha=2").spelling == "rocchio:alpha=2.0,beta=1.0"
