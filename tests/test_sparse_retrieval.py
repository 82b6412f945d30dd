"""The sparse half of PromptReps against the full language model; inverted index and fusion against plain loops."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from retbench.cards import catalog
from retbench.cards.method import Role
from retbench.encoders import sparse_encoder
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.encoders.sparse_encoder import TERMS_PER_TEXT, SparseEncoder, split_rows
from retbench.engines import backbone, lm_head
from retbench.errors import UsageError
from retbench.retrievers.inverted_index import InvertedIndex
from retbench.retrievers.ranking import Ranking
from retbench.retrievers.score_fusion import fuse_rankings
from retbench.store.shard_store import VectorBlock
from tests import plain_transformers, tiny_models
from tests.test_run import run_cells, run_command

TEXTS = ("The heart pumps blood through the Arteries, the heart!", "def add(a, b): return a + b", "of the and", "")


def load_encoder(folder: Path) -> SparseEncoder:
    method = catalog.find_method("promptreps-sparse")
    loaded = backbone.load_backbone(folder, "float32", torch.device("cpu"))
    spec = EncoderSpec("weights", method, "", 64, 64, "float32")
    return SparseEncoder(spec, loaded, PromptTokenizer(loaded.tokenizer, method), lm_head.load_lm_head(folder, loaded))


def compute_specified_terms(folder: Path, text: str, role: Role) -> tuple[np.ndarray, dict[int, float]]:
    """Compute the terms of one text as PromptReps does: full model, the words' ids, round(100 log(1 + relu))."""
    import re

    from bm25s.stopwords import STOPWORDS_EN
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    language_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    pooled_ids = plain_transformers.METHODS["promptreps"](tokenizer, text, role, 64)
    with torch.no_grad():
        output = language_model(torch.tensor([pooled_ids.ids]), output_hidden_states=True)
    weights = torch.log(1 + torch.relu(output.logits[0, -1]))
    words = [word for word in re.findall(r"\w+", text.lower()) if word not in STOPWORDS_EN]
    ids = {i for word in words for i in tokenizer.encode(word, add_special_tokens=False)}
    selected = ids or set(weights.topk(10).indices.tolist())
    impacts = {i: float(np.rint(100 * weights[i].item())) for i in selected}
    state = output.hidden_states[-1][0, -1]
    return (state / state.norm()).numpy(), {i: impact for i, impact in impacts.items() if impact}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("role", ["query", "document"])
def test_terms_equal_those_of_the_full_language_model(tmp_path: Path, role: Role, tied: bool) -> None:
    folder = tiny_models.build_model(tmp_path / "lm", tie_word_embeddings=tied)
    encoder = load_encoder(folder)
    rows = encoder.encode(encoder.tokenize(TEXTS, role))
    assert rows.shape == (len(TEXTS), encoder.dimension)
    actual = split_rows(rows)
    for row, text in enumerate(TEXTS):
        state, impacts = compute_specified_terms(folder, text, role)
        assert actual.dense[row] @ state > 0.99999
        weights = dict(zip(actual.terms[row].tolist(), actual.weights[row].tolist(), strict=True))
        assert {i: weight for i, weight in weights.items() if weight} == impacts, text


def test_only_the_terms_with_the_highest_weights_are_kept() -> None:
    row = sparse_encoder._select_terms(np.arange(200), np.arange(200, dtype=np.float32))
    assert row[:TERMS_PER_TEXT].tolist() == list(range(199, 199 - TERMS_PER_TEXT, -1))
    assert row[TERMS_PER_TEXT] == 19900


def test_weights_without_an_lm_head_are_an_error(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_models.build_model(tmp_path / "lm", tie_word_embeddings=False)
    tensors = {key: value for key, value in load_file(folder / "model.safetensors").items() if "lm_head" not in key}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="no language-model head"):
        load_encoder(folder)


def test_logit_soft_capping_is_applied() -> None:
    head = lm_head.LMHead(torch.eye(2), torch.tensor([0.0, 1.0]), 3.0)
    expected = 3 * torch.tanh(torch.tensor([[2.0, 6.0]]) / 3)
    assert torch.allclose(head.compute_logits(torch.tensor([[2.0, 5.0]])), expected)


