"""Late interaction (ColBERT) and learned sparse (SPLADE): vectors, scores and rankings are those of the library.

Every folder is made here; sentence-transformers reads it too, also those in the form of PyLate and of Stanford.
"""

import importlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers")

import sentence_transformers

from retbench.cards import catalog
from retbench.cards.method import Role
from retbench.cards.published_method import read_published_model
from retbench.encoders.text_encoder import RaggedVectors
from retbench.errors import DataError
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.models.overrides import Overrides
from retbench.retrievers import max_sim_search
from retbench.retrievers.max_sim_search import MaxSimSearch
from retbench.store.shard_store import VectorBlock
from tests import late_interaction_folders as folders
from tests import tiny_models
from tests.test_published_embedders import edit_json
from tests.test_run import run_cells, run_command

TEXTS = [*tiny_models.SENTENCES[:6], "a long text that is cut somewhere, " * 40, "x", "Hello, world! (yes) - no; [Q]."]
ROLES: tuple[Role, ...] = ("query", "document")
FIXED = {"query_expansion": {"strategy": "fixed", "length": 32}, "document_length": 40}
MINIMUM = {"query_expansion": {"strategy": "min", "length": 8, "attend": True, "token": "<|im_end|>"}}
LATE: dict[str, Callable[[Path, Path], Path]] = {
    "expanded": lambda bare, out: folders.build_multi_vector(bare, out, **FIXED),
    "expanded to a minimum": lambda bare, out: folders.build_multi_vector(bare, out, **MINIMUM, query_length=30),
    "own lengths": lambda bare, out: folders.build_multi_vector(bare, out, query_length=9, document_length=30),
    "skipped words": lambda bare, out: folders.build_multi_vector(
        bare, out, mask={"skiplist_words": [",", ".", "§"], "skiplist_tasks": ["query", "document"]}
    ),
    "kept token ids": lambda bare, out: folders.build_multi_vector(
        bare, out, mask={"keep_only_token_ids": [i for i in range(1000) if i % 5 != 2], "skiplist_words": [","]}
    ),
    "activation and residual": lambda bare, out: folders.build_multi_vector(
        bare, out, dense={"activation_function": torch.nn.GELU(), "use_residual": True, "bias": True}
    ),
    "mean": lambda bare, out: folders.build_multi_vector(bare, out, similarity_fn_name="meanmaxsim"),
    "pylate": folders.build_pylate,
    "pylate attended": lambda bare, out: folders.build_pylate(bare, out, attend_to_expansion_tokens=True),
    "pylate plain": lambda bare, out: folders.build_pylate(bare, out, do_query_expansion=False, skiplist_words=[]),
    "stanford": lambda bare, out: folders.build_stanford(out),
}
SPARSE: dict[str, Callable[[Path, Path], Path]] = {
    "max": folders.build_splade,
    "sum": lambda bare, out: folders.build_splade(bare, out, pooling={"pooling_strategy": "sum"}),
    "two logarithms": lambda bare, out: folders.build_splade(
        bare, out, pooling={"activation_function": "log1p_relu"}, max_active_dims=20
    ),
    "cosine": lambda bare, out: folders.build_splade(bare, out, similarity_fn_name="cosine", prompts=folders.PROMPTS),
    "static queries": folders.build_static_splade,
}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.build_bare(tmp_path_factory.mktemp("other") / "bare", "[Q] ", "[D] ")


def load_encoder(folder: Path) -> Any:
    model = ResolvedModel.resolve(catalog.find_model_card(str(folder)), None, print)
    (method,) = model.resolve_methods([])
    task = catalog.find_task_card("stdlib-long-8192")
    return model.load_encoder(model.build_encoder_spec(method, task, Overrides(dtype="float32")))


def encode_here(folder: Path, role: Role) -> RaggedVectors:
    encoder = load_encoder(folder)
    encoded: RaggedVectors = encoder.encode(encoder.tokenize(TEXTS, role))
    return encoded


