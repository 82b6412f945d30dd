"""Tiny models that read images, with random weights: real Hugging Face folders of every supported family."""

from pathlib import Path
from typing import Any

from tests.tiny_models import SEED, build_tokenizer

IMAGE_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
DECODERS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
TOWERS = ("clip", "siglip", "siglip2")


def build_vision_model(folder: Path, family: str) -> Path:
    """Write a model of a family to `folder`."""
    return (_build_towers if family in TOWERS else _build_decoder)(folder, family)


def build_page_retriever(folder: Path, architecture: str) -> Path:
    """Write a ColQwen or ColPali model: as transformers saves it, or as colpali-engine does (not installed here)."""
    import torch
    import transformers
    from safetensors.torch import save_file

    if architecture in ("ColQwen2ForRetrieval", "ColPaliForRetrieval"):
        name = architecture.removesuffix("ForRetrieval")
        config = _build_paligemma_config(folder) if name == "ColPali" else _build_decoder_config(folder, "qwen2_vl")
        own_config = getattr(transformers, f"{name}Config")(vlm_config=config.to_dict(), embedding_dim=16)
        _randomize(getattr(transformers, architecture), own_config).save_pretrained(folder)
        return folder
    config, model_class = {
        "ColQwen2": lambda: (_build_decoder_config(folder, "qwen2_vl"), transformers.Qwen2VLModel),
        "ColQwen2_5": lambda: (_build_decoder_config(folder, "qwen2_5_vl"), transformers.Qwen2_5_VLModel),
        "ColPali": lambda: (_build_paligemma_config(folder), transformers.PaliGemmaModel),
    }[architecture]()
    weights = {
        _rename_as_published(architecture, name): value.contiguous()
        for name, value in _randomize(model_class, config).state_dict().items()
    }
    generator = torch.Generator().manual_seed(SEED)
    weights["custom_text_proj.weight"] = torch.randn(16, 64, generator=generator)
    weights["custom_text_proj.bias"] = torch.randn(16, generator=generator)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config.architectures = [architecture]
    config.save_pretrained(folder)
    return folder


def _rename_as_published(architecture: str, name: str) -> str:
    """The name of a weight in the version of transformers that the published weights were saved with."""
    if architecture != "ColPali":
        return name.replace("language_model.", "model.")
    part, _, rest = name.partition(".")
    return f"model.{part}.{ {'language_model': 'model.', 'vision_tower': 'vision_model.'}.get(part, '') }{rest}"


def _build_decoder(folder: Path, family: str) -> Path:
    import transformers

    config = _build_decoder_config(folder, family)
    names = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
    _randomize(getattr(transformers, f"{names[family]}ForConditionalGeneration"), config).save_pretrained(folder)
    return folder


def _randomize(model_class: Any, config: Any) -> Any:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = model_class(config)
        for parameter in model.parameters():  # large enough that an image changes a vector
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.1)
    return model


def _build_decoder_config(folder: Path, family: str) -> Any:
    """Write tokenizer and image processor; return the config."""
    import transformers
    from transformers import AutoConfig

    tokens = build_tokenizer()
    tokens.add_special_tokens({"additional_special_tokens": list(IMAGE_TOKENS)})
    start, end, image, video = tokens.convert_tokens_to_ids(list(IMAGE_TOKENS))
    patch = 16 if family == "qwen3_vl" else 14
    vision: dict[str, Any] = {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": patch, "in_channels": 3}
    vision |= {
        "qwen2_vl": {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2},
        "qwen2_5_vl": {
            "out_hidden_size": 64, "intermediate_size": 48, "window_size": 56, "fullatt_block_indexes": [1],
        },
        "qwen3_vl": {
            "out_hidden_size": 64, "intermediate_size": 48, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
    }[family]  # fmt: skip
    text: dict[str, Any] = {
        "vocab_size": len(tokens), "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 4096,
        "bos_token_id": None, "eos_token_id": tokens.eos_token_id, "pad_token_id": tokens.pad_token_id,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]},
    }  # fmt: skip
    config = AutoConfig.for_model(
        family, text_config=text, vision_config=vision, image_token_id=image, video_token_id=video,
        vision_start_token_id=start, vision_end_token_id=end, tie_word_embeddings=True,
    )  # fmt: skip
    tokens.save_pretrained(folder)
    processor = transformers.Qwen2VLImageProcessorPil(
        patch_size=patch, merge_size=2, size={"shortest_edge": 4 * patch * patch, "longest_edge": 64 * patch * patch}
    )
    processor.save_pretrained(folder)
    return config


def _build_paligemma_config(folder: Path) -> Any:
    """Write tokenizer and image processor; return the config. An image is four tokens."""
    import transformers

    tokens = build_tokenizer()
    tokens.add_special_tokens({"bos_token": "<bos>", "pad_token": "<pad>", "additional_special_tokens": ["<image>"]})
    text = {
        "model_type": "gemma", "vocab_size": len(tokens), "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
        "max_position_embeddings": 4096,
    }  # fmt: skip
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "vision_use_head": False,
    }  # fmt: skip
    tokens.save_pretrained(folder)
    processor = transformers.SiglipImageProcessorPil(size={"height": 28, "width": 28}, image_seq_length=4)
    processor.save_pretrained(folder)
    return transformers.PaliGemmaConfig(
        text_config=text, vision_config=vision, projection_dim=64, hidden_size=64, vocab_size=len(tokens),
        image_token_index=tokens.convert_tokens_to_ids("<image>"), pad_token_id=tokens.pad_token_id,
    )  # fmt: skip


def _build_towers(folder: Path, family: str) -> Path:
    import torch
    import transformers
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoConfig

    tokens = build_tokenizer()
    tokens.chat_template = None
    marks = [(name, tokens.convert_tokens_to_ids(name)) for name in ("<|im_start|>", "<|im_end|>")]
    template = "<|im_start|> $A <|im_end|>" if family == "clip" else "$A <|im_end|>"
    tokens.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=marks)
    tokens.model_input_names = ["input_ids", "attention_mask"] if family == "clip" else ["input_ids"]
    length = 77 if family == "clip" else 64
    tokens.model_max_length = length
    shared: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    }  # fmt: skip
    text = {
        **shared, "vocab_size": len(tokens), "max_position_embeddings": length, "bos_token_id": marks[0][1],
        "eos_token_id": marks[1][1], "pad_token_id": tokens.pad_token_id,
        **({"projection_size": 32} if family != "clip" else {}),
    }  # fmt: skip
    # the processor of SigLIP 2 in transformers has a fixed patch size and number of patches
    size = {"patch_size": 16, "num_patches": 256} if family == "siglip2" else {"patch_size": 8, "image_size": 32}
    vision = {**shared, **size}
    extra = {"projection_dim": 24} if family == "clip" else {}
    config = AutoConfig.for_model(family, text_config=text, vision_config=vision, **extra)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = transformers.AutoModel.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    pixels = {"height": 32, "width": 32}
    processor: Any = {
        "clip": lambda: transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=pixels),
        "siglip": lambda: transformers.SiglipImageProcessorPil(size=pixels),
        "siglip2": lambda: transformers.Siglip2ImageProcessorPil(patch_size=16, max_num_patches=256),
    }[family]()
    processor.save_pretrained(folder)
    return folder
