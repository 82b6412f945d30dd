"""Models at toy size: the architecture of a card's family, two layers of random weights and a byte-level tokenizer.

Rankings by random weights mean nothing. Loading, prompts, pooling, training and reranking are those of the real model.
"""

from pathlib import Path
from typing import Any

from retbench.cards.model import ModelCard
from retbench.pipelines.studies.toy_vision_weights import write_toy_vision_weights

SEED = 7
WIDTH = 32
VOCABULARY = 480
DEFAULT_WINDOW = 512
ENCODER, MULTILINGUAL, DECODER = "Bert", "XLMRoberta", "Qwen2"  # class names of transformers
ENCODER_FAMILIES = ("bge", "contriever", "e5", "minilm", "mxbai", "tinybert")
DECODERS = {"qwen3": "Qwen3", "llama": "Llama", "smollm2": "Llama", "mistral": "Mistral", "phi": "Phi3"}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_toy_weights(card: ModelCard, texts: list[str], folder: Path) -> None:
    """Write a Hugging Face folder with the card's architecture; the tokenizer is trained on the texts."""
    import torch

    tokenizer = _build_tokenizer(texts)
    if card.specialisation == "vision":
        write_toy_vision_weights(card, tokenizer, folder)
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = _build_model(card, tokenizer)
    if model.can_generate():  # a random model repeats a token up to its limit; so every token ends an answer
        model.generation_config.eos_token_id = list(range(VOCABULARY))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _build_model(card: ModelCard, tokenizer: Any) -> Any:
    import transformers

    sizes: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": card.context_length or DEFAULT_WINDOW,
        "pad_token_id": tokenizer.pad_token_id,
    }
    architecture = _find_architecture(card)
    if architecture in (ENCODER, MULTILINGUAL):
        config = getattr(transformers, f"{architecture}Config")(**sizes)
        return getattr(transformers, f"{architecture}Model")(config)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "tie_word_embeddings": True}
    config = getattr(transformers, f"{architecture}Config")(**sizes, **ends, num_key_value_heads=1)
    return getattr(transformers, f"{architecture}ForCausalLM")(config)


def _find_architecture(card: ModelCard) -> str:
    """The class of the card's family."""
    if card.family in ENCODER_FAMILIES:
        return MULTILINGUAL if card.name.startswith(("bge-m3", "multilingual")) else ENCODER
    return DECODERS.get(str(card.family), DECODER)


def _build_tokenizer(texts: list[str]) -> Any:
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    untrained: Any = Qwen2Tokenizer()
    tokenizer = untrained.train_new_from_iterator(
        texts,
        vocab_size=VOCABULARY,
        new_special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