def split_texts(encoded: RaggedVectors) -> list[np.ndarray]:
    return np.split(encoded.vectors, encoded.offsets[1:-1])


def encode_there(model: Any, role: Role) -> Any:
    return (model.encode_query if role == "query" else model.encode_document)(TEXTS)


@pytest.mark.parametrize("form", LATE)
def test_token_vectors_and_scores_are_those_of_the_library(bare: Path, tmp_path: Path, form: str) -> None:
    folder = LATE[form](bare, tmp_path / "model")
    theirs = sentence_transformers.MultiVectorEncoder(str(folder), device="cpu")
    encoded = {role: encode_here(folder, role) for role in ROLES}
    expected = {role: encode_there(theirs, role) for role in ROLES}
    for role in ROLES:
        for actual, wanted in zip(split_texts(encoded[role]), expected[role], strict=True):
            assert actual.shape == np.asarray(wanted).shape
            assert np.abs(actual - np.asarray(wanted)).max() < 1e-5
    rows = np.arange(len(TEXTS))
    blocks = {role: VectorBlock(rows, part.vectors, part.offsets) for role, part in encoded.items()}
    search = MaxSimSearch([blocks["query"]], len(TEXTS), average=form == "mean")
    search.add_block(blocks["document"])
    ranking, scores = search.finish(), theirs.similarity(expected["query"], expected["document"]).numpy()
    for query, found in enumerate(ranking.rows):
        assert np.abs(ranking.scores[query] - scores[query][found]).max() < 1e-4
        assert sorted(found) == rows.tolist()


@pytest.mark.parametrize("form", SPARSE)
def test_term_weights_are_those_of_the_library(bare: Path, tmp_path: Path, form: str) -> None:
    folder = SPARSE[form](bare, tmp_path / "model")
    theirs = sentence_transformers.SparseEncoder(str(folder), device="cpu")
    for role in ROLES:
        encoded, expected = encode_here(folder, role), encode_there(theirs, role).to_dense().numpy()
        if form == "cosine":
            expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        dense = np.zeros_like(expected)
        assert encoded.terms is not None
        dense[np.repeat(np.arange(len(TEXTS)), np.diff(encoded.offsets)), encoded.terms] = encoded.vectors
        assert np.abs(dense - expected).max() < 1e-5
        assert (np.diff(encoded.offsets) == (dense != 0).sum(axis=1)).all()


def test_max_sim_equals_plain_loops_for_any_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(5)

    def build(count: int, order: np.ndarray) -> list[VectorBlock]:
        lengths = draw.integers(1, 12, count)
        vectors = [draw.standard_normal((length, 6)).astype(np.float32) for length in lengths]
        vectors[3] = vectors[1]  # two equal texts
        parts = [order[:7], order[7:]]
        return [
            VectorBlock(rows, np.concatenate([vectors[row] for row in rows]),
                        np.concatenate(([0], np.cumsum([len(vectors[row]) for row in rows]))))
            for rows in parts
        ]  # fmt: skip

    queries, documents = build(11, draw.permutation(11)), build(40, draw.permutation(40))
    texts = [
        {int(row): block.vectors[a:b] for block in blocks
         for row, a, b in zip(block.rows, block.get_offsets()[:-1], block.get_offsets()[1:], strict=True)}
        for blocks in (queries, documents)
    ]  # fmt: skip
    expected = np.array([[(texts[0][q] @ texts[1][d].T).max(1).sum() for d in range(40)] for q in range(11)])
    for products, vectors in ((1 << 20, 2048), (300, 16), (1, 1)):
        monkeypatch.setitem(max_sim_search.PRODUCTS, "cpu", products)
        monkeypatch.setattr(max_sim_search, "QUERY_VECTORS", vectors)
        search = MaxSimSearch(queries, 9)
        for block in documents:
            search.add_block(block)
        ranking = search.finish()
        for query, rows in enumerate(ranking.rows):
            best = sorted(range(40), key=lambda row: (-expected[query][row], row))[:9]
            assert rows.tolist() == best
            assert np.abs(ranking.scores[query] - expected[query][best]).max() < 1e-5


