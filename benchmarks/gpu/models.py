"""Models of real shapes with random weights, built on the device, and random texts for them.

One word is one token, so the drawn lengths are token lengths. Both sides use this tokenizer, which is faster than a
real byte-pair tokenizer.
"""

from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")

# model type, width, layers, heads, heads of keys, width of the MLP, vocabulary
Shape = tuple[str, int, int, int, int, int, int]
SHAPES: dict[str, Shape] = {
    "135M": ("llama", 576, 30, 9, 3, 1536, 49_152),
    "0.5B": ("qwen2", 896, 24, 14, 2, 4864, 151_936),
    "7B": ("qwen2", 3584, 28, 28, 4, 18_944, 151_936),
}
TINY: dict[str, Shape] = {
    "tiny llama": ("llama", 64, 2, 4, 2, 128, 500),
    "tiny qwen2": ("qwen2", 64, 2, 4, 2, 128, 500),
}
# the median of token counts, the spread of their logarithm, the cut
LENGTHS = {"passages": (70, 0.4, 512), "code": (250, 0.9, 2048), "constant 512": (512, 0.0, 512)}


def get_shapes() -> dict[str, Shape]:
    """Real shapes on a GPU, tiny shapes on a CPU."""
    return SHAPES if CUDA else TINY


def build_model(shape: Shape) -> Any:
    """A backbone in bfloat16 with random weights."""
    kind, width, layers, heads, keys, mlp, vocabulary = shape
    config = AutoConfig.for_model(
        kind, vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=keys, intermediate_size=mlp, max_position_embeddings=4096, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    with DEVICE:
        model = AutoModel.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    return model.to(DEVICE).eval()


def count_linear_weights(model: Any) -> int:
    """The number of weights that every token is multiplied with."""
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))


def build_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(vocabulary)}, unk_token="w0"))  # noqa: S106  no password
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", unk_token="w0", eos_token="w1")  # noqa: S106  no password


def draw_texts(kind: str, tokens: int, vocabulary: int, seed: int = 7) -> list[str]:
    """Random texts with about `tokens` tokens in total."""
    middle, spread, longest = LENGTHS[kind]
    draw = np.random.default_rng(seed)
    count = max(4, int(tokens / (middle * np.exp(spread**2 / 2))))
    lengths = np.clip(np.exp(draw.normal(np.log(middle), spread, count)).round(), 4, longest).astype(int)
    return [" ".join(f"w{number}" for number in draw.integers(2, vocabulary, length)) for length in lengths]
