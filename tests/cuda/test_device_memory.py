"""A GPU with full memory: batches are halved, and a batch plan that is built there fits."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from retbench.cards import catalog
from retbench.encoders import shard_tasks
from retbench.encoders.dense_encoder import BackboneEncoder
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.prompt_tokenizer import PromptTokenizer, TokenizedTexts
from retbench.encoders.shard_tasks import ShardTask
from retbench.engines import backbone, memory
from retbench.errors import ResourceError
from tests import tiny_models

LENGTH = 400
FREE_BYTES = 400 << 20  # bytes to leave free


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> BackboneEncoder:
    folder = tiny_models.build_model(tmp_path_factory.mktemp("models") / "tiny", intermediate_size=4096)
    method = catalog.find_method("mean")
    loaded_backbone = backbone.load_backbone(folder, "float32", device)
    return BackboneEncoder(
        EncoderSpec("w", method, "", 512, 512, "float32"),
        loaded_backbone,
        PromptTokenizer(loaded_backbone.tokenizer, method),
    )


@contextmanager
def fill_gpu_memory(free: int = FREE_BYTES) -> Iterator[None]:
    """Occupy the GPU's memory except `free` bytes, as another program would."""
    gc.collect()
    torch.cuda.empty_cache()
    ballast = allocate_at_most(torch.cuda.mem_get_info()[0] - free)
    try:
        yield
    finally:
        del ballast
        torch.cuda.empty_cache()


def allocate_at_most(size: int) -> torch.Tensor:
    """Allocate `size` bytes, or the largest block that the driver can give."""
    while True:
        try:
            return torch.empty(size, dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError:
            size -= 8 << 20


def build_tokenized_texts(texts: int, length: int = LENGTH) -> TokenizedTexts:
    ids = np.random.default_rng(2).integers(2, tiny_models.VOCABULARY, texts * length).astype(np.int32)
    return TokenizedTexts(ids, np.arange(texts + 1) * length, 0, 0)


def compute_vectors(encoder: BackboneEncoder, batch: TokenizedTexts, size: int) -> shard_tasks.ComputedShard:
    sizes = tuple(min(size, len(batch) - start) for start in range(0, len(batch), size))
    return shard_tasks.compute_shard(
        encoder, ShardTask(0, "document", np.arange(len(batch)), batch, sizes, 1), lambda *_: None
    )


def test_a_batch_that_does_not_fit_is_halved(cuda: torch.device, loaded: BackboneEncoder) -> None:
    batch = build_tokenized_texts(2048)
    expected = compute_vectors(loaded, batch, 64)
    with fill_gpu_memory():
        vectors = compute_vectors(loaded, batch, 2048)
    assert expected.split_batches == 0
    assert vectors.split_batches > 0
    assert np.abs(vectors.block.vectors - expected.block.vectors).max() < 1e-4


def test_a_batch_plan_made_with_little_memory_fits(cuda: torch.device, loaded: BackboneEncoder) -> None:
    ceiling = 1 << 20
    with fill_gpu_memory():
        budget = shard_tasks.measure_encoder(loaded, build_tokenized_texts(1), ceiling).budget
        vectors = compute_vectors(loaded, build_tokenized_texts(2048), max(1, budget // LENGTH))
    assert LENGTH <= budget < ceiling
    assert vectors.split_batches == 0


def test_one_text_that_does_not_fit_is_an_error(cuda: torch.device, loaded: BackboneEncoder) -> None:
    compute_vectors(loaded, build_tokenized_texts(2), 2)  # warm-up: allocates kernels and their workspace
    with fill_gpu_memory(48 << 20), pytest.raises(ResourceError, match="does not fit into memory"):
        compute_vectors(loaded, build_tokenized_texts(1, 100_000), 1)


def test_a_cuda_out_of_memory_error_is_recognised(cuda: torch.device) -> None:
    with pytest.raises(RuntimeError) as problem:
        torch.empty(1 << 60, dtype=torch.uint8, device="cuda")
    assert memory.is_out_of_memory(problem.value)
