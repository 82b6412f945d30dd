"""LLM rerankers: prompts, answer repair, the tiny decoder against plain loops, servers that fail."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from retbench.cards.reranker_settings import ListwiseSettings, PointwiseSettings
from retbench.engines import http_client as network
from retbench.engines.generator import REASONING_TOKENS, GeneratedAnswer, TransformersGenerator
from retbench.errors import DataError, UsageError
from retbench.pipelines.runs import saved_run
from retbench.rerankers.answer_cache import CachedGenerator
from retbench.rerankers.candidates import Candidates, rerank_queries
from retbench.rerankers.llm_prompts import (
    PromptBuilder,
    build_listwise_prompt,
    build_order_pattern,
    build_pointwise_prompt,
    extract_final_answer,
    format_scores,
    parse_order,
)
from retbench.rerankers.llm_rerankers import ListwiseLLMReranker, PointwiseLLMReranker
from retbench.retrievers.ranking import Ranking
from tests import local_server, small_collection, tiny_models
from tests.test_run import run_cells, run_command

DOCUMENTS = ("bread", "", "tea", "coffee", "cheese", "train", "ship")
CANDIDATES = Candidates(0, "a hot drink?", np.arange(7), np.array([9.5, 7.25, 7.0, 4, 2, 1, 0.5]))


CUT = "<cut>"  # at the end of a scripted answer: it ended at the limit of tokens


class ScriptedGenerator:
    """A generator with scripted answers; it counts words as tokens."""

    name = "scripted"

    def __init__(self, *answers: str, context: int = 10**6, reasoning_limit: int = 0) -> None:
        self.answers, self.prompts, self.context = list(answers), list[str](), context
        self.patterns: list[str] = []
        self.limits: list[int] = []
        self.reasoning_limit = reasoning_limit

    def describe(self) -> dict[str, Any]:
        return {"engine": "script"}

    def generate(self, prompt: str, max_tokens: int, pattern: str = "") -> GeneratedAnswer:
        self.prompts.append(prompt)
        self.patterns.append(pattern)
        self.limits.append(max_tokens)
        text = self.answers.pop(0)
        return GeneratedAnswer(text.removesuffix(CUT), 0.0, len(prompt.split()), max_tokens, text.endswith(CUT))

    def score_yes_no(self, prompts: Sequence[str]) -> list[GeneratedAnswer]:
        self.prompts += prompts
        return [GeneratedAnswer("", float("tea" in prompt or "coffee" in prompt), 1, 0) for prompt in prompts]

    def truncate_texts(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        return [" ".join(text.split()[:max_tokens]) for text in texts]

    def fits_context(self, prompt: str, max_tokens: int) -> bool:
        return len(prompt.split()) + max_tokens <= self.context


def build_prompt_builder(
    generator: Any, settings: PointwiseSettings, documents: Sequence[str] = DOCUMENTS
) -> PromptBuilder:
    return PromptBuilder(generator, settings, lambda row: documents[row], "BM25 score")


def test_the_prompt_of_a_list_byte_for_byte() -> None:
    assert build_listwise_prompt("why?", ["one", "two"], ["7.250", "0.500"], "BM25 score") == (
        "Each passage is given with its BM25 score, which a first search gave it for the query.\n\n"
        "Query: why?\n\n[1] one\nBM25 score: 7.250\n\n[2] two\nBM25 score: 0.500\n\n"
        "Rank the 2 passages above by how well they answer the query, by their content and their scores. Answer only "
        "with all 2 numbers, the best passage first, in this form: [best] > [second] > ... > [worst]"
    )
    assert build_listwise_prompt("why?", ["one"], [], "BM25 score") == (
        "Query: why?\n\n[1] one\n\nRank the 1 passages above by how well they answer the query, by their content. "
        "Answer only with all 1 numbers, the best passage first, in this form: [best] > [second] > ... > [worst]"
    )
    assert "score" not in build_pointwise_prompt("why?", "one", None, "BM25 score")
    assert "Passage: one\nBM25 score: 7.000\n" in build_pointwise_prompt("why?", "one", "7.000", "BM25 score")


def test_scores_are_formatted_as_set() -> None:
    rng = np.random.default_rng(0)
    scores = np.array([12.0, 7.5, 2.0])
    assert format_scores(scores, "none", rng) == []
    assert format_scores(scores, "raw", rng) == ["12.000", "7.500", "2.000"]
    assert format_scores(scores, "minmax", rng) == ["1.000", "0.550", "0.000"]
    assert format_scores(scores, "percent", rng) == ["100.0", "55.0", "0.0"]
    assert sorted(format_scores(scores, "shuffled", rng)) == ["12.000", "2.000", "7.500"]
    assert format_scores(np.array([3.0, 3.0]), "minmax", rng) == ["1.000", "1.000"]


@pytest.mark.parametrize(
    ("answer", "order", "strict"),
    [
        ("[2] > [3] > [1]", [1, 2, 0], True),
        ("2 > 3 > 1", [1, 2, 0], True),
        ("[2, 3, 1]", [1, 2, 0], True),
        ("2, 3, 1.", [1, 2, 0], True),
        ("The order is [2] > [3] > [1]", [1, 2, 0], False),
        ("[2] > [3]", [1, 2, 0], False),
        ("[3] > [3] > [1]", [2, 0, 1], False),
        ("[9] > [2] > [0]", [1, 0, 2], False),
        ("[2] > [3] > [1] > [4]", [1, 2, 0], False),
        ("I cannot help with that.", [0, 1, 2], False),
        ("", [0, 1, 2], False),
    ],
)
def test_answers_are_parsed_strictly_and_repaired_by_rule(answer: str, order: list[int], strict: bool) -> None:
    assert parse_order(answer, 3) == (order, strict)


@pytest.mark.parametrize(
    ("text", "cut", "final"),
    [
        ("[2] > [1]\n", False, "[2] > [1]"),
        ("<think>[1] is nice, 4 too</think>\n[2] > [1]\n", False, "[2] > [1]"),
        ("[1] is nice, 4 too</think>\n[2] > [1]", False, "[2] > [1]"),  # the template had opened the reasoning
        ("<think>[2] is better than [1], so", True, None),
        ("<think>[2] is better than [1].", False, None),  # the model stopped in the middle
        ("<think>a</think>[2] > [1] <think>or [1]", False, None),
        ("Okay, [2] is better than [1], so", True, None),  # a server that removes the opening mark
        ("1. Passage 2 is better", True, None),
        ("Okay, [2] > [1]", False, "Okay, [2] > [1]"),
        ("[2] > [1] > [", True, "[2] > [1] > ["),  # a list that was cut is a list
        ("<think>a</think>[2] >", True, "[2] >"),
    ],
)
def test_unfinished_reasoning_is_no_answer(text: str, cut: bool, final: str | None) -> None:
    assert extract_final_answer(text, cut) == final


def rerank_with(generator: Any, settings: ListwiseSettings, count: int = 7) -> tuple[list[int], dict[str, Any]]:
    reranker = ListwiseLLMReranker(build_prompt_builder(generator, settings), settings)
    order, _ = reranker.rerank(CANDIDATES.take(slice(0, count)))
    return order.tolist(), reranker.collect_statistics()


def test_a_reasoning_model_gets_room_and_an_unfinished_thought_is_an_unanswered_query() -> None:
    thought = "<think>[3] is best, then [2] and [1]"
    generator = ScriptedGenerator(f"{thought}{CUT}", f"{thought}</think>[2] > [3] > [1]", reasoning_limit=900)
    order, facts = rerank_with(generator, ListwiseSettings(), 3)
    assert order == [0, 1, 2]
    assert (facts["unanswered"], facts["unfinished_reasoning"], facts["repaired"]) == (1, 1, 1)
    order, facts = rerank_with(generator, ListwiseSettings(), 3)
    assert order == [1, 2, 0]
    assert (facts["unanswered"], facts["unfinished_reasoning"], facts["repaired"]) == (0, 0, 0)
    assert generator.limits == [900, 900]
    guided = ScriptedGenerator("[1]", reasoning_limit=900)
    rerank_with(guided, ListwiseSettings(engine="vllm"), 3)
    assert guided.patterns == [""]  # the pattern of a list would forbid the reasoning
    listed = ScriptedGenerator(f"Well, 3 and 2{CUT}")
    assert rerank_with(listed, ListwiseSettings(), 3)[0] == [2, 1, 0]  # no reasoning model: repaired as before
    assert listed.limits == [24]


def test_only_vllm_gets_a_guided_decoding_pattern() -> None:
    form = build_order_pattern(12)
    assert re.fullmatch(form, " > ".join(f"[{number}]" for number in range(12, 0, -1)))
    assert re.fullmatch(build_order_pattern(1), "[1]")
    for wrong in ("[1] > [2]", " > ".join(["[13]"] * 12), " > ".join(["[0]"] * 12), "[1]" * 12):
        assert not re.fullmatch(form, wrong)
    for engine, forms in (("vllm", [build_order_pattern(7)]), ("transformers", [""]), ("endpoint", [""])):
        generator = ScriptedGenerator("[1]")
        ListwiseLLMReranker(
            build_prompt_builder(generator, settings := ListwiseSettings(engine=engine, window=0)), settings
        ).rerank(CANDIDATES)  # type: ignore[arg-type]
        assert generator.patterns == forms


def test_guided_answers_are_cached_separately() -> None:
    cached_generator = CachedGenerator(ScriptedGenerator("free", "held"))
    assert [
        cached_generator.generate("a", 5).text,
        cached_generator.generate("a", 5, "x").text,
        cached_generator.generate("a", 5).text,
    ] == [
        "free",
        "held",
        "free",
    ]


def test_windows_move_up_and_repairs_are_counted() -> None:
    generator = ScriptedGenerator("[3] > [1] > [2]", "nothing to say", "[2] > [1] > [3]")
    lists = ListwiseLLMReranker(
        build_prompt_builder(generator, settings := ListwiseSettings(window=3, step=2)), settings
    )
    order, scores = lists.rerank(CANDIDATES)
    # windows from the end: positions 4 5 6 -> 6 4 5, then 2 3 6 unchanged, then 0 1 2 -> 1 0 2
    assert order.tolist() == [1, 0, 2, 3, 6, 4, 5]
    assert np.all(np.diff(scores) < 0)
    facts = lists.collect_statistics()
    assert (facts["requests"], facts["repaired"], facts["unanswered"]) == (3, 1, 1)
    assert facts["repair_rate"] == pytest.approx(1 / 3, abs=1e-4)
    assert lists.sample()["answer"] == "[3] > [1] > [2]"


def test_fewer_candidates_than_the_window_need_one_request() -> None:
    generator = ScriptedGenerator("2 > 1 > 3")
    settings = ListwiseSettings(scores="raw")
    order, _ = ListwiseLLMReranker(build_prompt_builder(generator, settings), settings).rerank(
        CANDIDATES.take(slice(0, 3))
    )
    assert order.tolist() == [1, 0, 2]
    assert "[2] \nBM25 score: 7.250" in generator.prompts[0]


def test_control_orders_and_scores_are_drawn_once_per_query() -> None:
    def prompt(**changes: Any) -> str:
        generator = ScriptedGenerator("nothing")
        ListwiseLLMReranker(
            build_prompt_builder(generator, settings := ListwiseSettings(window=0, **changes)), settings
        ).rerank(CANDIDATES)
        return generator.prompts[0]

    assert prompt(order="shuffled") == prompt(order="shuffled") != prompt(order="shuffled", seed=2)
    lines = [line[4:] for line in prompt(order="shuffled").split("\n") if line.startswith("[")]
    assert sorted(lines) == sorted(DOCUMENTS)
    assert lines != list(DOCUMENTS)
    raw, control = prompt(scores="raw").split("\n"), prompt(scores="shuffled").split("\n")
    assert sorted(raw) == sorted(control)
    assert raw != control


def test_a_shuffled_order_is_mapped_back_to_positions() -> None:
    settings = ListwiseSettings(window=0, order="shuffled")
    prompt_builder = build_prompt_builder(ScriptedGenerator("no", "no"), settings)
    order, _ = ListwiseLLMReranker(prompt_builder, settings).rerank(CANDIDATES)
    shown_positions, documents, _ = prompt_builder.arrange_candidates(CANDIDATES)
    assert order.tolist() == shown_positions.tolist()  # an answer without an order keeps the order of the prompt
    assert documents == [DOCUMENTS[position] for position in shown_positions]


def test_a_prompt_longer_than_the_context_is_cut_equally_and_counted() -> None:
    documents = ["word " * 200] * 4
    settings = ListwiseSettings(cut=150, written=10)
    generator = ScriptedGenerator("[4] > [3] > [2] > [1]", context=300)
    lists = ListwiseLLMReranker(build_prompt_builder(generator, settings, documents), settings)
    lists.rerank(Candidates(0, "q", np.arange(4), np.zeros(4)))
    (prompt,) = generator.prompts
    assert 280 < len(prompt.split()) + 10 <= 300
    assert len({line.count("word") for line in prompt.split("\n") if line.startswith("[")}) == 1
    assert lists.collect_statistics()["prompts_cut"] == 1
    with pytest.raises(UsageError, match="is longer than the context"):
        ListwiseLLMReranker(build_prompt_builder(ScriptedGenerator(context=40), settings, documents), settings).rerank(
            Candidates(0, "q", np.arange(4), np.zeros(4))
        )


def test_pointwise_ranks_by_the_odds_of_yes_and_ties_keep_their_order() -> None:
    points = PointwiseLLMReranker(build_prompt_builder(ScriptedGenerator(), PointwiseSettings()))
    order, odds = points.rerank(CANDIDATES)
    assert order.tolist() == [2, 3, 0, 1, 4, 5, 6]
    assert odds.tolist() == [1, 1, 0, 0, 0, 0, 0]


def test_a_nan_score_names_its_document() -> None:
    class Lost(PointwiseLLMReranker):
        def rerank(self, candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
            return np.array([1, 0, 2]), np.array([0.3, np.nan, 0.1])

    actual = Ranking([np.array([8, 5, 6])], [np.array([3.0, 2.0, 1.0])])
    with pytest.raises(DataError, match=r"row 8 for query 'tea\?' is NaN or infinite"):
        rerank_queries(
            actual, ["tea?"], Lost(build_prompt_builder(ScriptedGenerator(), PointwiseSettings())), lambda: None
        )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=2048)


@pytest.fixture
def local_generator(model: Path) -> TransformersGenerator:
    return TransformersGenerator("tiny", model, "w", "float32", 2048, torch.device("cpu"))


@pytest.fixture(scope="module")
def reasoning_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose chat template opens the reasoning, as that of DeepSeek-R1's distillations does."""
    folder = tiny_models.build_model(tmp_path_factory.mktemp("models") / "thinker", max_position_embeddings=2048)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    opened = "<|im_start|>assistant\n<think>\n"
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "<|im_start|>assistant\n{% endif %}", f"{opened}{{% endif %}}"
    )
    tokenizer.save_pretrained(folder)
    return folder