def test_the_inverted_index_equals_a_dense_product() -> None:
    draw = np.random.default_rng(3)
    matrix = draw.integers(0, 4, (60, 30)) * (draw.random((60, 30)) < 0.3)
    query_weights = draw.integers(0, 4, (5, 30)) * (draw.random((5, 30)) < 0.3)
    query_weights[4] = 0

    def packed(numbers: np.ndarray, weights: np.ndarray) -> VectorBlock:
        terms = np.tile(np.arange(30), len(weights))
        return VectorBlock(numbers, weights.ravel().astype(np.float32), 30 * np.arange(len(weights) + 1), terms)

    index = InvertedIndex()
    order = draw.permutation(60)
    for block in np.array_split(order, 4):
        index.add_block(packed(block, matrix[block]))
    halves = np.array([3, 1, 4]), np.array([2, 0])
    actual = index.search([packed(half, query_weights[half]) for half in halves], 7)
    for query, scores in enumerate(query_weights @ matrix.T):
        expected = sorted((row for row in range(60) if scores[row]), key=lambda row: (-scores[row], row))[:7]
        assert actual.rows[query].tolist() == expected
        assert actual.scores[query].tolist() == scores[expected].tolist()


def test_fusion_is_the_mean_of_min_max_scores() -> None:
    first = Ranking([np.array([4, 2, 9]), np.array([1])], [np.array([3.0, 2.0, 1.0]), np.array([5.0])])
    second = Ranking([np.array([2, 7]), np.array([], dtype=int)], [np.array([40.0, 30.0]), np.array([])])
    actual = fuse_rankings(first, second, 3)
    assert actual.rows[0].tolist() == [2, 4, 7]  # 0.25 + 0.5, 0.5, 0; document 9 also has 0 and a higher row
    assert actual.scores[0].tolist() == [0.75, 0.5, 0.0]
    assert actual.rows[1].tolist() == [1]


def test_sparse_and_hybrid_share_one_forward_pass(model: Path, task: Path, out: Path, own_cache: Path) -> None:
    line = ("run", "--model", model, "--task", task, "--out", out)
    actual = run_cells(
        *line, "--method", "promptreps-sparse", "--method", "promptreps-hybrid", "--method", "promptreps"
    )
    assert [cell["status"] for cell in actual] == ["done"] * 3
    assert len({cell["settings_id"] for cell in actual}) == 3
    assert (
        len(list((own_cache / "embeddings").rglob("manifest.json"))) == 4
    )  # queries and documents, each with and without terms


def test_a_model_without_logits_fails_with_a_reason(task: Path, out: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=tiny_models.VOCABULARY, tie_word_embeddings=False, **sizes)
    BertModel(config).save_pretrained(tmp_path / "bert")
    tiny_models.build_tokenizer().save_pretrained(tmp_path / "bert")
    answer = run_command(
        "run", "--model", tmp_path / "bert", "--task", task, "--method", "promptreps-sparse", "--out", out
    )
    assert answer.exit_code == 2
    assert "no language-model head" in answer.output


@pytest.mark.parametrize("change", ["vector_dtype=fp16", "dimensions=8"])
def test_sparse_rows_are_not_compressed(model: Path, task: Path, out: Path, change: str) -> None:
    line = ("run", "--model", model, "--task", task, "--out", out, "--method", "promptreps-hybrid")
    answer = run_command(*line, "--set", change, "--json")
    (cell,) = json.loads(answer.stdout)
    assert (cell["status"], answer.exit_code) == ("skipped", 2)
    assert "stores term weights" in cell["error"]


def test_sparse_runs_are_not_reranked_as_vectors(model: Path, task: Path, out: Path) -> None:
    line = ("run", "--model", model, "--task", task, "--out", out, "--method", "promptreps-hybrid")
    _, reranked = run_cells(*line, "--rerank", "rocchio")
    assert reranked["status"] == "skipped"
    assert "has no dense vectors" in reranked["error"]
