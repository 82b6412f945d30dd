"""A tiny Qwen2-type model, random weights and a trained byte-level tokenizer: a real Hugging Face folder in a second.

Its weights are random, so its rankings mean nothing. Loading, tokens, padding, chat template and shapes are those of
Qwen2.5.
"""

from pathlib import Path
from typing import Any

SEED = 7
VOCABULARY = 480
WIDTH = 64
LAYERS = 2

# Like Qwen2.5's template, it adds a system turn if the caller passes none.
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a tiny helpful model.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SENTENCES = (
    "The heart pumps blood through the arteries of the body.",
    "Blood pressure rises when the arteries become narrow.",
    "A healthy diet lowers the risk of heart disease.",
    "Vitamin D helps the bones to take up calcium.",
    "The liver breaks down most of the alcohol we drink.",
    "Smoking is the main cause of lung cancer.",
    "Vaccines teach the immune system to know a virus.",
    "Bacteria can become resistant to antibiotics.",
    "Sleep helps the brain to keep what it has learned.",
    "Insulin moves sugar from the blood into the cells.",
    "Paris is the capital of France and lies on the Seine.",
    "The river floods the valley after heavy rain.",
    "Mountains keep the wind away from the old town.",
    "Trains between the two cities run every hour.",
    "The bridge was built by the Romans.",
    "Bread is baked from flour, water, salt and yeast.",
    "Which language model is the better retriever?",
    "A query is short and a document is long.",
    "def add(a, b): return a + b",
    "for item in items: print(item)",
    "Sort the list and return the largest number.",
    "The function opens a file and reads every line.",
    "SELECT name FROM users WHERE age > 30;",
    "An index makes the search through a table fast.",
    "The sun warms the sea and the sea warms the air.",
    "Stars are born in clouds of cold gas.",
    "The moon pulls the water and makes the tides.",
    "Light needs eight minutes from the sun to the earth.",
    "Seeds need water, warmth and light to grow.",
    "Bees carry pollen from one flower to the next.",
    "Use one word to represent the passage in a retrieval task.",
    "Wie hoch ist der höchste Berg? 世界で一番高い山は？",
)


def build_model(folder: Path, **config: Any) -> Path:
    """Write the model and its tokenizer to `folder`; `config` overrides fields of its Qwen2Config."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokens = build_tokenizer()
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 128,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokens.eos_token_id,
        "pad_token_id": tokens.pad_token_id,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = Qwen2ForCausalLM(Qwen2Config(**{**settings, **config}))
        with torch.no_grad():  # transformers sets the row of the padding token to zero; here it is also the end token
            embeddings: Any = model.get_input_embeddings()
            embeddings.weight[tokens.pad_token_id].normal_(std=0.02)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


def build_tokenizer() -> Any:
    """A byte-level BPE tokenizer of Qwen's own class, trained on the sentences; it has no bos, and eos is also pad."""
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    untrained: Any = Qwen2Tokenizer()
    tokens = untrained.train_new_from_iterator(
        SENTENCES,
        vocab_size=VOCABULARY,
        new_special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.chat_template = CHAT_TEMPLATE
    return tokens


def build_cross_encoder(folder: Path, num_labels: int = 1, model_max_length: int | None = None) -> Path:
    """Write a BERT with a classification head; its tokenizer joins two texts and has a type for each."""
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    marks = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<|im_start|>", "<|im_end|>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", pair="<|im_start|> $A <|im_end|> $B:1 <|im_end|>:1", special_tokens=marks
    )
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    if model_max_length:
        tokenizer.model_max_length = model_max_length
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=96, num_hidden_layers=LAYERS,
        num_attention_heads=2, max_position_embeddings=128, num_labels=num_labels, initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    _save_random_weights(BertForSequenceClassification, config, folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_decoder_classifier(folder: Path) -> Path:
    """Write a Qwen2-type decoder with a classification head, which reads the state of the last token."""
    from transformers import Qwen2Config, Qwen2ForSequenceClassification

    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    config = Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=LAYERS,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512, num_labels=1, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, initializer_range=0.3,
    )  # fmt: skip
    _save_random_weights(Qwen2ForSequenceClassification, config, folder)
    tokenizer.save_pretrained(folder)
    return folder


# As Qwen3-Reranker's: a turn for the query and one for the document; a system turn replaces the instruction.
PAIR_TEMPLATE = (
    '<|im_start|>system\nJudge the Document. The answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: {{ messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first "
    "| default('Find passages that answer the query') }}\n"
    "<Query>: {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}\n"
    "<Document>: {{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}"
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n\n"
)


def build_yes_no_model(folder: Path, **config: Any) -> Path:
    """Write a Qwen3-type language model whose tokenizer has the tokens yes and no; it is no cross-encoder by itself."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["yes", "no"])
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 128, "num_hidden_layers": LAYERS,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 512,
        "tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id, "initializer_range": 0.3,
    }  # fmt: skip
    _save_random_weights(Qwen3ForCausalLM, Qwen3Config(**{**settings, **config}), folder)
    tokenizer.save_pretrained(folder)
    return folder


def publish_yes_no_model(bare: Path, folder: Path) -> Path:
    """Save the model as sentence-transformers does a reranker: the chat template of a pair, the module LogitScore."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder.modules import LogitScore, Transformer

    transformer: Any = Transformer(str(bare), transformer_task="text-generation")
    transformer.tokenizer.chat_template = PAIR_TEMPLATE
    ids = transformer.tokenizer.convert_tokens_to_ids(["yes", "no"])
    CrossEncoder(modules=[transformer, LogitScore(*ids)], device="cpu").save(str(folder))
    return folder


def _save_random_weights(model_class: Any, config: Any, folder: Path) -> None:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model_class(config).save_pretrained(folder)
