"""Folders of sparse and late-interaction models with random weights, written by sentence-transformers, and in the forms
of PyLate and Stanford's ColBERT, which that library reads too."""

import json
import string
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForMaskedLM, BertModel

from tests import tiny_models

WIDTH, PROJECTED = tiny_models.WIDTH, 16
PROMPTS = {"query": "Look for: ", "document": "Text: "}


def build_bare(folder: Path, *extra_tokens: str) -> Path:
    """A BERT with its language-model head; its tokenizer has a mask token, and a token before and after each text."""
    tokenizer = tiny_models.build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    tokenizer.add_tokens([AddedToken(token, normalized=True) for token in extra_tokens])
    around = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<|im_start|>", "<|im_end|>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=around
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=128, hidden_size=WIDTH, intermediate_size=96,
        num_hidden_layers=2, num_attention_heads=2, initializer_range=0.3,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def build_splade(bare: Path, folder: Path, **options: Any) -> Path:
    """A SPLADE; `pooling` are the options of its pooling module."""
    from sentence_transformers import SparseEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sparse_encoder.modules import SpladePooling

    pooling = options.pop("pooling", {})
    modules = [Transformer(str(bare), transformer_task="fill-mask"), SpladePooling(**pooling)]
    SparseEncoder(modules=modules, device="cpu", **options).save(str(folder))
    return folder


def build_static_splade(bare: Path, folder: Path) -> Path:
    """A SPLADE whose queries are looked up in a table (doc-only, inference-free)."""
    from sentence_transformers import SparseEncoder
    from sentence_transformers.base.modules import Router, Transformer
    from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling

    document = Transformer(str(bare), transformer_task="fill-mask")
    weights = torch.rand(len(document.tokenizer), generator=torch.Generator().manual_seed(8))
    weights[::7] = 0
    router = Router.for_query_document(
        query_modules=[SparseStaticEmbedding(document.tokenizer, weights, frozen=True)],
        document_modules=[document, SpladePooling("max", "log1p_relu")],
    )
    SparseEncoder(modules=[router], device="cpu", similarity_fn_name="dot").save(str(folder))
    return folder


def build_multi_vector(bare: Path, folder: Path, *, dense: Any = None, mask: Any = None, **transformer: Any) -> Path:
    """A late-interaction model; `transformer` are settings of its first module."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    similarity = transformer.pop("similarity_fn_name", None)
    torch.manual_seed(5)
    options = {"bias": False, "activation_function": torch.nn.Identity(), **(dense or {})}
    modules = [
        Transformer(str(bare), **transformer),
        Dense(WIDTH, PROJECTED, module_input_name="token_embeddings", **options),
        MultiVectorMask(**(mask or {})), Normalize(module_input_name="token_embeddings"),
    ]  # fmt: skip
    MultiVectorEncoder(modules=modules, device="cpu", prompts=PROMPTS, similarity_fn_name=similarity).save(str(folder))
    return folder


def build_pylate(bare: Path, folder: Path, **config: Any) -> Path:
    """A folder as PyLate writes it: two modules, and what belongs to late interaction in the model's config."""
    build_multi_vector(bare, folder)
    for name in ("2_MultiVectorMask", "3_Normalize"):
        (folder / name / "config.json").unlink()
        (folder / name).rmdir()
    types = ("sentence_transformers.models.Transformer", "pylate.models.Dense.Dense")
    modules = [{"idx": i, "name": str(i), "path": ("", "1_Dense")[i], "type": name} for i, name in enumerate(types)]
    (folder / "modules.json").write_text(json.dumps(modules))
    projection = {"in_features": WIDTH, "out_features": PROJECTED, "bias": False}
    identity = {"activation_function": "torch.nn.modules.linear.Identity"}
    (folder / "1_Dense" / "config.json").write_text(json.dumps({**projection, **identity}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 39, "do_lower_case": False}))
    facts = {
        "model_type": "ColBERT", "prompts": {}, "similarity_fn_name": "MaxSim", "query_prefix": "[Q] ",
        "document_prefix": "[D] ", "query_length": 24, "document_length": 40, "attend_to_expansion_tokens": False,
        "skiplist_words": list(string.punctuation), **config,
    }  # fmt: skip
    (folder / "config_sentence_transformers.json").write_text(json.dumps(facts))
    return folder


def build_stanford(folder: Path) -> Path:
    """A folder as Stanford's ColBERT writes it, in safetensors: a projection among the weights, and a metadata file."""
    from safetensors.torch import load_file, save_file

    bare = build_bare(folder, "[unused0]", "[unused1]")
    torch.manual_seed(3)
    config = BertConfig.from_pretrained(bare)
    BertModel(config).save_pretrained(folder)
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    tensors["linear.weight"] = torch.randn(PROJECTED, WIDTH, generator=torch.Generator().manual_seed(2))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, "architectures": ["HF_ColBERT"]}))
    facts = {
        "query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_maxlen": 20, "doc_maxlen": 36,
        "attend_to_mask_tokens": False, "mask_punctuation": True,
    }  # fmt: skip
    (folder / "artifact.metadata").write_text(json.dumps(facts))
    return folder
