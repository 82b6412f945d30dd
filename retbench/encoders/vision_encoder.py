"""The encoders of a model that reads images: rows with an image, with a text, or with both become vectors.

The images of one batch are read from the disk and decoded when the batch is computed, so memory never holds more.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from retbench.cards.method import Role
from retbench.corpora.images import decode_image
from retbench.encoders.batch_plan import estimate_shard_tokens
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.pooling import POOLINGS, scale_for_similarity
from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.encoders.text_encoder import RaggedVectors
from retbench.encoders.vision_tokenizer import VisionTokenizer
from retbench.engines import peak_throughput
from retbench.engines.backbone import TokenStates
from retbench.engines.memory import get_thread_count
from retbench.engines.token_layers import TokenLayers
from retbench.engines.vision_model import Pixels, VisionModel


@dataclass(frozen=True)
class VisionEncoderBase:
    """An encoder with a vision tower in this process: engine `transformers`."""

    spec: EncoderSpec
    model: VisionModel
    vision_tokenizer: VisionTokenizer

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return self.model.dimension

    @property
    def kernel(self) -> str:
        """The attention kernel, for the record."""
        return str(self.model.model.config._attn_implementation)

    @property
    def computed_dtype(self) -> str:
        """The dtype of the loaded weights, for the record."""
        return str(self.model.model.dtype).removeprefix("torch.")

    @property
    def shard_tokens(self) -> int | None:
        """Tokens of about half a minute of work, as if every token passed both the tower and the decoder."""
        shapes = peak_throughput.count_linear_shapes(self.model.model)
        flops = 2.0 * sum(count * rows * columns for (rows, columns), count in shapes.items())
        return estimate_shard_tokens(flops, self.model.device.type, self.computed_dtype, get_thread_count())

    def peak_throughput(self) -> None:
        """Not known: tokens of images and of texts pass different layers."""

    def tokenize(self, texts: Iterable[str], role: Role) -> TokenizedTexts:
        """Token ids of texts and images, texts truncated to the limit of the role."""
        return self.vision_tokenizer.tokenize(texts, role, self.spec.get_limit(role))

    def _read_pixels(self, batch: TokenizedTexts) -> tuple[np.ndarray, Pixels]:
        """Mark the rows with an image; read and decode their images."""
        data = [None if batch.images is None else batch.images.read(row) for row in range(len(batch))]
        has_image = np.array([image is not None for image in data])
        images = [decode_image(image) for image in data if image is not None]
        return has_image, self.model.processor.process(images) if images else {}

    def _compute_states(self, batch: TokenizedTexts, pixels: Pixels) -> TokenStates:
        sequential = self.spec.method.image_positions == "sequential"
        return self.model.compute_states(list(batch), pixels, sequential)


@dataclass(frozen=True)
class VisionEncoder(VisionEncoderBase):
    """One vector for each row: pooled from the states of a decoder, or made by the tower of its kind."""

    def encode(self, batch: TokenizedTexts) -> np.ndarray:
        """Encode one batch as float32 vectors, ready for the method's similarity."""
        has_image, pixels = self._read_pixels(batch)
        compute = self._encode_towers if self.model.processor.kind == "towers" else self._encode_decoder
        pooled = compute(batch, has_image, pixels)
        return np.asarray(scale_for_similarity(pooled, self.spec.method.similarity).cpu().numpy())

    def _encode_decoder(self, batch: TokenizedTexts, _: np.ndarray, pixels: Pixels) -> torch.Tensor:
        return POOLINGS[self.spec.method.pooling](*self._compute_states(batch, pixels))

    def _encode_towers(self, batch: TokenizedTexts, has_image: np.ndarray, pixels: Pixels) -> torch.Tensor:
        texts = [batch[int(row)] for row in np.flatnonzero(~has_image)]
        parts = [self.model.compute_image_features(pixels)] if pixels else []
        parts += [self.model.compute_text_features(texts)] if texts else []
        found = torch.cat(parts)  # the images first; here every vector returns to its row
        rows = np.concatenate((np.flatnonzero(has_image), np.flatnonzero(~has_image)))
        return found[torch.from_numpy(np.argsort(rows)).to(found.device)]


@dataclass(frozen=True)
class VisionLateInteractionEncoder(VisionEncoderBase):
    """One vector per token of a text or an image (ColQwen): the decoder's states through the folder's projection."""

    layers: TokenLayers

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return self.layers.dimension or self.model.dimension

    def encode(self, batch: TokenizedTexts) -> RaggedVectors:
        """Encode one batch as float32 vectors of its tokens, in their order."""
        _, pixels = self._read_pixels(batch)
        states = self._compute_states(batch, pixels).flat.float()
        vectors = scale_for_similarity(self.layers.transform(states), self.spec.method.similarity)
        return RaggedVectors(np.asarray(vectors.cpu().numpy()), batch.offsets)