@pytest.mark.parametrize("form", ["pylate", "static queries"])
def test_a_folder_is_run_as_what_it_is(bare: Path, task: Path, out: Path, tmp_path: Path, form: str) -> None:
    folder = {**LATE, **SPARSE}[form](bare, tmp_path / "published")
    (cell,) = run_cells("run", "--model", folder, "--task", task, "--out", out)
    assert (cell["status"], cell["method"]) == ("done", "as-published")
    assert cell["variant"] == []  # the kind of vector is no choice of a search
    record = json.loads((Path(cell["record"]) / "record.json").read_text())
    kind = "multi-vector" if form == "pylate" else "sparse"
    assert record["settings"]["encoder"]["method"]["kind"] == kind
    assert record["settings"]["retriever"] == kind
    per_document = "vectors_per_document" if kind == "multi-vector" else "terms_per_document"
    assert record["texts"]["bytes_per_document"] >= 8 * record["texts"][per_document] > 8
    assert record["cost"]["tokens_per_second"] > 0
    assert str(tmp_path) not in json.dumps(record["settings"])
    size = record["texts"]["bytes_per_document"]
    assert f"{size:,.0f}" in run_command("report", out, "--format", "markdown").output


@pytest.mark.parametrize("form", ["expanded", "max"])
def test_a_lost_shard_is_computed_again_to_the_same_bytes(
    bare: Path, task: Path, out: Path, own_cache: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = {**LATE, **SPARSE}[form](bare, tmp_path / "published")
    for name in ("multi_vector_retriever.MultiVectorRetriever", "term_retriever.TermRetriever"):
        module, _, retriever = name.partition(".")
        small = partial(getattr(importlib.import_module(f"retbench.retrievers.{module}"), retriever), shard_rows=2)
        monkeypatch.setattr(f"retbench.retrievers.{name}", small)
    line = ("run", "--model", folder, "--task", task, "--out", out)
    (first,) = run_cells(*line)
    shards = {file: file.read_bytes() for file in (own_cache / "embeddings").rglob("shard-*.safetensors")}
    assert len(shards) > 4
    for file in list(shards)[::2]:
        file.write_bytes(b"half a sh")
    for manifest in (own_cache / "embeddings").rglob("manifest.json"):
        manifest.unlink()
    (second,) = run_cells(*line[:-1], tmp_path / "again")
    assert {file: file.read_bytes() for file in shards} == shards
    assert second["scores"] == first["scores"]


REFUSED: dict[str, Callable[[Path], Any]] = {
    "its similarity is 'euclidean'": lambda folder: edit_json(
        folder / "config_sentence_transformers.json", similarity_fn_name="euclidean"
    ),
    "is damaged: invalid": lambda folder: edit_json(
        folder / "2_MultiVectorMask" / "config.json", keep_only_token_ids=["three"]
    ),
    "has no model.safetensors": lambda folder: (folder / "1_Dense" / "model.safetensors").unlink(),
    "does not compute on token states": lambda folder: edit_json(
        folder / "1_Dense" / "config.json", module_input_name="sentence_embedding"
    ),
    "the argument rotary_scaling": lambda folder: edit_json(
        folder / "sentence_bert_config.json", model_args={"rotary_scaling": 2}
    ),
    "is damaged": lambda folder: edit_json(
        folder / "sentence_bert_config.json", query_expansion={"strategy": "fixed", "length": "many"}
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(bare: Path, tmp_path: Path, reason: str) -> None:
    folder = folders.build_multi_vector(bare, tmp_path / "model", **FIXED)
    REFUSED[reason](folder)
    with pytest.raises(DataError, match=reason.replace("(", r"\(")):
        read_published_model(folder)


def test_a_sparse_folder_that_cannot_be_followed_is_refused(bare: Path, tmp_path: Path) -> None:
    folder = folders.build_static_splade(bare, tmp_path / "model")
    edit_json(folder / "query_0_SparseStaticEmbedding" / "tokenizer.json", normalizer={"type": "Lowercase"})
    with pytest.raises(DataError, match="another tokenizer"):
        read_published_model(folder)
    edit_json(folder / "router_config.json", types={})
    with pytest.raises(DataError, match=r"router_config.json is damaged"):
        read_published_model(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("--method", "mean"), "pooling its states would score another model"),
        (("--engine", "sentence-transformers"), "a multi-vector ranking"),
        (("--set", "dimensions=8"), "stores one vector per token"),
        (("--set", "search=hnsw"), "no dense vectors"),
    ],
)
def test_what_does_not_apply_is_refused_in_two_lines(
    bare: Path, task: Path, out: Path, tmp_path: Path, change: tuple[str, ...], words: str
) -> None:
    folder = folders.build_multi_vector(bare, tmp_path / "model", **FIXED)
    answer = run_command("run", "--model", folder, "--task", task, "--out", out, *change)
    assert answer.exit_code != 0
    assert words in answer.output
    assert "Traceback" not in answer.output


def test_a_late_interaction_model_is_not_trained_as_a_dense_one(bare: Path, tmp_path: Path) -> None:
    folder = folders.build_multi_vector(bare, tmp_path / "model")
    answer = run_command("finetune", "stdlib-code", "--model", folder, "--recipe", "quick", "--dry-run")
    assert answer.exit_code == 4
    assert "a late-interaction model (ColBERT)" in answer.output


def test_a_ranking_by_max_sim_is_reranked_as_any_other(bare: Path, task: Path, out: Path, tmp_path: Path) -> None:
    folder = folders.build_multi_vector(bare, tmp_path / "model", **FIXED)
    cross = tiny_models.build_cross_encoder(tmp_path / "cross")
    line = ("run", "--model", folder, "--task", task, "--out", out)
    _, crossed = run_cells(*line, "--rerank", f"cross:model={cross}")
    assert crossed["status"] == "done"
    _, expanded = run_cells(*line, "--rerank", "rocchio")
    assert expanded["status"] == "skipped"
    assert "has no dense vectors" in expanded["error"]


def test_token_vectors_may_be_stored_in_fewer_bytes(bare: Path, task: Path, out: Path, tmp_path: Path) -> None:
    folder = folders.build_multi_vector(bare, tmp_path / "model", **FIXED)
    cells = [
        cell for form in ("fp32", "int8")
        for cell in run_cells("run", "--model", folder, "--task", task, "--out", out, "--set", f"vector_dtype={form}")
    ]  # fmt: skip
    texts = [json.loads((Path(cell["record"]) / "record.json").read_text())["texts"] for cell in cells]
    assert texts[0]["bytes_per_document"] / texts[1]["bytes_per_document"] == pytest.approx(64 / 20)


@pytest.mark.parametrize("form", ["expanded", "static queries"])
def test_show_and_the_dry_run_say_what_is_read(bare: Path, task: Path, tmp_path: Path, form: str) -> None:
    folder = {**LATE, **SPARSE}[form](bare, tmp_path / "published")
    shown = json.loads(run_command("show", "model", folder, "--json").stdout)["method"]["own"]
    expected = {"expanded": ("late_interaction", "expansion_length", 32)}
    field, key, value = expected.get(form, ("learned_sparse", "static_queries", True))
    assert shown[field][key] == value
    answer = run_command("run", "--model", folder, "--task", task, "--dry-run")
    assert answer.exit_code == 0
    assert ("[MASK]" in answer.output) == (form == "expanded")