def test_the_kind_of_a_model_decides_how_much_it_writes(
    reasoning_folder: Path, local_generator: TransformersGenerator
) -> None:
    assert local_generator.reasoning_limit == 0
    assert replace(local_generator, is_reasoning_model=True).reasoning_limit == 1024  # half of the context
    assert replace(local_generator, is_reasoning_model=True, context_length=131072).reasoning_limit == REASONING_TOKENS
    thinker = TransformersGenerator("thinker", reasoning_folder, "w", "float32", 2048, torch.device("cpu"))
    assert thinker.reasoning_limit == 1024  # by its template
    assert thinker.describe()["reasoning_limit"] == 1024
    assert "reasoning_limit" not in local_generator.describe()  # the ids of earlier records stay


def test_reasoning_that_the_template_opened_is_marked_and_closed_for_yes_and_no(
    reasoning_folder: Path, local_generator: TransformersGenerator
) -> None:
    thinker = TransformersGenerator("thinker", reasoning_folder, "w", "float32", 2048, torch.device("cpu"))
    answer = thinker.generate("Rank them.", 12)
    assert answer.text.startswith("<think>")
    assert answer.cut == (answer.answer_tokens == 12)
    assert extract_final_answer(answer.text, answer.cut) is None
    written = thinker.tokenizer.decode(thinker.tokenize_prompt("Rank them.", close_reasoning=True))
    assert written.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    (odds,) = thinker.score_yes_no(["Is it tea?"])
    assert odds.prompt_tokens == len(thinker.tokenize_prompt("Is it tea?", close_reasoning=True))
    plain = local_generator.tokenize_prompt("Rank them.")
    assert local_generator.tokenize_prompt("Rank them.", close_reasoning=True) == plain


