"""Every method and model family gives on the device the vectors of plain transformers on a CPU."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from retbench.cards import catalog
from retbench.cards.method import Role
from retbench.cards.model import Dtype
from retbench.encoders import shard_tasks
from retbench.encoders.dense_encoder import BackboneEncoder
from retbench.encoders.embed_texts import EmbeddingJob, embed_texts
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.encoders.shard_tasks import InProcessWorker
from retbench.engines import backbone
from retbench.store.shard_store import ShardStore
from tests import plain_transformers, tiny_models

MIN_COSINE: dict[Dtype, float] = {"float32": 0.9999, "bfloat16": 0.99}
LIMIT = 120
TEXTS = (*tiny_models.SENTENCES[:5], "x", 'A "quoted" word, ünïcödé and 世界.', " ".join(tiny_models.SENTENCES))

SIZES = {
    "vocab_size": tiny_models.VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 600,
    "pad_token_id": 1,
}
DECODER = {"num_key_value_heads": 2, "head_dim": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", DECODER),
    "mistral": ("mistral", {**DECODER, "sliding_window": None}),
    "mistral with a window": ("mistral", {**DECODER, "sliding_window": 16}),
    "qwen2": ("qwen2", {**DECODER}),
    "qwen2 with a window": ("qwen2", {"num_key_value_heads": 2, "use_sliding_window": True, "sliding_window": 16,
                                      "max_window_layers": 1}),
    "qwen3": ("qwen3", DECODER),
    "qwen2.5-vl's text part": ("qwen2_5_vl_text", {
        "num_key_value_heads": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}),
    "gemma": ("gemma", DECODER),
    "gemma2": ("gemma2", {**DECODER, "sliding_window": 16}),
    "gemma3's text part": ("gemma3_text", {**DECODER, "sliding_window": 16}),
    "phi3": ("phi3", {"num_key_value_heads": 2}),
    "pythia": ("gpt_neox", {}),
    "bert": ("bert", {}),
    "roberta": ("roberta", {}),
    "xlm-roberta": ("xlm-roberta", {}),
    "mpnet": ("mpnet", {}),
    "modernbert": ("modernbert", {"local_attention": 16}),
}  # fmt: skip


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_model(tmp_path_factory.mktemp("decoder"))


def build_family(name: str, folder: Path) -> Path:
    """Build a random model with random norms and biases too: ones and zeros would hide errors."""
    from transformers import AutoConfig, AutoModel

    kind, config = FAMILIES[name]
    torch.manual_seed(3)
    model: Any = AutoModel.from_config(AutoConfig.for_model(kind, **{**SIZES, **config}))
    for weight_name, weight in model.named_parameters():
        offset = 1.0 if "norm" in weight_name.lower() and weight_name.endswith("weight") else 0.0
        torch.nn.init.normal_(weight, mean=offset, std=0.1)
    model.save_pretrained(folder)
    tiny_models.build_tokenizer().save_pretrained(folder)
    return folder


def load_encoder(folder: Path, method: str, dtype: Dtype, device: torch.device) -> BackboneEncoder:
    card = catalog.find_method(method)
    spec = EncoderSpec("weights", card, card.instruction, LIMIT, LIMIT, dtype)
    loaded = backbone.load_backbone(folder, dtype, device).with_method(card.attention, card.layer)
    return BackboneEncoder(spec, loaded, PromptTokenizer(loaded.tokenizer, card, card.instruction))


def compute_cosines(encoder: BackboneEncoder, folder: Path, method: str, role: Role) -> list[float]:
    """Compute the cosine of each text in a batch with the same text encoded by plain transformers."""
    tokens = encoder.tokenize(TEXTS, role)
    vectors = encoder.encode(tokens)
    assert vectors.dtype == np.float32
    cosines = []
    for row, text in enumerate(TEXTS):
        pooled_ids = plain_transformers.METHODS[method](encoder.prompt_tokenizer.tokenizer, text, role, LIMIT)
        assert tokens[row].tolist() == pooled_ids.ids, text
        cosines.append(
            float(
                vectors[row]
                @ plain_transformers.compute_vector(folder, pooled_ids, method in plain_transformers.BIDIRECTIONAL)
            )
        )
    return cosines


@pytest.mark.parametrize("dtype", MIN_COSINE)
@pytest.mark.parametrize("method", plain_transformers.METHODS)
def test_a_method_gives_the_vectors_of_transformers(
    decoder: Path, method: str, dtype: Dtype, device: torch.device
) -> None:
    encoder = load_encoder(decoder, method, dtype, device)
    for role in ("query", "document"):
        assert min(compute_cosines(encoder, decoder, method, role)) > MIN_COSINE[dtype], role


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_family_gives_the_vectors_of_transformers(name: str, tmp_path: Path, device: torch.device) -> None:
    folder = build_family(name, tmp_path)
    cosines = {
        dtype: min(compute_cosines(load_encoder(folder, "mean", dtype, device), folder, "mean", "document"))
        for dtype in MIN_COSINE
    }
    assert cosines["float32"] > MIN_COSINE["float32"], cosines
    assert cosines["bfloat16"] > MIN_COSINE["bfloat16"], cosines


def test_a_batch_gives_the_vectors_of_single_texts(decoder: Path, device: torch.device) -> None:
    encoder = load_encoder(decoder, "last", "float32", device)
    tokens = encoder.tokenize(TEXTS, "document")
    together = encoder.encode(tokens)
    for row in range(len(TEXTS)):
        assert np.abs(encoder.encode(tokens.select(np.array([row])))[0] - together[row]).max() < 1e-4


class SentenceRows:
    """The test sentences with the interface of a collection's texts."""

    fingerprint, images, prefers_images = "sentences", None, False

    def __len__(self) -> int:
        return len(tiny_models.SENTENCES)

    def __iter__(self) -> Iterator[Any]:
        return (SimpleNamespace(title="", text=text) for text in tiny_models.SENTENCES)


@pytest.mark.parametrize("dtype", MIN_COSINE)
def test_stored_vectors_are_those_of_single_texts(
    decoder: Path, dtype: Dtype, device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shards and batches are computed ahead, and their vectors arrive later, from memory that is used again."""
    monkeypatch.setattr(shard_tasks, "OVERLAPPED_DEVICES", (device.type,))
    encoder = load_encoder(decoder, "mean", dtype, device)
    job = EmbeddingJob(SentenceRows(), ("text",), "document", 64, 5)  # type: ignore[arg-type]
    worker, store = InProcessWorker(lambda: encoder), ShardStore(tmp_path / "store")
    blocks = list(embed_texts(worker, job, store, lambda *_: None))
    tokens = encoder.tokenize(tiny_models.SENTENCES, "document")
    assert len(blocks) > 3
    for block in blocks:
        for row, vector in zip(block.rows, block.vectors, strict=True):
            assert float(vector @ encoder.encode(tokens.select(np.array([row])))[0]) > MIN_COSINE[dtype]
