"""Query likelihood: lexical, computed by hand; with a bottleneck, position by position."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import retbench
from retbench.cards import catalog
from retbench.cards.model import LexicalSettings
from retbench.cards.recipe import BatchSettings, QueryLikelihoodTraining, Recipe
from retbench.cards.reranker_settings import QueryLikelihoodSettings, parse_reranker
from retbench.engines.padding import pad_rows
from retbench.engines.tokenizers import load_tokenizer
from retbench.pipelines.studies.cells import list_study_cells
from retbench.pipelines.studies.training import build_recipe, format_model_name
from retbench.retrievers.query_likelihood import DirichletIndex
from retbench.system import toml_parser
from retbench.training import lora, query_likelihood
from retbench.training.attention_stop import build_attention_mask
from retbench.training.llm_ql_pretraining import STAGE_FOLDER
from retbench.training.query_likelihood import QueryLikelihoodModel, QueryLikelihoodObjective, corrupt_text
from retbench.training.training_set import TrainingQuery, TrainingSet
from tests import small_collection, tiny_models

PLAIN = LexicalSettings(variant="dirichlet", mu=3.0, stopwords="en")


def test_dirichlet_smoothing_computed_by_hand() -> None:
    documents = ["red apple", "green apple apple pear", "plum pear"]
    found = DirichletIndex(PLAIN, documents).search(["apple pear kiwi", "plum plum"], 3)
    total, mu = 8, 3.0  # kiwi stands nowhere

    def likelihood(apple: int, pear: int, length: int) -> float:
        smoothed = (apple + mu * 3 / total) / (length + mu), (pear + mu * 2 / total) / (length + mu)
        return sum(map(math.log, smoothed))

    by_hand = {0: likelihood(1, 0, 2), 1: likelihood(2, 1, 4), 2: likelihood(0, 1, 2)}
    assert found.rows[0].tolist() == sorted(by_hand, key=lambda row: -by_hand[row])
    assert found.scores[0].tolist() == pytest.approx(sorted(by_hand.values(), reverse=True))
    assert found.rows[1].tolist() == [2]  # the others share no word
    assert found.scores[1].tolist() == pytest.approx([2 * math.log((1 + mu / total) / (2 + mu))])


def test_a_query_of_unknown_words_finds_nothing() -> None:
    assert DirichletIndex(PLAIN, ["red apple"]).search(["kiwi"], 3).rows[0].tolist() == []


def test_lexical_query_likelihood_is_run_by_name(tmp_path: Path) -> None:
    task = str(small_collection.write_folder(tmp_path / "pantry"))
    cell, bm25 = retbench.evaluate(["query-likelihood", "bm25"], tasks=[task], out=tmp_path / "results")
    assert (cell.status, cell.method, bm25.method) == ("done", "query-likelihood", "bm25")
    assert cell.settings_id != bm25.settings_id
    assert "mu" not in json.loads((Path(str(bm25.record)) / "record.json").read_text())["settings"]["lexical"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_model(tmp_path_factory.mktemp("models") / "tiny", num_hidden_layers=1)


def load_model(folder: Path, **settings: Any) -> QueryLikelihoodModel:
    recipe = catalog.find_recipe("llm-ql")
    assert recipe.query_likelihood
    wanted = replace(recipe.query_likelihood, **settings)
    model = lora.load_model(folder, replace(recipe, dtype="float32", lora=None), head=True)
    return QueryLikelihoodModel(model.eval(), load_tokenizer(folder), wanted, "float32", torch.device("cpu"))


DOCUMENTS = ["The heart pumps blood.", "Bread is baked from flour, water, salt and yeast."]
QUERIES = ["what does the heart do", "bread"]


def test_an_input_is_prompt_bottleneck_query_and_end(folder: Path) -> None:
    made = load_model(folder)
    line = made.tokenize_pairs(DOCUMENTS, QUERIES)[0]
    eos = made.tokenizer.eos_token_id
    assert (line.ids[line.bottleneck], line.ids[-1]) == (eos, eos)
    prompt = (
        "Instruct: Given a retrieved passage, summarize the passage.\nPassage: The heart pumps blood.\nSummarization: "
    )
    assert made.tokenizer.decode(line.ids[: line.bottleneck].tolist()) == prompt
    assert made.tokenizer.decode(line.ids[line.bottleneck + 1 : -1].tolist()) == QUERIES[0]


def test_stage_1_cuts_the_whole_prompt_and_then_adds_the_bottleneck(folder: Path) -> None:
    """The authors' code: 200 tokens of the filled prompt, then the end-of-sequence token, then the query."""
    recipe = catalog.find_recipe("llm-ql")
    assert recipe.query_likelihood
    made = load_model(folder)
    text = " ".join(f"word{number}" for number in range(400))
    row = made.tokenize_pairs([text], QUERIES[:1])[0]
    prompt = f"Instruct: Given a retrieved passage, summarize the passage.\nPassage: {text}\nSummarization: "
    cut = made.tokenizer(prompt)["input_ids"][:200]
    assert (recipe.query_likelihood.cut, row.bottleneck) == ("tokens", 200)
    assert row.ids[:201].tolist() == [*cut, made.tokenizer.eos_token_id]


