"""Cross-encoders as rerankers: scores against sentence-transformers and a plain loop, limits, records, refusals."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from retbench.cards.published_cross_encoder import read_pair_limit, require_cross_encoder
from retbench.encoders.batch_plan import BatchPlan
from retbench.encoders.cross_encoder import ClassifierCrossEncoder, CrossEncoder, load_cross_encoder
from retbench.encoders.pair_tokenizers import load_pair_tokenizer
from retbench.errors import DataError, InapplicableError
from retbench.pipelines.runs import saved_run
from retbench.training.teachers import add_teacher_scores
from retbench.training.training_data import TrainingRequest, load_training_set
from tests import small_collection, tiny_models
from tests.test_run import run_cells, run_command
from tests.test_train_loop import RECIPE

QUERY = "how to brew a hot drink"
DOCUMENTS = [*tiny_models.SENTENCES[:9], "", "water and tea " * 60]
LIMIT = 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_cross_encoder(tmp_path_factory.mktemp("cross") / "tiny-cross", model_max_length=LIMIT)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that copies the folder and changes fields of its config.json."""

    def copy_and_change(**changes: Any) -> Path:
        target = tmp_path / "changed"
        shutil.copytree(folder, target)
        edit_json(target / "config.json", **changes)
        return target

    return copy_and_change


def edit_json(file: Path, **changes: Any) -> None:
    stored = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**stored, **changes}))


def score(folder: Path, max_length: int | None = LIMIT, max_tokens: int = 10_000) -> np.ndarray:
    cross_encoder = load(folder, max_length)
    return cross_encoder.score_pairs(cross_encoder.pair_tokenizer.tokenize_pairs(QUERY, DOCUMENTS), max_tokens)


def load(folder: Path, max_length: int | None = LIMIT) -> CrossEncoder:
    return load_cross_encoder(folder, load_pair_tokenizer(folder, max_length), "float32", torch.device("cpu"))


def score_plainly(folder: Path, documents: list[str], max_length: int = LIMIT, query: str = QUERY) -> np.ndarray:
    """Score with transformers alone, one pair at a time."""
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    scores = []
    for document in documents:
        pair = tokenizer([query], [document], truncation=True, max_length=max_length, return_tensors="pt")
        with torch.inference_mode():
            scores.append(float(model(**pair).logits[0, 0]))
    return np.array(scores)


@pytest.mark.parametrize("layout", ["plain", "saved by sentence-transformers", "decoder"])
def test_scores_are_those_of_sentence_transformers(folder: Path, tmp_path: Path, layout: str) -> None:
    """Its own scores are the sigmoid of the logits; ties of the sigmoid in float32 are no ties here."""
    library = pytest.importorskip("sentence_transformers")
    if layout == "decoder":
        folder = tiny_models.build_decoder_classifier(tmp_path / "decoder")
    reference = library.CrossEncoder(str(folder), device="cpu", max_length=LIMIT)
    pairs = [(QUERY, document) for document in DOCUMENTS]
    if layout == "saved by sentence-transformers":
        reference.save(str(tmp_path / "saved"))
        folder = tmp_path / "saved"
    logits = reference.predict(pairs, activation_fn=torch.nn.Identity(), batch_size=4)
    scores = score(folder, max_tokens=200)
    assert len(set(np.round(logits, 3))) > 5  # texts matter
    np.testing.assert_allclose(scores, logits, atol=1e-4)
    np.testing.assert_allclose(1 / (1 + np.exp(-scores)), reference.predict(pairs), atol=1e-4)


def test_scores_do_not_depend_on_batches(folder: Path) -> None:
    plain = score_plainly(folder, DOCUMENTS)
    for max_tokens in (1, 150, 10_000):
        np.testing.assert_allclose(score(folder, max_tokens=max_tokens), plain, atol=1e-5)


