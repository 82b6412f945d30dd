"""Vectors equal a plain transformers computation of one text at a time, for a decoder and for an encoder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retbench.cards import catalog
from retbench.corpora.texts import Texts
from retbench.encoders import shard_tasks
from retbench.encoders.dense_encoder import BackboneEncoder
from retbench.encoders.embed_texts import EmbeddingJob, embed_texts
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.encoders.shard_tasks import InProcessWorker
from retbench.engines import backbone
from retbench.errors import DataError
from retbench.store.shard_store import ShardStore
from tests import tiny_models
from tests.small_collection import DOCUMENTS

LONG = " ".join(tiny_models.SENTENCES)
TEXTS = [*tiny_models.SENTENCES[:9], LONG, "x"]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_model(tmp_path_factory.mktemp("decoder"))


def build_other_model(folder: Path, kind: str, **config: Any) -> Path:
    """A small random model of another kind."""
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model: Any = AutoConfig.for_model(kind, vocab_size=tiny_models.VOCABULARY, **sizes, **config)
    AutoModel.from_config(model).save_pretrained(folder)
    tiny_models.build_tokenizer().save_pretrained(folder)
    return folder


def load_encoder(folder: Path, method: str, **changes: Any) -> BackboneEncoder:
    facts = {"query_limit": 64, "document_limit": 64, "dtype": "float32", **changes}
    spec = EncoderSpec("weights", catalog.load_methods().find(method), "", **facts)
    loaded = backbone.load_backbone(folder, spec.dtype, torch.device("cpu"))
    return BackboneEncoder(spec, loaded, PromptTokenizer(loaded.tokenizer, spec.method))


def compute_plain_vector(folder: Path, ids: list[int], pooling: str) -> np.ndarray:
    """Compute one text without padding and without retbench code."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    vector = (states[-1] if pooling == "last" else states.mean(0)).numpy()
    return np.asarray(vector / np.linalg.norm(vector))


@pytest.mark.parametrize("method", ["last", "mean", "promptreps"])
def test_a_padded_batch_gives_the_vectors_of_single_texts(decoder: Path, method: str) -> None:
    encoder = load_encoder(decoder, method)
    tokens = encoder.tokenize(TEXTS, "document")
    vectors = encoder.encode(tokens)
    assert vectors.dtype == np.float32
    for row in range(len(TEXTS)):
        assert vectors[row] @ compute_plain_vector(decoder, tokens[row].tolist(), encoder.spec.method.pooling) > 0.99999


GEMMA = {"num_key_value_heads": 1, "head_dim": 16}
BIDIRECTIONAL_FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    "mpnet": {},  # it has no fused attention kernel
    "albert": {"embedding_size": 32},
    "camembert": {},
    "gemma3_text": {**GEMMA, "use_bidirectional_attention": True},
}


@pytest.mark.parametrize(("kind", "config"), BIDIRECTIONAL_FAMILIES.items(), ids=BIDIRECTIONAL_FAMILIES)
def test_bidirectional_attention_ignores_padding(kind: str, config: dict[str, Any], tmp_path: Path) -> None:
    folder = build_other_model(tmp_path, kind, **config)
    encoder = load_encoder(folder, "mean")
    assert not encoder.backbone.causal
    tokens = encoder.tokenize(TEXTS, "query")
    vectors = encoder.encode(tokens)
    for row in range(len(TEXTS)):
        assert vectors[row] @ compute_plain_vector(folder, tokens[row].tolist(), "mean") > 0.99999


def test_soft_capped_attention_uses_eager_attention(tmp_path: Path) -> None:
    folder = build_other_model(tmp_path, "gemma2", **GEMMA)
    encoder = load_encoder(folder, "last")
    assert (encoder.backbone.causal, encoder.kernel) == (True, "eager")
    tokens = encoder.tokenize(TEXTS, "query")
    for vector, row in zip(encoder.encode(tokens), range(len(TEXTS)), strict=True):
        assert vector @ compute_plain_vector(folder, tokens[row].tolist(), "last") > 0.99999