def test_a_model_of_before_the_field_keeps_its_cut(folder: Path) -> None:
    """The lengths of earlier trainings limit the document, and the prompt stays whole."""
    stored = {"document": "Passage: {text}\nSummarization: ", "lengths": {"query": 8, "document": 10}}
    location = toml_parser.CardLocation(Path("card.toml"), "")
    settings: QueryLikelihoodTraining = toml_parser.convert_value(QueryLikelihoodTraining, stored, location)
    made = replace(load_model(folder), settings=settings)
    read = made.tokenizer.decode(made.tokenize_pairs(["one two three " * 20], ["q"])[0].ids.tolist())
    assert "Summarization: " in read
    assert read.count("one") < 20


@pytest.mark.parametrize("stop", [True, False])
def test_the_attention_mask_position_by_position(folder: Path, stop: bool) -> None:
    """With one layer, a state depends on exactly the positions it attends to: the gradient shows which."""
    made = load_model(folder, attention_stop=stop)
    lines = made.tokenize_pairs(DOCUMENTS, QUERIES)
    padded, lengths = pad_rows([line.ids for line in lines])
    mask = build_attention_mask(lengths, [line.bottleneck for line in lines], stop)
    embedded = made.model.get_input_embeddings()(padded).detach().requires_grad_()
    output = made.model(inputs_embeds=embedded, attention_mask=mask, use_cache=False).logits
    for row, line in enumerate(lines):
        size = len(line.ids)
        for place in range(0, size, 3):
            (gradient,) = torch.autograd.grad(output[row, place].sum(), embedded, retain_graph=True)
            seen = (gradient[row].abs().sum(1) > 0)[:size].tolist()
            barred = line.bottleneck if stop and place > line.bottleneck else 0
            assert seen == [barred <= other <= place for other in range(size)]
            assert not gradient[1 - row].any()


def test_padding_and_batch_do_not_change_a_likelihood(folder: Path) -> None:
    made = load_model(folder)
    together = made.compute_log_likelihoods(DOCUMENTS, QUERIES, 10_000)
    alone = [made.compute_log_likelihoods([d], [q], 10_000)[0] for d, q in zip(DOCUMENTS, QUERIES, strict=True)]
    assert together.tolist() == pytest.approx(alone, abs=1e-4)


def test_logits_are_computed_only_from_the_first_query_token(folder: Path) -> None:
    made = load_model(folder)
    lines = made.tokenize_pairs(DOCUMENTS, QUERIES)
    (whole, ids), (part, behind) = made.compute_logits(lines), made.compute_logits(lines, 7)
    assert part.shape[1] == whole.shape[1] - 7
    assert torch.equal(ids[:, 7:], behind)
    assert torch.allclose(whole[:, 7:], part, atol=1e-5)


def test_a_likelihood_is_the_sum_over_the_querys_tokens_and_the_end(folder: Path) -> None:
    made = load_model(folder)
    line = made.tokenize_pairs(DOCUMENTS, QUERIES)[0]
    logits, _ = made.compute_logits([line])
    spoken = logits[0].detach().log_softmax(-1)
    by_hand = sum(float(spoken[place, line.ids[place + 1]]) for place in range(line.bottleneck, len(line.ids) - 1))
    assert made.compute_log_likelihoods(DOCUMENTS[:1], QUERIES[:1], 10_000)[0] == pytest.approx(by_hand, abs=1e-5)


def test_pairs_that_do_not_fit_into_memory_run_in_halves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = load_model(folder)
    expected, compute = made.compute_log_likelihoods(DOCUMENTS, QUERIES, 10_000), QueryLikelihoodModel.compute_logits

    def compute_one(self: QueryLikelihoodModel, rows: Any, first: int = 0) -> Any:
        if len(rows) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(self, rows, first)

    monkeypatch.setattr(QueryLikelihoodModel, "compute_logits", compute_one)
    assert made.compute_log_likelihoods(DOCUMENTS, QUERIES, 10_000).tolist() == pytest.approx(
        expected.tolist(), abs=1e-4
    )