def test_a_batch_that_does_not_fit_is_computed_in_halves(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, compute, sizes = score(folder), ClassifierCrossEncoder._compute_logits, []

    def compute_two(self: ClassifierCrossEncoder, pairs: Any, rows: np.ndarray) -> np.ndarray:
        sizes.append(len(rows))
        if len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(self, pairs, rows)

    monkeypatch.setattr(ClassifierCrossEncoder, "_compute_logits", compute_two)
    np.testing.assert_allclose(score(folder), expected, atol=1e-5)
    assert sizes[0] == len(DOCUMENTS)


def test_batches_hold_at_most_the_tokens(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cross_encoder, batches = load(folder), list[np.ndarray]()
    pairs = cross_encoder.pair_tokenizer.tokenize_pairs(QUERY, DOCUMENTS)
    cut = BatchPlan.iterate_batches
    monkeypatch.setattr(
        BatchPlan, "iterate_batches", lambda plan, shard: (batches.append(b) or b for b in cut(plan, 0))
    )
    cross_encoder.score_pairs(pairs, 200)
    padded = [len(batch) * int(pairs.lengths[batch].max()) for batch in batches]
    assert max(padded) <= 200
    assert sorted(np.concatenate(batches)) == list(range(len(DOCUMENTS)))


def test_a_long_pair_is_cut_and_counted(folder: Path) -> None:
    pairs = load_pair_tokenizer(folder, LIMIT).tokenize_pairs(QUERY, DOCUMENTS)
    whole = load_pair_tokenizer(folder, None).tokenize_pairs(QUERY, DOCUMENTS)
    assert pairs.is_cut == [length > LIMIT for length in whole.lengths]
    assert pairs.is_cut[-1]
    assert pairs.lengths.max() == LIMIT


# A run


def read_json(cell: dict[str, Any], name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(cell["record"]) / name).read_text())
    return content


def test_a_run_orders_candidates_by_the_score(folder: Path, task: Path, out: Path) -> None:
    line = ("run", "--model", "bm25", "--task", task, "--out", out, "--rerank", f"cross:model={folder},depth=5")
    first_stage, reranked = run_cells(*line)
    assert reranked["rerank"] == ["cross:depth=5,model=tiny-cross"]
    texts = {name: f"{title} {text}".strip() for name, title, text in small_collection.DOCUMENTS}
    before, after = (saved_run.load_run(Path(cell["record"])) for cell in (first_stage, reranked))
    rankings = zip(
        small_collection.QUERIES, *(run.ranking.to_document_ids(run.collection).values() for run in (before, after)),
        strict=False,
    )  # fmt: skip
    compared = 0
    for (_, query), old, new in rankings:
        scores = dict(zip(old[:5], score_plainly(folder, [texts[name] for name in old[:5]], query=query), strict=True))
        assert new[:5] == sorted(old[:5], key=lambda name: -scores[name])
        assert new[5:] == old[5:]
        compared += len(old[:5])
    record = read_json(reranked, "record.json")
    settings = record["settings"]["rerankers"][0]
    assert (settings["max_length"], settings["dtype"], len(settings["weights"])) == (LIMIT, "float32", 64)
    facts = record["cost"]["rerank"][0]
    assert (facts["pairs"], facts["pairs_cut"]) == (compared, 0)
    assert facts["read"] > facts["pairs"]
    assert record["cards"]["rerankers"][0]["kind"] == "cross-encoder"
    assert str(folder) not in json.dumps(record)
    sample = read_json(reranked, "sample.json")
    assert sample["prompt"].count("how to brew a hot drink") == 1
    assert AutoTokenizer.from_pretrained(folder).decode(sample["ids"]) == sample["prompt"]
    (_, again) = run_cells(*line)
    assert again["cached"]


def test_a_dry_run_shows_the_first_pair(folder: Path, task: Path, out: Path) -> None:
    line = ("run", "--model", "bm25", "--task", task, "--out", out, "--rerank", f"cross:model={folder}")
    *_, cell = run_cells(*line)
    (plan,) = run_cells(*line, "--dry-run")
    sample = read_json(cell, "sample.json")
    assert [plan["rerank"][0][name] for name in ("prompt", "ids")] == [sample["prompt"], sample["ids"]]
    assert "score" not in plan["rerank"][0]


def test_an_option_makes_another_record(folder: Path, task: Path, out: Path) -> None:
    line = ("run", "--model", "bm25", "--task", task, "--out", out, "--rerank")
    options = ("", ",max_length=40", ",dtype=bfloat16", ",depth=3")
    assert len({run_cells(*line, f"cross:model={folder}{option}")[1]["settings_id"] for option in options}) == 4


def test_a_cross_encoder_is_no_embedder(folder: Path, task: Path, out: Path, tmp_path: Path) -> None:
    """Saved by sentence-transformers, the folder says what it is; pooled states would score another model."""
    library = pytest.importorskip("sentence_transformers")
    library.CrossEncoder(str(folder), device="cpu").save(str(tmp_path / "saved"))
    answer = run_command("run", "--model", tmp_path / "saved", "--task", task, "--out", out)
    assert answer.exit_code == 4
    assert "is a cross-encoder" in answer.output
    assert "--rerank cross:model=" in answer.output
    as_weights = run_command(
        "run", "--model", "minilm-l6", "--weights", tmp_path / "saved", "--task", task, "--out", out
    )
    assert "is a cross-encoder" in as_weights.output
    training = run_command("finetune", task, "--model", tmp_path / "saved", "--recipe", "quick")
    assert "is a cross-encoder" in training.output


# Refusals


def rerank(task: Path, out: Path, model: Path | str) -> str:
    """Rerank, and return the output in one line."""
    line = ("run", "--model", "bm25", "--task", task, "--out", out, "--rerank", f"cross:model={model}")
    return " ".join(run_command(*line).output.split())


def test_several_labels_have_no_single_score(tmp_path: Path) -> None:
    model = tiny_models.build_cross_encoder(tmp_path / "nli", num_labels=3)
    with pytest.raises(InapplicableError, match="has 3 labels"):
        require_cross_encoder(model)


def test_a_decoder_without_classification_head_is_refused(model: Path, task: Path, out: Path) -> None:
    output = rerank(task, out, model)
    assert "has no classification head" in output
    assert "pointwise:model=NAME" in output


def test_a_missing_head_is_refused(copy: Callable[..., Path]) -> None:
    """transformers would fill it with random numbers."""
    changed = copy()
    stored = load_file(changed / "model.safetensors")
    save_file({name: x for name, x in stored.items() if "classifier" not in name}, changed / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    with pytest.raises(DataError, match=r"has no classifier\.bias, classifier\.weight"):
        load(changed)


def test_a_cross_encoder_needs_a_name(task: Path, out: Path) -> None:
    answer = run_command("run", "--model", "bm25", "--task", task, "--out", out, "--rerank", "cross")
    assert "has no model" in answer.output
    assert "is a lexical model" in rerank(task, out, "bm25")


def test_weights_that_are_not_here(task: Path, out: Path) -> None:
    output = rerank(task, out, "ms-marco-minilm-l6-v2")
    assert "the weights of ms-marco-minilm-l6-v2" in output
    assert "retbench fetch ms-marco-minilm-l6-v2" in output


def test_a_limit_beyond_the_context_window_is_refused(folder: Path, task: Path, out: Path) -> None:
    assert "has 128 tokens" in rerank(task, out, f"{folder},max_length=129")


@pytest.mark.parametrize(
    "changes",
    [
        {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Hardshrink"}},
        {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Hardshrink"},
    ],
)
def test_an_activation_that_changes_the_order_is_refused(copy: Callable[..., Path], changes: dict[str, Any]) -> None:
    with pytest.raises(InapplicableError, match="its activation is Hardshrink"):
        require_cross_encoder(copy(**changes))


def test_activations_that_keep_the_order_are_accepted(copy: Callable[..., Path]) -> None:
    require_cross_encoder(copy(sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"}))


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        (
            "config_sentence_transformers.json",
            {"prompts": {"q": "query: "}, "default_prompt_name": "q"},
            "has a prompt, 'query: '",
        ),
        ("sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case"),
        ("sentence_bert_config.json", {"transformer_task": "text-generation"}, "task is text-generation"),
        (
            "sentence_bert_config.json",
            {"modality_config": {"message": {"format": "structured"}}},
            "texts in parts",
        ),
        ("sentence_bert_config.json", {"processing_kwargs": {"text": {}}}, "the argument text"),
    ],
)
def test_what_a_folder_asks_for_and_is_not_followed_is_refused(
    copy: Callable[..., Path], file: str, content: dict[str, Any], problem: str
) -> None:
    changed = copy()
    edit_json(changed / file, **content)
    with pytest.raises(InapplicableError, match=problem):
        require_cross_encoder(changed)


def test_modules_after_the_classifier_are_refused(copy: Callable[..., Path]) -> None:
    changed = copy()
    names = ("sentence_transformers.models.Transformer", "sentence_transformers.models.Dense")
    modules = [{"idx": place, "name": str(place), "path": "", "type": name} for place, name in enumerate(names)]
    (changed / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InapplicableError, match="its modules are Transformer, Dense"):
        require_cross_encoder(changed)


def test_a_chat_template_is_refused(copy: Callable[..., Path]) -> None:
    changed = copy()
    (changed / "chat_template.jinja").write_text(tiny_models.CHAT_TEMPLATE)
    with pytest.raises(InapplicableError, match="has a chat template"):
        load_pair_tokenizer(changed, LIMIT)


def test_a_model_without_padding_token_is_refused(copy: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="has no padding token"):
        load(copy(pad_token_id=None))


def test_the_limit_of_a_pair(copy: Callable[..., Path]) -> None:
    """The limit of sentence-transformers comes first, then the smaller one of tokenizer and context window."""
    changed = copy()
    assert [read_pair_limit(changed, window) for window in (None, 128, 64)] == [LIMIT, LIMIT, 64]
    edit_json(changed / "sentence_bert_config.json", max_seq_length=33)
    assert read_pair_limit(changed, 128) == 33


def test_a_reranked_run_is_a_teacher(folder: Path, task: Path, out: Path) -> None:
    """Distillation reads the logits of a run over the training split."""
    line = ("run", "--model", "bm25", "--task", task, "--set", "split=train", "--out", out)
    _, reranked = run_cells(*line, "--rerank", f"cross:model={folder}")
    recipe = replace(RECIPE, teacher=reranked["record"])
    training_set = load_training_set(TrainingRequest(str(task), "bm25"), 3)
    scored_set = add_teacher_scores(training_set, recipe, lambda _: None)
    reranked_queries = [query for query in scored_set.queries if query.negatives]  # of one candidate there is no order
    assert [query.id for query in reranked_queries] == ["q4"]
    for query in reranked_queries:
        texts = [scored_set.passages[row] for row in (*query.positives, *query.negatives)]
        np.testing.assert_allclose(query.scores, score_plainly(folder, texts, query=query.text), atol=1e-4)
