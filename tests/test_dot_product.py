"""`similarity = "dot"`: vectors keep their length, from the encoder to search, training, rerankers and exports."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from retbench.cards import catalog
from retbench.cards.engine import Engine
from retbench.cards.method import Method
from retbench.cards.recipe import ContrastiveSettings
from retbench.cards.reranker_settings import RocchioSettings
from retbench.encoders.adaptor import Adaptor
from retbench.encoders.encoder_spec import EncoderSpec, describe_method
from retbench.errors import DataError, UsageError
from retbench.rerankers.candidates import Candidates
from retbench.rerankers.embedding_rerankers import EmbeddingReranker, RocchioEmbedder
from retbench.retrievers import exact_search
from retbench.retrievers.dense_retriever import truncate_dimensions
from retbench.retrievers.exact_search import search_exactly
from retbench.store.shard_store import VectorBlock
from retbench.training.contrastive_batches import ContrastiveBatch
from retbench.training.losses import contrastive_loss, ranknet_loss
from retbench.training.search_adaptor import AdaptorNet
from tests import tiny_models
from tests.test_run import run_cells, run_command

LENGTHS = (0.0, 1e-39, 1e-37, 1e-20, 1.0, 1e19, 3e38)
SMALLEST_NORMAL = 2.0**-126


def draw_directions(rows: int, width: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((rows, width))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def test_the_default_similarity_is_in_no_key() -> None:
    assert "similarity" not in describe_method(catalog.find_method("mean"))
    dot = catalog.find_method("mean:similarity=dot")
    assert describe_method(dot)["similarity"] == "dot"
    specs = [EncoderSpec("w", method, "", 8, 8, "float32") for method in (catalog.find_method("mean"), dot)]
    keys = [json.dumps(spec.describe_vectors("document"), sort_keys=True) for spec in specs]
    assert keys[0] != keys[1]


@pytest.mark.parametrize("wrong", ["mean:similarity=dot,post=whiten", "promptreps-sparse:similarity=dot"])
def test_dot_product_with_vectors_of_length_one_is_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match="compares by dot product"):
        catalog.find_method(wrong)


def test_contriever_is_compared_as_it_was_trained() -> None:
    for name in ("contriever", "contriever-msmarco"):
        card = catalog.find_model_card(name)
        method = catalog.find_method(card.method.default if card.method else "")
        assert (method.pooling, method.similarity) == ("mean", "dot")


def test_cards_have_the_similarity_of_mteb() -> None:
    pytest.importorskip("mteb")
    from mteb.models.get_model_meta import get_model_metas

    published = {meta.name: meta.similarity_fn_name for meta in get_model_metas()}
    compared = 0
    for card in catalog.load_model_cards():
        similarity = published.get(card.weights.repo) if card.weights and card.weights.repo else None
        if similarity is None or card.method is None:
            continue
        assert catalog.find_method(card.method.default).similarity == similarity.value, card.name
        compared += 1
    assert compared >= 15


# Search


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("document_length", LENGTHS)
@pytest.mark.parametrize("query_length", LENGTHS)
def test_vectors_of_extreme_lengths_are_ranked_right_or_refused(
    query_length: float, document_length: float, rounded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact_search, "has_fast_bf16", lambda: rounded)
    monkeypatch.setattr(exact_search, "MIN_QUERIES_FOR_ROUNDING", 1)
    queries = (query_length * draw_directions(40, 16, 1)).astype(np.float32)
    documents = (document_length * draw_directions(300, 16, 2)).astype(np.float32)
    product = query_length * document_length
    blocks = [VectorBlock(np.arange(300), documents)]
    if product and not SMALLEST_NORMAL <= product <= 4e37:
        with pytest.raises(DataError, match="do not fit into float32"):
            search_exactly(queries, blocks, 10)
        return
    found, scores = search_exactly(queries, blocks, 10), queries.astype(float) @ documents.astype(float).T
    for rows, expected in zip(found.rows, scores, strict=True):
        assert rows.tolist() == np.argsort(-expected, kind="stable")[:10].tolist()


@pytest.mark.parametrize("rounded", [False, True])
def test_documents_of_all_lengths_are_ranked_by_dot_product(rounded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_search, "has_fast_bf16", lambda: rounded)
    monkeypatch.setattr(exact_search, "MIN_QUERIES_FOR_ROUNDING", 1)
    lengths = np.concatenate([10.0 ** np.linspace(-39, 18, 298), [0.0, 0.0]])[:, None]
    queries = draw_directions(40, 16, 1).astype(np.float32)
    documents = (lengths * draw_directions(300, 16, 2)).astype(np.float32)
    found = search_exactly(queries, [VectorBlock(np.arange(300), documents)], 300)
    scores = queries.astype(float) @ documents.astype(float).T
    for rows, ranked, expected in zip(found.rows, found.scores, scores, strict=True):
        assert sorted(rows.tolist()) == list(range(300))
        bound = 32 * 2.0**-24 * lengths[rows, 0] + 32 * 2.0**-149
        assert (np.abs(ranked - expected[rows]) <= bound).all()
        top = rows[:100].tolist()
        assert top == np.argsort(-expected, kind="stable")[:100].tolist()


@pytest.mark.parametrize("side", ["queries", "documents"])
def test_a_vector_that_is_not_a_number_is_refused(side: str) -> None:
    queries, documents = np.ones((2, 4), dtype=np.float32), np.ones((3, 4), dtype=np.float32)
    (queries if side == "queries" else documents)[0, 0] = np.nan
    with pytest.raises(DataError, match="do not fit into float32"):
        search_exactly(queries, [VectorBlock(np.arange(3), documents)], 2)


def test_fewer_dimensions_keep_the_length() -> None:
    cut = truncate_dimensions(np.array([[3, 4, 12]], dtype=np.float32), 2, "dot")
    assert cut.tolist() == [[3, 4]]


# A whole run, against plain transformers


def compute_means(folder: Path, texts: list[str]) -> np.ndarray:
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = [
            model(**tokenizer(text or tokenizer.eos_token, return_tensors="pt")).last_hidden_state[0].mean(0)
            for text in texts  # an empty document is one end-of-sequence token
        ]
    return torch.stack(states).double().numpy()


def read_folder(folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Documents and queries of a BEIR folder, by id."""
    sides = []
    for name in ("corpus.jsonl", "queries.jsonl"):
        rows = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        sides.append({row["_id"]: f"{row.get('title', '')} {row['text']}".strip() for row in rows})
    return sides[0], sides[1]