def test_a_training_pass_is_limited_by_its_logits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient is the same sum, in more passes."""
    made = load_model(folder)
    passes: list[int] = []
    settings = replace(made.settings, batch=BatchSettings(8, 8, max_tokens=10_000))
    query = [TrainingQuery(text, (row,), ()) for row, text in enumerate(QUERIES)]
    objective = QueryLikelihoodObjective(replace(made, settings=settings), TrainingSet("s", query, DOCUMENTS, "f"), 1)
    loss, tokens = objective.backward(0)
    expected = {name: weight.grad.clone() for name, weight in made.model.named_parameters() if weight.grad is not None}
    made.model.zero_grad()
    compute = QueryLikelihoodModel.compute_logits
    monkeypatch.setattr(query_likelihood, "LOGIT_BYTES", 14 * tiny_models.VOCABULARY * 40)

    def count_rows(self: QueryLikelihoodModel, rows: Any, first: int = 0) -> Any:
        passes.append(len(rows))
        return compute(self, rows, first)

    monkeypatch.setattr(QueryLikelihoodModel, "compute_logits", count_rows)
    assert objective.backward(0) == (pytest.approx(loss, abs=1e-5), tokens)
    assert len(passes) == 2
    for name, weight in made.model.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad, expected[name], atol=1e-5, rtol=1e-4)


def test_products_in_bfloat16_are_another_setting(folder: Path) -> None:
    exact = load_model(folder)
    rounded = replace(exact, dtype="bfloat16")
    scores = [model.compute_log_likelihoods(DOCUMENTS, QUERIES, 10_000) for model in (exact, rounded)]
    assert scores[1].tolist() != scores[0].tolist()
    assert scores[1].tolist() == pytest.approx(scores[0].tolist(), rel=0.02)
    assert parse_reranker("likelihood:dtype=bfloat16").settings == QueryLikelihoodSettings(dtype="bfloat16")


def test_corruption_removes_its_ratio_of_words() -> None:
    text = " ".join(f"w{n}" for n in range(2000))
    gone = corrupt_text(text, 0.6, "_", (1, 0, 7)).split()
    assert len(gone) == 2000
    assert 0.57 < gone.count("_") / 2000 < 0.63
    assert corrupt_text(text, 0.6, "_", (1, 0, 7)).split() == gone
    assert corrupt_text("a  b", 1.0, "_", (1,)) == "_ _"
    assert corrupt_text("a  b", 0.0, "_", (1,)) == "a  b"  # as in the authors' code, which then changes nothing


def test_the_study_compares_with_the_same_recipe_without_stage_1() -> None:
    """The ablations differ in stage 1 alone, and the rankings by query likelihood use the model of the full method."""
    stages = {stage.name: stage for stage in catalog.find_study("llm-ql").stages}
    recipes = {}
    for name in ("contrast-only", "full", "no-attention-stop", "no-corruption"):
        cell = next(iter(list_study_cells(catalog.find_study("llm-ql"), stages[name])))
        recipes[name] = build_recipe(stages[name], cell)
    full = recipes["full"]
    assert isinstance(full, Recipe)
    assert recipes["contrast-only"] == replace(full, query_likelihood=None)
    assert full.query_likelihood
    without_stop = replace(full.query_likelihood, attention_stop=False)
    assert recipes["no-attention-stop"] == replace(full, query_likelihood=without_stop)
    (reranker,) = stages["rank-by-llm-ql"].options["rerank"]
    trained = format_model_name(catalog.find_study("llm-ql"), stages["full"], cell)
    assert parse_reranker(reranker).settings == QueryLikelihoodSettings(f"{trained}-{STAGE_FOLDER}", 100)
    assert stages["rank-by-word-ql"].tasks == stages["rank-by-llm-ql"].tasks


def compute_author_losses(model: Any, prompt: list[int], query: list[int], eos: int, length: int) -> torch.Tensor:
    """The losses of one pair in the layout of the authors' code (ql-learning/data.py and modeling.py), by token.

    The prompt is padded on the left to a fixed length, the bottleneck follows at that position, then the query. The
    causal mask forbids every later position to see what stands before the bottleneck.
    """
    padding = length - len(prompt)
    ids = torch.tensor([[0] * padding + prompt + [eos] + query])
    size, lowest = ids.shape[1], torch.finfo(torch.float32).min
    mask = torch.full((size, size), lowest).triu(1)
    mask[:, :padding] = lowest
    mask[length + 1 :, :length] = lowest
    mask[torch.arange(padding), torch.arange(padding)] = 0  # rows that see nothing; their losses are not counted
    positions = torch.arange(size)[None]
    logits = model(input_ids=ids, attention_mask=mask[None, None], position_ids=positions, use_cache=False).logits
    losses = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")
    return losses[padding:]  # without the first token of the prompt, which is predicted from padding there


def test_the_losses_of_stage_1_are_those_of_the_authors_layout(folder: Path) -> None:
    made = load_model(folder)
    row = made.tokenize_pairs(DOCUMENTS, QUERIES)[1]
    prompt, query = row.ids[: row.bottleneck].tolist(), row.ids[row.bottleneck + 1 :].tolist()
    with torch.no_grad():
        expected = compute_author_losses(made.model, prompt, query, made.tokenizer.eos_token_id, len(prompt) + 13)
    logits, ids = made.compute_logits([row])
    losses = torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none")
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-5)
    pair = TrainingSet("s", [TrainingQuery(QUERIES[1], (0,), ())], DOCUMENTS[1:], "f")
    settings = replace(made.settings, corruption_ratio=0.0, batch=BatchSettings(1, 1))
    loss, tokens = QueryLikelihoodObjective(replace(made, settings=settings), pair, 1).backward(0)
    assert (loss, tokens) == (pytest.approx(float(expected.mean()), abs=1e-5), len(row.ids))
