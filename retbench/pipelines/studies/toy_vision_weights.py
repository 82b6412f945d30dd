"""Models that read images at toy size, with random weights.

Two towers (CLIP, SigLIP), or a decoder with a vision tower (Qwen-VL).
"""

from pathlib import Path
from typing import Any

from retbench.cards.model import ModelCard

SEED = 7
WIDTH = 32
PIXELS = 32  # the side of an image that a tower reads
IMAGE_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
START, END = "<|im_start|>", "<|im_end|>"
DECODERS = {"qwen2-vl": "Qwen2VL", "qwen2.5": "Qwen2_5_VL", "qwen3-vl": "Qwen3VL"}  # class names by family
MOST_PATCHES = 64
SHAPE: dict[str, Any] = {
    "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip


def write_toy_vision_weights(card: ModelCard, tokenizer: Any, folder: Path) -> None:
    """Write a Hugging Face folder with the architecture of the card's family, its tokenizer and image processor."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model, processor = (
            _build_decoder(card, tokenizer) if card.family in DECODERS else _build_towers(card, tokenizer)
        )
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.1)  # large enough that an image changes a vector
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)


def _build_towers(card: ModelCard, tokenizer: Any) -> tuple[Any, Any]:
    """A text tower and an image tower."""
    import transformers
    from tokenizers.processors import TemplateProcessing

    family = "clip" if card.family == "clip" else "siglip"
    start, end = (tokenizer.convert_tokens_to_ids(name) for name in (START, END))
    template = f"{START} $A {END}" if family == "clip" else f"$A {END}"
    tokenizer.chat_template = None
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[(START, start), (END, end)]
    )
    tokenizer.model_input_names = ["input_ids", "attention_mask"] if family == "clip" else ["input_ids"]
    tokenizer.model_max_length = card.context_length or 64
    text = {
        **SHAPE, "vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": start, "eos_token_id": end, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {**SHAPE, "patch_size": 8, "image_size": PIXELS}
    extra = {"projection_dim": WIDTH} if family == "clip" else {}
    text |= {"projection_size": WIDTH} if family == "siglip" else {}
    config = transformers.AutoConfig.for_model(family, text_config=text, vision_config=vision, **extra)
    pixels = {"height": PIXELS, "width": PIXELS}
    processor: Any = (
        transformers.CLIPImageProcessorPil(size={"shortest_edge": PIXELS}, crop_size=pixels)
        if family == "clip"
        else transformers.SiglipImageProcessorPil(size=pixels)
    )
    return transformers.AutoModel.from_config(config), processor


def _build_decoder(card: ModelCard, tokenizer: Any) -> tuple[Any, Any]:
    """A language model that reads the patches of an image as tokens."""
    import transformers

    tokenizer.add_special_tokens({"additional_special_tokens": list(IMAGE_TOKENS)})
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(IMAGE_TOKENS))
    name = DECODERS[str(card.family)]
    patch = 16 if name == "Qwen3VL" else 14
    vision: dict[str, Any] = {"depth": 2, "hidden_size": WIDTH, "num_heads": 2, "patch_size": patch, "in_channels": 3}
    own: dict[str, dict[str, Any]] = {
        "Qwen2VL": {"embed_dim": WIDTH, "mlp_ratio": 2},
        "Qwen2_5_VL": {
            "out_hidden_size": WIDTH, "intermediate_size": WIDTH, "window_size": 56, "fullatt_block_indexes": [1],
        },
        "Qwen3VL": {
            "out_hidden_size": WIDTH, "intermediate_size": WIDTH, "num_position_embeddings": MOST_PATCHES,
            "deepstack_visual_indexes": [0],
        },
    }  # fmt: skip
    text = {
        **SHAPE, "vocab_size": len(tokenizer), "num_key_value_heads": 1, "head_dim": WIDTH // 2,
        "max_position_embeddings": card.context_length or 512, "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(
        text_config=text, vision_config={**vision, **own[name]}, image_token_id=image, video_token_id=video,
        vision_start_token_id=start, vision_end_token_id=end, tie_word_embeddings=True,
    )  # fmt: skip
    edges = {"shortest_edge": 4 * patch * patch, "longest_edge": MOST_PATCHES * patch * patch}
    processor: Any = transformers.Qwen2VLImageProcessorPil(patch_size=patch, merge_size=2, size=edges)
    return getattr(transformers, f"{name}ForConditionalGeneration")(config), processor