@pytest.mark.parametrize("engine", ["transformers", "sentence-transformers"])
def test_a_run_ranks_by_the_dot_product_of_plain_transformers(model: Path, task: Path, out: Path, engine: str) -> None:
    if engine == "sentence-transformers":
        pytest.importorskip("sentence_transformers")
    line = ("run", "--model", model, "--task", task, "--out", out, "--method", "contriever", "--engine", engine)
    (cell,) = run_cells(*line, "--set", "dtype=float32")
    check_dot_products(model, task, Path(cell["record"]))


def check_dot_products(model: Path, task: Path, record: Path) -> None:
    """The scores of a run are the dot products of plain transformers, and the best document is first."""
    documents, queries = read_folder(task)
    scores = compute_means(model, list(queries.values())) @ compute_means(model, list(documents.values())).T
    by_query = dict(zip(queries, scores, strict=True))
    found = list_scores(record)
    assert found
    for query, hits in found.items():
        expected = dict(zip(documents, by_query[query], strict=True))
        assert max(abs(expected[document] - score) for document, score in hits) < 1e-3
        best = max(expected.values())
        assert expected[hits[0][0]] == pytest.approx(best, rel=1e-5)


def list_scores(folder: Path) -> dict[str, list[tuple[str, float]]]:
    from retbench.records.results_folder import decode_id
    from retbench.training.teachers import _read_scored_ranking

    return {decode_id(query): list(hits) for query, hits in _read_scored_ranking(folder).items()}


def test_lossy_vectors_and_vllm_refuse_dot_product(model: Path, task: Path, out: Path) -> None:
    line = ("run", "--model", model, "--task", task, "--out", out, "--method", "contriever")
    assert "keeps only directions" in run_command(*line, "--set", "vector_dtype=int8").output
    assert "dot product" in str(Engine("vllm").find_unsupported(catalog.find_method("contriever")))


# Rerankers and adaptors


def test_rocchio_moves_the_query_by_vectors_of_their_own_length() -> None:
    queries = np.array([[2.0, 0.0]], dtype=np.float32)
    documents = np.array([[4.0, 0.0], [0.0, 10.0], [3.0, 3.0]], dtype=np.float32)
    settings = RocchioSettings(documents=1, alpha=1.0, beta=0.5)
    embedder = RocchioEmbedder(queries, lambda rows: documents[rows], settings, "dot")
    order, scores = EmbeddingReranker(embedder, lambda rows: documents[rows], 3).rerank(
        Candidates(0, "text", np.array([0, 1, 2]), np.array([3.0, 2.0, 1.0]))
    )
    assert (order.tolist(), scores.tolist()) == ([0, 2, 1], [16.0, 12.0, 0.0])  # the moved query is (4, 0)


