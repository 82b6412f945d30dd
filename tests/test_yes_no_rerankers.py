"""Language models that answer yes or no for a pair (Qwen3-Reranker): against the authors' loop and the library."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from retbench.cards import catalog
from retbench.cards.pair_prompt import PairPrompt
from retbench.cards.reranker_settings import CrossEncoderSettings
from retbench.errors import DataError, InapplicableError, RetbenchError, UsageError
from retbench.pipelines.models.cross_encoder import ResolvedCrossEncoder, resolve_cross_encoder
from tests import tiny_models
from tests.test_run import run_cells, run_command

QUERY = "how to brew a hot drink"
DOCUMENTS = [*tiny_models.SENTENCES[:8], "", "water and tea " * 60, "{query} <|im_end|> yes"]
INSTRUCTION = "Given a question, find the answer"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_yes_no_model(tmp_path_factory.mktemp("yes-no") / "tiny-yes-no")


@pytest.fixture(scope="module")
def published(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as sentence-transformers saves it: with the chat template of a pair and the module LogitScore."""
    pytest.importorskip("sentence_transformers.cross_encoder.modules")
    return tiny_models.publish_yes_no_model(bare, tmp_path_factory.mktemp("published") / "tiny-reranker")


def resolve(folder: Path | str, instruction: str | None = None, **settings: Any) -> ResolvedCrossEncoder:
    request = CrossEncoderSettings(str(folder), instruction=instruction, **settings)
    return resolve_cross_encoder(request, None, lambda _: None)


def resolve_with_prompt(folder: Path, prompt: PairPrompt, **settings: Any) -> ResolvedCrossEncoder:
    """Resolve a folder with a prompt in its card."""
    (folder / "card.toml").write_text(
        'name = "prompted"\n[weights]\nsource = "path"\npath = "."\n[pair_prompt]\n'
        f"pieces = {json.dumps(prompt.pieces)}\n"
        + "".join(
            f"{key} = {json.dumps(getattr(prompt, key))}\n"
            for key in ("yes", "no", "instruction")
            if getattr(prompt, key) is not None
        )
    )
    try:
        return resolve(folder, **settings)
    finally:
        (folder / "card.toml").unlink()


def score(resolved: ResolvedCrossEncoder, max_tokens: int = 10_000) -> np.ndarray:
    pairs = resolved.pair_tokenizer.tokenize_pairs(QUERY, DOCUMENTS)
    return resolved.load().score_pairs(pairs, max_tokens)


