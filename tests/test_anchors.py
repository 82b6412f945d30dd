"""Anchors: published numbers reproduced with real weights on real collections (`make anchors`)."""

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import retbench
from retbench.cards import catalog
from retbench.encoders.dense_encoder import BackboneEncoder
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.encoders.sparse_encoder import split_rows
from retbench.engines import backbone, weights
from retbench.engines.tokenizers import load_tokenizer
from tests import plain_transformers
from tests.test_methods import TEXTS as METHOD_TEXTS
from tests.test_prompt_tokenizer import TEXTS, compute_specified_ids
from tests.test_sparse_retrieval import compute_specified_terms as lexically_specified
from tests.test_sparse_retrieval import load_encoder as lexical_encoder

pytestmark = [pytest.mark.anchor, pytest.mark.usefixtures("real_model_environment")]

SHARED = Path(os.environ.get("RETBENCH_SHARED", "../shared"))


def find_collection(name: str) -> str:
    folder = SHARED / "collections" / name
    if not folder.is_dir():
        if os.environ.get("RETBENCH_ANCHORS_REQUIRED"):
            pytest.fail(f"{folder} is not there and anchors are required")
        pytest.skip(f"{folder} is not there (set RETBENCH_SHARED)")
    return str(folder)


def run_cell(model: str, name: str, out: Path, **options: Any) -> Any:
    (cell,) = retbench.evaluate([model], tasks=[find_collection(name)], out=out, **options)
    assert cell.status == "done", cell.error
    return cell


def test_minilm_on_scifact_gets_the_published_score(tmp_path: Path) -> None:
    scores = run_cell("minilm-l6", "scifact", tmp_path).scores
    assert scores["ndcg_at_10"] == pytest.approx(0.64508, abs=0.0005)
    assert scores["mrr_at_10"] == pytest.approx(0.60472, abs=0.0005)


@pytest.mark.parametrize("name", ["smollm2-135m-instruct-q4", "qwen2.5-coder-1.5b-instruct-q4"])
@pytest.mark.parametrize("role", ["query", "document"])
def test_promptreps_token_ids_on_real_tokenizers(name: str, role: Any) -> None:
    tokenizer = load_tokenizer(weights.obtain_weights(catalog.find_model_card(name)).folder)
    texts = [*TEXTS, "def add(a, b):\n\treturn a + b  # 1,000,000", "  two  spaces\n\n1 line"]
    results = PromptTokenizer(tokenizer, catalog.load_methods().find("promptreps")).tokenize(texts, role, 64)
    for row, text in enumerate(texts):
        assert results[row].tolist() == compute_specified_ids(tokenizer, text, role, 64), text


def test_a_real_decoder_ranks_better_than_chance(tmp_path: Path) -> None:
    (cell,) = retbench.evaluate(
        ["smollm2-135m-instruct-q4"], tasks=["stdlib-text"], methods=("promptreps",), sample=10, out=tmp_path
    )
    assert cell.main_score is not None
    assert cell.main_score > 0.1  # a random ranking of 200 documents scores about 0.02


COMPARED_ROWS = [1, 3]  # of the vectors: a text in several scripts, and the longest; token ids are compared for all


@functools.cache
def load_decoder() -> tuple[Path, backbone.Backbone]:
    """A real decoder and its folder, loaded once for all methods."""
    folder = weights.obtain_weights(catalog.find_model_card("smollm2-135m-instruct-q4")).folder
    return folder, backbone.load_backbone(folder, "float32", torch.device("cpu"))


@pytest.mark.parametrize("name", plain_transformers.METHODS)
def test_methods_on_a_real_decoder_match_their_sources(name: str) -> None:
    folder, decoder = load_decoder()
    method = catalog.find_method(name)
    loaded = decoder.with_method(method.attention, method.layer)
    spec = EncoderSpec("weights", method, method.instruction, 64, 64, "float32")
    encoder = BackboneEncoder(spec, loaded, PromptTokenizer(loaded.tokenizer, method, method.instruction))
    for role in ("query", "document"):
        tokens = encoder.tokenize(METHOD_TEXTS, role)
        expected = [plain_transformers.METHODS[name](loaded.tokenizer, text, role, 64) for text in METHOD_TEXTS]
        assert [ids.tolist() for ids in tokens] == [pooled.ids for pooled in expected]
        vectors = encoder.encode(tokens.select(np.array(COMPARED_ROWS)))
        for vector, row in zip(vectors, COMPARED_ROWS, strict=True):
            is_bidirectional = name in plain_transformers.BIDIRECTIONAL
            wanted = plain_transformers.compute_vector(folder, expected[row], is_bidirectional)
            assert vector @ wanted > 0.9999, METHOD_TEXTS[row]


@pytest.mark.parametrize(("name", "leaked"), [("scifact", 2), ("codetrans-java-cs", 42)])
def test_train_test_overlap_is_found(name: str, leaked: int) -> None:
    from retbench.training.training_data import TrainingRequest, load_training_set

    results = load_training_set(TrainingRequest(find_collection(name), "bm25"))
    assert results.facts["leaked_texts"] == leaked


def test_terms_of_a_real_decoder_match_the_full_language_model() -> None:
    folder = weights.obtain_weights(catalog.find_model_card("smollm2-135m-instruct-q4")).folder
    encoder = lexical_encoder(folder)
    results = split_rows(encoder.encode(encoder.tokenize(METHOD_TEXTS, "document")))
    for row, text in enumerate(METHOD_TEXTS):
        state, impacts = lexically_specified(folder, text, "document")
        assert results.dense[row] @ state > 0.9999
        terms = dict(zip(results.terms[row].tolist(), results.weights[row].tolist(), strict=True))
        assert {term for term, weight in terms.items() if weight} == impacts.keys(), text
        assert max(abs(terms[term] - impacts[term]) for term in impacts) <= 1  # weights are rounded to whole numbers


def test_sentence_transformers_agrees_on_a_published_encoder(tmp_path: Path) -> None:
    from retbench.pipelines.checks.engine_agreement import compare_engines

    (cell,) = retbench.evaluate(["minilm-l6"], tasks=["stdlib-text"], sample=10, out=tmp_path)
    results = compare_engines(Path(str(cell.record)), "sentence-transformers")
    assert results.documents == 200
    assert results.cosine_min > 0.9999
    assert results.scores[0] == pytest.approx(results.scores[1], abs=1e-9)
