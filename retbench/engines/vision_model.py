"""The forward pass of a model that reads images, with its vision tower, in transformers.

The model is loaded as a whole, and missing weights are refused as everywhere. Decoders get rows of token ids in which
the tokens of an image stand one after the other, and the pixels of those images in the same order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retbench.cards.model import Dtype
from retbench.cards.vision_config import is_prefix_model
from retbench.engines import model_loader
from retbench.engines.backbone import TokenStates
from retbench.engines.image_processing import ImageProcessor, PixelLimits, load_image_processor
from retbench.engines.padding import pad_rows
from retbench.engines.tokenizers import load_tokenizer

Pixels = dict[str, torch.Tensor]


@dataclass(frozen=True)
class VisionModel:
    """A loaded model, its tokenizer and its image processor."""

    model: Any
    tokenizer: Any
    processor: ImageProcessor
    device: torch.device

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        config = self.model.config
        if self.processor.kind == "decoder":
            return int(config.get_text_config().hidden_size)
        text = config.text_config  # CLIP projects both towers; in SigLIP the text tower has a projection of its own
        return int(
            getattr(config, "projection_dim", None) or getattr(text, "projection_size", None) or text.hidden_size
        )

    @torch.inference_mode()
    def compute_states(self, rows: Sequence[np.ndarray], pixels: Pixels, sequential: bool) -> TokenStates:
        """Compute the last states of a decoder. `sequential` numbers the tokens of an image as if they were text."""
        padded = pad_rows(rows)
        ids, is_token = padded.ids.to(self.device), padded.token_mask.to(self.device)
        options: dict[str, Any] = {"mm_token_type_ids": (ids == self.processor.image_token_id).int()}
        if is_prefix_model(self.model.config.to_dict()):
            options = {"token_type_ids": torch.zeros_like(ids)}  # all of it is the prefix
        elif sequential:
            positions = torch.arange(ids.shape[1], device=self.device)
            options = {"position_ids": positions.expand(3, *ids.shape)}
        output = self.model(
            input_ids=ids, attention_mask=is_token.long(), use_cache=False, **self._move(pixels), **options
        )
        offsets = torch.cat((torch.zeros(1, dtype=torch.long), padded.lengths.cumsum(0)))
        return TokenStates(output.last_hidden_state[is_token], offsets.to(self.device))

    @torch.inference_mode()
    def compute_text_features(self, rows: Sequence[np.ndarray]) -> torch.Tensor:
        """Compute the vectors of texts by the text tower. SigLIP was trained on texts padded to its full length."""
        config = self.model.config
        length = {} if config.model_type == "clip" else {"max_length": config.text_config.max_position_embeddings}
        inputs = self.tokenizer.pad(
            {"input_ids": [row.tolist() for row in rows]}, padding="max_length" if length else True, **length,
            return_tensors="pt",
        )  # fmt: skip
        return self._read_features(self.model.get_text_features(**self._move(inputs)))

    @torch.inference_mode()
    def compute_image_features(self, pixels: Pixels) -> torch.Tensor:
        """Compute the vectors of images by the image tower."""
        return self._read_features(self.model.get_image_features(**self._move(pixels)))

    def _read_features(self, output: Any) -> torch.Tensor:
        return torch.as_tensor(output if isinstance(output, torch.Tensor) else output.pooler_output).float()

    def _move(self, inputs: Pixels) -> Pixels:
        """Move tensors to the device; pixels also to the dtype of the weights."""
        dtype = self.model.dtype
        return {
            key: value.to(self.device, dtype) if value.is_floating_point() else value.to(self.device)
            for key, value in inputs.items()
        }


def load_vision_model(folder: Path, dtype: Dtype, device: torch.device, limits: PixelLimits) -> VisionModel:
    """Load a Hugging Face folder with its vision tower, without a language-model head."""
    processor = load_image_processor(folder, limits)
    model: Any = model_loader.load_whole_model(folder, dtype, model_loader.get_device_map_options(device))
    return VisionModel(model.to(device).eval(), load_tokenizer(folder), processor, device)