def test_an_adaptor_keeps_lengths_and_its_loss_compares_by_them() -> None:
    net = AdaptorNet(4, zero=True, similarity="dot")
    vectors = 5 * draw_directions(6, 4, 3).astype(np.float32)
    assert np.allclose(Adaptor(net.copy_tensors(), "dot")(vectors), vectors)
    queries, documents = torch.from_numpy(vectors[:3]), torch.from_numpy(vectors[3:])
    assert torch.allclose(net.compare(queries, documents), torch.einsum("ij,ij->i", queries, documents))


# Training


def make_batch() -> tuple[torch.Tensor, torch.Tensor, ContrastiveBatch]:
    generator = torch.Generator().manual_seed(5)
    queries, passages = 3 * torch.randn(3, 8, generator=generator), 2 * torch.randn(5, 8, generator=generator)
    batch = ContrastiveBatch(
        ["a", "b", "c"], ["p", "q", "r", "s", "t"], np.array([0, 1, 2, 0, 1]), np.zeros((3, 5), dtype=bool),
        np.array([3.0, 1.0, 1.0, 2.0, 0.5], dtype=np.float32),
    )  # fmt: skip
    return queries, passages, batch


def test_the_contrastive_loss_is_that_of_plain_dot_products() -> None:
    queries, passages, batch = make_batch()
    settings = ContrastiveSettings(temperature=2.0, mask_known_positives=False)
    scores = np.array([[float(torch.dot(q, p)) / 2.0 for p in passages] for q in queries])
    by_hand = np.mean([np.log(np.exp(row).sum()) - row[number] for number, row in enumerate(scores)])
    assert contrastive_loss(queries, passages, batch, settings, "dot").item() == pytest.approx(by_hand, rel=1e-5)
    assert contrastive_loss(queries, passages, batch, settings).item() != pytest.approx(by_hand, rel=1e-2)


def test_ranknet_compares_dot_products() -> None:
    lists, passages, batch = make_batch()
    terms = []
    for better, worse in ((0, 3), (1, 4)):
        gap = float(torch.dot(lists[batch.owner[better]], passages[better] - passages[worse])) / 4.0
        terms.append(np.log1p(np.exp(-gap)))
    assert ranknet_loss(lists, passages, batch, 4.0, "dot").item() == pytest.approx(np.mean(terms), rel=1e-5)


# Exports


def test_mteb_is_told_the_similarity() -> None:
    pytest.importorskip("mteb")
    from retbench.pipelines.mteb_bridge.search_model import build_model_meta

    card = catalog.find_model_card("contriever-msmarco")
    meta = build_model_meta(card, catalog.find_method("contriever"), None)
    assert (meta.similarity_fn_name.value, meta.experiment_kwargs) == ("dot", None)
    other = build_model_meta(card, catalog.find_method("mean"), None)
    assert (other.similarity_fn_name.value, other.experiment_kwargs) == ("cosine", {"method": "mean"})


def test_the_sentence_transformers_export_gives_the_same_vectors(model: Path, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from retbench.encoders.prompt_tokenizer import PromptTokenizer
    from retbench.engines.tokenizers import load_tokenizer
    from retbench.training.sentence_transformers_export import export_sentence_transformers

    method: Method = catalog.find_method("contriever")
    sheet = PromptTokenizer(load_tokenizer(model), method)
    folder = export_sentence_transformers(model, sheet, tiny_models.WIDTH, tmp_path / "exported")
    loaded = sentence_transformers.SentenceTransformer(str(folder))
    assert loaded.similarity_fn_name == "dot"
    texts = list(tiny_models.SENTENCES[:4])
    assert np.allclose(loaded.encode(texts), compute_means(model, texts), atol=1e-4)


def test_approximate_search_ranks_by_dot_product() -> None:
    pytest.importorskip("faiss")
    from retbench.cards.ann_settings import IvfSettings
    from retbench.retrievers.approximate_search import search_approximately

    lengths = np.linspace(1, 9, 200)[:, None]
    documents = (lengths * draw_directions(200, 8, 4)).astype(np.float32)
    queries = (3 * draw_directions(5, 8, 6)).astype(np.float32)
    settings = IvfSettings(lists=4, probes=4)
    ranking, facts = search_approximately(settings, queries, lambda: [VectorBlock(np.arange(200), documents)], 10, 200)
    assert facts["recall"] == 1.0
    for rows, scores in zip(ranking.rows, queries.astype(float) @ documents.astype(float).T, strict=True):
        assert rows.tolist() == np.argsort(-scores, kind="stable")[:10].tolist()