def test_a_server_that_cuts_the_reasoning_gives_no_answer(
    server: local_server.LocalServer, task: Path, out: Path
) -> None:
    def cut(body: dict[str, Any]) -> local_server.Answer:
        choice = {"message": {"content": "Hmm, [2] beats [1], and"}, "finish_reason": "length"}
        return 200, {}, json.dumps({"choices": [choice]}).encode()

    server.answer = cut
    first_stage, listed = run_cells("run", "--model", "bm25", "--task", task, "--rerank", LISTWISE, "--out", out)
    assert read_ranking(first_stage) == read_ranking(listed)
    statistics = read_reranker_statistics(listed)
    assert statistics["unfinished_reasoning"] == statistics["unanswered"] == statistics["requests"] > 0


PROMPT = (
    "<|im_start|>system\nYou are a tiny helpful model.<|im_end|>\n<|im_start|>user\n{0}<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def test_generation_is_greedy(model: Path, local_generator: TransformersGenerator) -> None:
    transformers_model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(model).eval(),
        AutoTokenizer.from_pretrained(model),
    )
    ids = tokenizer(PROMPT.format("Rank them."), return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    with torch.inference_mode():
        while ids.shape[1] < start + 12 and ids[0, -1] != tokenizer.eos_token_id:
            ids = torch.cat((ids, transformers_model(ids).logits[:, -1:].argmax(-1)), dim=1)
    actual = local_generator.generate("Rank them.", 12)
    assert actual.text == tokenizer.decode(ids[0, start:], skip_special_tokens=True)
    assert (actual.prompt_tokens, actual.answer_tokens) == (start, ids.shape[1] - start)


def test_odds_come_from_the_logits_of_the_next_token(model: Path, local_generator: TransformersGenerator) -> None:
    transformers_model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(model).eval(),
        AutoTokenizer.from_pretrained(model),
    )
    prompts = ["Is it tea?", "Does the sun warm the sea? " * 9]
    words = (("yes", "Yes", " yes", " Yes"), ("no", "No", " no", " No"))
    first_tokens = [{tokenizer(word)["input_ids"][0] for word in group} for group in words]
    assert first_tokens[0] & first_tokens[1]  # " yes" and " no" share the token of the space, which must not count
    for prompt, answer in zip(prompts, local_generator.score_yes_no(prompts), strict=True):
        ids = tokenizer(PROMPT.format(prompt), return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            chance = transformers_model(ids).logits[0, -1].float().softmax(-1)
        yes, no = (
            float(chance[sorted(one)].sum())
            for one in (first_tokens[0] - first_tokens[1], first_tokens[1] - first_tokens[0])
        )
        assert answer.log_odds == pytest.approx(math.log(yes / no), abs=1e-4)
        assert answer.prompt_tokens == ids.shape[1]


def test_yes_no_prompts_that_do_not_fit_into_memory_are_scored_in_halves(
    local_generator: TransformersGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, sizes = [f"Is {name} a drink?" for name in ("tea", "a river", "coffee", "the north", "milk")], list[int]()
    expected, score = local_generator.score_yes_no(prompts), TransformersGenerator._score_rows

    def score_two(self: TransformersGenerator, rows: list[np.ndarray]) -> list[float]:
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return score(self, rows)

    monkeypatch.setattr(TransformersGenerator, "_score_rows", score_two)
    halved = local_generator.score_yes_no(prompts)
    assert (sizes[0], sum(size for size in sizes if size <= 2)) == (5, 5)
    assert [answer.prompt_tokens for answer in halved] == [answer.prompt_tokens for answer in expected]
    assert [answer.log_odds for answer in halved] == pytest.approx([answer.log_odds for answer in expected], abs=1e-5)


def test_answers_are_cached_and_no_request_is_sent_twice() -> None:
    generator = ScriptedGenerator("one", "two")
    cached_generator = CachedGenerator(generator)
    assert [
        cached_generator.generate("a", 5).text,
        cached_generator.generate("b", 5).text,
        cached_generator.generate("a", 5).text,
    ] == ["one", "two", "one"]
    assert (len(generator.prompts), cached_generator.cache_hits) == (2, 1)
    assert [answer.log_odds for answer in cached_generator.score_yes_no(["tea", "x"])] == [1.0, 0.0]
    assert [answer.log_odds for answer in CachedGenerator(generator).score_yes_no(["x", "tea", "coffee"])] == [
        0.0,
        1.0,
        1.0,
    ]
    assert generator.prompts == ["a", "b", "tea", "x", "coffee"]
    for file in cached_generator.folder.rglob("*.json"):
        file.write_bytes(b"{")  # a damaged cached answer is requested again
    generator.answers = ["three"]
    assert cached_generator.generate("a", 5).text == "three"


def answer_reversed(body: dict[str, Any]) -> str:
    count = body["messages"][0]["content"].count("\nBM25 score:")
    return " > ".join(f"[{number}]" for number in range(count, 0, -1))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[local_server.LocalServer]:
    monkeypatch.setattr(network, "FIRST_WAIT", 0.0)
    with local_server.start_server() as running:
        monkeypatch.setenv("RETBENCH_ENDPOINT", running.address)
        running.answer = local_server.answer_chat(answer_reversed)
        yield running


LISTWISE = "listwise:engine=endpoint,model=some-model,scores=raw"


def read_ranking(cell: dict[str, Any]) -> dict[str, list[str]]:
    run = saved_run.load_run(Path(cell["record"]))
    return run.ranking.to_document_ids(run.collection)


def read_reranker_statistics(cell: dict[str, Any]) -> dict[str, Any]:
    record = json.loads((Path(cell["record"]) / "record.json").read_text())
    actual: dict[str, Any] = record["cost"]["rerank"][-1]
    return actual


def test_a_server_reranks_a_run(
    server: local_server.LocalServer, task: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (task.parent / "retbench.toml").write_text(
        'currency = "EUR"\n[rates.some-model]\nread = 1000.0\nwritten = 10000.0\n'
    )
    monkeypatch.chdir(task.parent)
    first_stage, listed = run_cells("run", "--model", "bm25", "--task", task, "--rerank", LISTWISE, "--out", out)
    for query, actual in read_ranking(first_stage).items():
        assert read_ranking(listed)[query] == actual[::-1]
    count = len(server.requests)
    assert count == sum(len(actual) > 1 for actual in read_ranking(first_stage).values())
    assert server.requests[0]["temperature"] == 0
    assert "max_tokens" not in server.requests[0]
    statistics = read_reranker_statistics(listed)
    assert (statistics["requests"], statistics["read"], statistics["written"], statistics["repair_rate"]) == (
        count,
        100 * count,
        10 * count,
        0,
    )
    assert (statistics["price"], statistics["currency"]) == (pytest.approx(count * 0.2), "EUR")
    (folder,) = out.glob("custom/pantry/bm25/" + listed["settings_id"])
    assert server.address not in (folder / "record.json").read_text()
    sample = json.loads((folder / "sample.json").read_text())
    assert "BM25 score: " in sample["prompt"]
    assert sample["answer"].startswith("[")


def test_a_server_that_dies_in_the_middle_keeps_the_finished_queries(
    server: local_server.LocalServer, task: Path, out: Path
) -> None:
    line = ("run", "--model", "bm25", "--task", task, "--rerank", LISTWISE, "--out", out)
    server.faults = [server.answer, *[local_server.answer_with_error(500, "overloaded")] * 6]
    answer = run_command(*line, "--json")
    first_stage, failed = json.loads(answer.stdout)
    assert (first_stage["status"], failed["status"], answer.exit_code) == ("done", "failed", 1)
    assert "failed 6 times" in failed["error"]
    assert "listwise" in run_command("report", out).output
    request_count = len(server.requests)
    _, listed = run_cells(*line)
    statistics = read_reranker_statistics(listed)
    assert (statistics["found_again"], len(server.requests) - request_count) == (1, statistics["requests"] - 1)
    assert not list(out.rglob("*.failed.json"))


def test_a_killed_chain_of_rerankers_sends_no_request_twice(
    server: local_server.LocalServer, task: Path, tmp_path: Path
) -> None:
    """SIGKILL while each of the two rerankers waits for an answer; the third start gives the uninterrupted result."""
    out, cache = tmp_path / "killed", tmp_path / "cache"
    chain = ("--rerank", LISTWISE, "--rerank", LISTWISE.replace("raw", "none"))
    words = ["run", "--model", "bm25", "--task", str(task), *chain, "--out", str(out)]
    environment = {**os.environ, "RETBENCH_CACHE": str(cache), "RETBENCH_ENDPOINT": server.address}

    def waiting(reached: threading.Event, gone: threading.Event) -> Callable[[dict[str, Any]], local_server.Answer]:
        def wait(body: dict[str, Any]) -> local_server.Answer:
            reached.set()
            gone.wait(600)
            return 500, {}, b"the client is gone"

        return wait

    for answered in (1, 2):  # the second start gets two more answers: the first reranker ends, the second begins
        reached, gone = threading.Event(), threading.Event()
        server.faults = [*[server.answer] * answered, waiting(reached, gone)]
        process = subprocess.Popen([sys.executable, "-m", "retbench", "-q", *words], env=environment)
        assert reached.wait(600)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        gone.set()
    assert "BM25 score" not in server.requests[-1]["messages"][0]["content"]  # it was a request of the second reranker
    server.faults = []
    ended = subprocess.run(
        [sys.executable, "-m", "retbench", *words, "--json"], env=environment, capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    cells = json.loads(ended.stdout)
    assert [len(cell["rerank"]) for cell in cells] == [0, 1, 2]
    prompts = [json.dumps(body, sort_keys=True) for body in server.requests]
    lost = 2  # each kill lost the one answer it waited for
    assert len(prompts) - len(set(prompts)) == lost
    undisturbed = run_cells(*words[:-1], tmp_path / "whole")
    assert [read_ranking(cell) for cell in cells] == [read_ranking(cell) for cell in undisturbed]


def test_a_dry_run_shows_the_first_prompt_of_every_reranker_and_sends_no_request(
    server: local_server.LocalServer, task: Path, out: Path
) -> None:
    chain = ("--rerank", LISTWISE, "--rerank", "pointwise:engine=endpoint,model=some-model", "--rerank", "ql")
    line = ("run", "--model", "bm25", "--task", task, "--out", out, *chain)
    (plan,) = run_cells(*line, "--dry-run")
    listed, pointwise, likely = plan["rerank"]
    assert "has not been run" in listed["candidates"]
    assert small_collection.DOCUMENTS[0][2][:20] in listed["prompt"]
    assert "Answer only with yes or no" in pointwise["prompt"]
    assert "prompt" not in likely
    assert server.requests == []
    run_cells(*line[:9])
    (plan,) = run_cells(*line, "--dry-run")
    assert plan["rerank"][0]["candidates"] == "the run on disk"
    assert plan["rerank"][0]["prompt"] == server.requests[0]["messages"][0]["content"]
    output = run_command(*line, "--dry-run").output
    assert "listwise:engine=endpoint" in output
    assert "passages above by how well" in output


@pytest.mark.parametrize("reply", ["I would rather not.", "", None, "[1] [1] [1] 77"])
def test_an_unparsable_answer_keeps_the_order_and_is_counted(
    server: local_server.LocalServer, task: Path, out: Path, reply: str | None
) -> None:
    server.answer = local_server.answer_chat(lambda body: reply)
    first_stage, listed = run_cells("run", "--model", "bm25", "--task", task, "--rerank", LISTWISE, "--out", out)
    assert read_ranking(first_stage) == read_ranking(listed)
    assert read_reranker_statistics(listed)["repair_rate"] == 1.0


@pytest.mark.parametrize(
    ("fault", "words", "code"),
    [
        (local_server.answer_with_error(401), "answered 401", 3),
        (local_server.answer_with_error(400, "too long"), "answered 400: too long", 2),
        (lambda body: (200, {}, b"not json"), "failed 6 times", 5),
        (lambda body: (200, {}, b'{"choices": []}'), "failed 6 times", 5),
        (local_server.answer_half, "failed 6 times", 5),
    ],
)
def test_a_server_that_misbehaves_is_named(
    server: local_server.LocalServer, task: Path, out: Path, fault: Any, words: str, code: int
) -> None:
    server.answer = (
        fault
        if fault is not local_server.answer_half
        else lambda body: local_server.answer_half({"input": ["x"], "model": "m"})
    )
    (cell,) = run_cells("run", "--model", "bm25", "--task", task, "--out", out)
    answer = run_command("rerank", cell["settings_id"], "--with", LISTWISE, "--out", out)
    assert (answer.exit_code, words in answer.output) == (code, True), answer.output


def test_odds_from_a_server_need_its_log_probabilities(server: local_server.LocalServer, task: Path, out: Path) -> None:
    def likely(body: dict[str, Any]) -> local_server.Answer:
        mentions_tea = "tea" in body["messages"][0]["content"].lower()
        tokens = [{"token": " Yes", "logprob": -0.1 if mentions_tea else -9999.0}, {"token": "no", "logprob": -2.0}]
        choice = {"message": {"content": "x"}, "logprobs": {"content": [{"top_logprobs": tokens}]}}
        return 200, {}, json.dumps({"choices": [choice]}).encode()

    (cell,) = run_cells("run", "--model", "bm25", "--task", task, "--out", out)
    reranker = "pointwise:engine=endpoint,model=some-model"
    refused = run_command("rerank", cell["settings_id"], "--with", reranker, "--out", out)
    assert (refused.exit_code, "no log-probabilities" in refused.output) == (2, True)
    server.answer = likely
    _, pointwise = run_cells("rerank", cell["settings_id"], "--with", reranker, "--out", out)
    assert read_ranking(pointwise)["q1"][0] == "tea"


@pytest.mark.parametrize(
    ("reranker", "words", "code"),
    [
        ("listwise", "bm25 is not a language model", 2),
        ("listwise:model=bm25", "bm25 is a lexical model and cannot generate", 2),
        ("listwise:engine=endpoint", "needs the name of a model", 2),
        ("listwise:engine=endpoint,model=x", "no endpoint address is set", 3),
        ("listwise:scores=logits", "is not allowed", 2),
        ("listwise:window=1", "cannot move a document up", 2),
        ("pointwise:cut=0", "cut=0 must be at least 1", 2),
    ],
)
def test_invalid_reranker_settings_are_refused(task: Path, out: Path, reranker: str, words: str, code: int) -> None:
    (cell,) = run_cells("run", "--model", "bm25", "--task", task, "--out", out)
    answer = run_command("rerank", cell["settings_id"], "--with", reranker, "--out", out)
    assert (answer.exit_code, words in answer.output) == (code, True), answer.output


def test_a_local_model_reranks_listwise_and_pointwise(model: Path, task: Path, out: Path) -> None:
    line = ("run", "--model", "bm25", "--task", task, "--out", out)
    for name in ("pointwise", "listwise"):
        first_stage, cell = run_cells(*line, "--rerank", f"{name}:model={model},scores=percent")
        assert cell["rerank"] == [f"{name}:model=tiny,scores=percent"]
        for query, actual in read_ranking(first_stage).items():
            assert sorted(read_ranking(cell)[query]) == sorted(actual)
        assert read_reranker_statistics(cell)["read"] > 0
        assert str(model) not in (Path(cell["record"]) / "record.json").read_text()


def test_the_scores_of_another_reranker_are_not_called_bm25(model: Path, task: Path, out: Path) -> None:
    from retbench.pipelines.reranking.llm import name_scores

    first_stage, moved = run_cells(
        "run", "--model", "bm25", "--task", task, "--out", out, "--rerank", f"vectors:model={model}"
    )
    assert name_scores(saved_run.load_run(Path(first_stage["record"]))) == "BM25 score"
    reranked = saved_run.load_run(Path(moved["record"]))
    assert name_scores(reranked) == "search score"
    assert name_scores(
        replace(reranked, record=replace(reranked.record, settings={"retriever": "dense", "rerankers": []}))
    ) == ("search score")