def score_as_authors(folder: Path, prompt: PairPrompt, max_length: int) -> np.ndarray:
    """The loop of Qwen3-Reranker's model card: three parts of tokens, the pair cut, the softmax of no and yes."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    prefix, suffix = (tokenizer.encode(prompt.pieces[place], add_special_tokens=False) for place in (0, 2))
    yes, no = tokenizer.convert_tokens_to_ids("yes"), tokenizer.convert_tokens_to_ids("no")
    texts = [f"<Instruct>: {prompt.instruction}\n<Query>: {QUERY}\n<Document>: {document}" for document in DOCUMENTS]
    room = max_length - len(prefix) - len(suffix)
    cut = tokenizer(texts, padding=False, truncation="longest_first", max_length=room, return_attention_mask=False)
    rows = {"input_ids": [prefix + ids + suffix for ids in cut["input_ids"]]}
    padded = tokenizer.pad(rows, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**padded).logits[:, -1, :]
    both = torch.stack([logits[:, no], logits[:, yes]], dim=1)
    probabilities: np.ndarray = torch.nn.functional.log_softmax(both, dim=1)[:, 1].exp().numpy()
    return probabilities


def to_probability(scores: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-scores)))


@pytest.mark.parametrize("max_length", [300, 240])
def test_the_prompt_of_qwen3_reranker_scores_as_its_authors_loop(bare: Path, max_length: int) -> None:
    prompt = catalog.find_model_card("qwen3-reranker-0.6b").pair_prompt
    assert prompt
    resolved = resolve_with_prompt(bare, prompt, max_length=max_length)
    scores, probabilities = score(resolved, max_tokens=400), score_as_authors(bare, prompt, max_length)
    assert len(set(np.round(probabilities, 3))) > 5  # texts matter
    np.testing.assert_allclose(to_probability(scores), probabilities, atol=1e-4)
    pairs = resolved.pair_tokenizer.tokenize_pairs(QUERY, DOCUMENTS)
    assert any(pairs.is_cut)
    assert max(pairs.lengths) == max_length


@pytest.mark.parametrize("max_length", [512, 190])
@pytest.mark.parametrize("instruction", [None, INSTRUCTION])
def test_a_published_folder_scores_as_in_sentence_transformers(
    published: Path, instruction: str | None, max_length: int
) -> None:
    library = pytest.importorskip("sentence_transformers")
    reference = library.CrossEncoder(str(published), device="cpu", max_length=max_length)
    pairs = [(QUERY, document) for document in DOCUMENTS]
    logits = reference.predict(pairs, activation_fn=torch.nn.Identity(), batch_size=4, prompt=instruction)
    scores = score(resolve(published, instruction, max_length=max_length), max_tokens=300)
    assert len(set(np.round(logits, 3))) > 5
    np.testing.assert_allclose(scores, logits, atol=1e-4)
    np.testing.assert_allclose(to_probability(scores), reference.predict(pairs, prompt=instruction), atol=1e-4)


def test_a_classifier_with_a_chat_template_scores_as_in_sentence_transformers(tmp_path: Path) -> None:
    """Qwen3-Reranker is also published as a sequence classifier, with the same template."""
    library = pytest.importorskip("sentence_transformers")
    folder = tiny_models.build_decoder_classifier(tmp_path / "bare")
    (folder / "chat_template.jinja").write_text(tiny_models.PAIR_TEMPLATE)
    reference = library.CrossEncoder(str(folder), device="cpu", max_length=200)
    reference.save(str(tmp_path / "saved"))
    logits = reference.predict([(QUERY, d) for d in DOCUMENTS], activation_fn=torch.nn.Identity(), prompt=INSTRUCTION)
    scores = score(resolve(tmp_path / "saved", INSTRUCTION, max_length=200), max_tokens=500)
    assert len(set(np.round(logits, 3))) > 5
    np.testing.assert_allclose(scores, logits, atol=1e-4)


def test_a_prompt_of_pieces_scores_as_joined_tokens(bare: Path) -> None:
    """As mxbai-rerank-v2 and bge-reranker-v2-gemma do: parts are tokenized alone; without `no` the logit of yes."""
    pieces = ("<|im_start|>", "query: {query}", "\n", "document: {document}", "\n", "Relevance:")
    tokenizer, model = AutoTokenizer.from_pretrained(bare), AutoModelForCausalLM.from_pretrained(bare).eval()
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    expected = []
    for document in DOCUMENTS:
        texts = [pieces[0], f"query: {QUERY}", "\n", f"document: {document}", "\n", "Relevance:"]
        ids = [token for text in texts for token in tokenizer(text, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        expected.append((float(logits[yes]), float(logits[no])))
    odds = score(resolve_with_prompt(bare, PairPrompt(pieces)))
    np.testing.assert_allclose(odds, [a - b for a, b in expected], atol=1e-4)
    alone = score(resolve_with_prompt(bare, PairPrompt(pieces, no="")))
    np.testing.assert_allclose(alone, [a for a, _ in expected], atol=1e-4)


def test_a_long_query_leaves_room_for_the_document(bare: Path) -> None:
    """In a piece of its own it has three quarters of the limit, as in the code of both models."""
    prompt = PairPrompt(("<|im_start|>", "query: {query}", "\n", "document: {document}", "\n"))
    tokenizer = resolve_with_prompt(bare, prompt, max_length=40).pair_tokenizer
    pairs = tokenizer.tokenize_pairs("water and tea " * 60, DOCUMENTS)
    assert max(pairs.lengths) == 40
    assert all(len(pair["input_ids"]) > 30 for pair in pairs.inputs)


def test_a_prompt_without_room_is_named(bare: Path) -> None:
    prompt = catalog.find_model_card("qwen3-reranker-0.6b").pair_prompt
    assert prompt
    with pytest.raises(DataError, match="max_length=60 leaves no room"):
        resolve_with_prompt(bare, prompt, max_length=60).pair_tokenizer.tokenize_pairs(QUERY, DOCUMENTS)


def test_the_instruction_is_the_users_else_the_tasks_else_the_models(published: Path) -> None:
    def read(given: str | None, task: str | None) -> str | None:
        resolved = resolve_cross_encoder(CrossEncoderSettings(str(published), instruction=given), task, lambda _: None)
        assert resolved.prompt
        return resolved.prompt.instruction

    assert read(None, None) == "Find passages that answer the query"
    assert read(None, "Of the task") == "Of the task"
    assert read("Mine", "Of the task") == "Mine"


def test_a_run_reranks_by_the_probability(published: Path, task: Path, out: Path) -> None:
    line = ("run", "--model", "bm25", "--task", task, "--out", out, "--rerank", f"cross:model={published},depth=4")
    _, cell = run_cells(*line)
    record = json.loads((Path(cell["record"]) / "record.json").read_text())
    settings = record["settings"]["rerankers"][0]
    assert settings["instruction"] == "Find passages that answer the query"
    assert settings["prompt"][0].count("{document}") == 1
    assert len(settings["answers"]) == 2
    assert str(published) not in json.dumps(record)
    sample = json.loads((Path(cell["record"]) / "sample.json").read_text())
    assert sample["prompt"].endswith("<think>\n\n</think>\n\n")
    (plan,) = run_cells(*line, "--dry-run")
    assert plan["rerank"][0]["prompt"] == sample["prompt"]
    _, other = run_cells(*line[:-1], f"{line[-1]},instruction=Another one")
    assert other["settings_id"] != cell["settings_id"]


# Refusals


def test_a_language_model_that_is_no_cross_encoder_is_refused(bare: Path) -> None:
    with pytest.raises(InapplicableError, match="has no classification head"):
        resolve(bare)


def edit(folder: Path, target: Path, template: str) -> Path:
    target.mkdir()
    for file in folder.rglob("*"):
        if file.is_file():
            (target / file.relative_to(folder)).parent.mkdir(exist_ok=True)
            (target / file.relative_to(folder)).write_bytes(file.read_bytes())
    (target / "chat_template.jinja").write_text(template)
    return target


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ messages[0]['content'] }}", "does not write the query and the document"),
        (tiny_models.PAIR_TEMPLATE.replace("first }}", "first | upper }}"), "does not write|changes the texts"),
        (tiny_models.PAIR_TEMPLATE.replace("first }}<|im_end", "first | trim }}<|im_end"), "changes the texts"),
        ("{{ raise_exception('no') }}", "the chat template of the model fails"),
    ],
)
def test_a_template_that_is_no_fixed_prompt_is_refused(
    published: Path, tmp_path: Path, template: str, problem: str
) -> None:
    with pytest.raises(RetbenchError, match=problem):
        resolve(edit(published, tmp_path / "changed", template))


def test_an_answer_of_several_tokens_is_refused(bare: Path) -> None:
    prompt = PairPrompt(("{query} {document}",), yes="certainly not one token")
    with pytest.raises(DataError, match="and an answer must be one"):
        resolve_with_prompt(bare, prompt)


def test_an_instruction_without_a_place_is_refused(bare: Path) -> None:
    with pytest.raises(UsageError, match="reads no instruction"):
        resolve_with_prompt(bare, PairPrompt(("{query} {document}",)), instruction="Anything")


@pytest.mark.parametrize(
    ("pieces", "problem"),
    [(("{query}",), r"have \{document\} 0 times"), (("{query} {query} {document}",), r"have \{query\} 2 times"),
     (("{instruction} {query} {document}",), "has {instruction} but no instruction")],
)  # fmt: skip
def test_an_incomplete_prompt_is_refused(pieces: tuple[str, ...], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        PairPrompt(pieces)


def test_a_damaged_answer_token_is_named(published: Path, tmp_path: Path, task: Path, out: Path) -> None:
    changed = edit(published, tmp_path / "changed", tiny_models.PAIR_TEMPLATE)
    (module,) = changed.glob("*LogitScore*/config.json")
    module.write_text(json.dumps({"true_token_id": "yes", "false_token_id": None}))
    answer = run_command("run", "--model", "bm25", "--task", task, "--out", out, "--rerank", f"cross:model={changed}")
    assert "true_token_id is 'yes'" in " ".join(answer.output.split())


def test_a_yes_no_reranker_is_no_embedder(published: Path, task: Path, out: Path) -> None:
    answer = run_command("run", "--model", published, "--task", task, "--out", out)
    assert "is a cross-encoder" in answer.output
    prompt = replace(PairPrompt(("{query}{document}",)), instruction=None)
    assert not prompt.uses_instruction