def texts(tmp_path: Path, rows: int = len(DOCUMENTS)) -> Texts:
    from retbench.corpora.collection_cache import compile_collection
    from retbench.corpora.rows import Judgment, RawCollection, TextRow

    documents = [TextRow(f"{name}-{i}", title, text) for i in range(-(-rows // 20)) for name, title, text in DOCUMENTS]
    raw = RawCollection(documents[:rows], [TextRow("q", "", "a query")], {"test": [Judgment("q", documents[0].id, 1)]})
    compile_collection(raw, tmp_path / "compiled")
    return Texts.open(tmp_path / "compiled" / "corpus.arrow", "print")


def embed_to_matrix(encoder: Any, job: EmbeddingJob, store: ShardStore) -> np.ndarray:
    matrix = np.zeros((len(job.texts), encoder.dimension), dtype=np.float32)
    for block in embed_texts(InProcessWorker(lambda: encoder), job, store, lambda *step: None):
        matrix[block.rows] = block.vectors
    return matrix


def test_a_finished_store_needs_no_model(decoder: Path, tmp_path: Path) -> None:
    encoder, job, store = load_encoder(decoder, "mean"), None, ShardStore(tmp_path / "store")
    job = EmbeddingJob(texts(tmp_path), ("title", "text"), "document", 256)
    first = embed_to_matrix(encoder, job, store)

    def never() -> BackboneEncoder:
        raise AssertionError("the model was asked for")

    blocks = [block for block in embed_texts(InProcessWorker(never), job, store, lambda *step: None)]
    assert np.array_equal(np.concatenate([b.vectors for b in blocks]), first[np.concatenate([b.rows for b in blocks])])
    assert np.allclose(np.linalg.norm(first, axis=1), 1, atol=1e-5)


def test_an_interrupted_job_resumes(decoder: Path, tmp_path: Path) -> None:
    encoder = load_encoder(decoder, "mean")
    job = EmbeddingJob(texts(tmp_path, 40), ("title", "text"), "document", 64, shard_rows=10)
    uninterrupted = embed_to_matrix(encoder, job, ShardStore(tmp_path / "whole"))
    seen: list[int] = []
    broken = ShardStore(tmp_path / "broken")
    blocks = embed_texts(
        InProcessWorker(lambda: encoder),
        job,
        broken,
        lambda done, total, tokens, left: seen.append(done * (tokens > 0)),
    )
    next(blocks), next(blocks)
    blocks.close()
    assert sum(seen) == 20
    assert not broken.is_complete()
    seen.clear()
    resumed = np.zeros_like(uninterrupted)
    for block in embed_texts(
        InProcessWorker(lambda: encoder),
        job,
        broken,
        lambda done, total, tokens, left: seen.append(done * (tokens > 0)),
    ):
        resumed[block.rows] = block.vectors
    assert sum(seen) == 20  # the two finished shards were read, not computed
    assert np.array_equal(resumed, uninterrupted)


def test_a_store_started_on_one_device_type_is_not_resumed_on_another(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, store = load_encoder(decoder, "mean"), ShardStore(tmp_path / "store")
    job = EmbeddingJob(texts(tmp_path, 40), ("title", "text"), "document", 64, shard_rows=10)
    begun = embed_texts(InProcessWorker(lambda: encoder), job, store, lambda *step: None)
    next(begun)
    begun.close()
    assert store.load_or_create_plan(dict)["device"] == "cpu"
    monkeypatch.setattr(shard_tasks.memory, "compute_token_budget", lambda run, longest, ceiling: ceiling)
    monkeypatch.setattr(shard_tasks, "get_device", lambda: torch.device("cuda"))
    with pytest.raises(DataError, match="started on cpu, and this run computes on cuda") as caught:
        embed_to_matrix(encoder, job, store)
    assert "RETBENCH_DEVICE=cpu" in caught.value.next_step
    monkeypatch.undo()
    embed_to_matrix(encoder, job, store)


def test_a_damaged_shard_is_computed_again(decoder: Path, tmp_path: Path) -> None:
    encoder, store = load_encoder(decoder, "mean"), ShardStore(tmp_path / "store")
    job = EmbeddingJob(texts(tmp_path), ("title", "text"), "document", 256)
    first = embed_to_matrix(encoder, job, store)
    file = store.folder / "shard-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    assert np.array_equal(embed_to_matrix(encoder, job, store), first)


def test_a_nan_vector_names_its_document(decoder: Path, tmp_path: Path) -> None:
    encoder = load_encoder(decoder, "mean")
    with torch.no_grad():
        encoder.backbone.model.get_input_embeddings().weight.fill_(float("nan"))
    job = EmbeddingJob(texts(tmp_path), ("title", "text"), "document", 256)
    with pytest.raises(DataError, match=r"vector of document '.*' is zero or not a number"):
        embed_to_matrix(encoder, job, ShardStore(tmp_path / "store"))


def test_the_key_follows_every_fact(tmp_path: Path) -> None:
    spec = EncoderSpec("weights", catalog.load_methods().find("promptreps"), "", 64, 64, "float32")
    job = EmbeddingJob(texts(tmp_path), ("title", "text"), "document", 256)
    base = job.compute_key(spec.describe_vectors("document"))
    from dataclasses import replace

    other_letter = replace(spec, method=replace(spec.method, document=spec.method.document.replace("one", "One")))
    changes = {
        "a letter of the prompt": job.compute_key(other_letter.describe_vectors("document")),
        "the length": job.compute_key(replace(spec, document_limit=63).describe_vectors("document")),
        "the dtype": job.compute_key(replace(spec, dtype="bfloat16").describe_vectors("document")),
        "the weights": job.compute_key(replace(spec, weights="others").describe_vectors("document")),
        "the field policy": replace(job, fields=("text",)).compute_key(spec.describe_vectors("document")),
        "the role": replace(job, role="query").compute_key(spec.describe_vectors("query")),
        "the texts": replace(job, texts=job.texts.take([1, 0])).compute_key(spec.describe_vectors("document")),
    }
    assert all(key != base for key in changes.values()), changes
    queries_only = replace(spec, query_limit=1, method=replace(spec.method, query="{text}", title="renamed"))
    assert job.compute_key(queries_only.describe_vectors("document")) == base
    assert replace(job, budget=1).compute_key(spec.describe_vectors("document")) == base
