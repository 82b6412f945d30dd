"""Export a trained model as a folder for the library sentence-transformers, with the same vectors, or refuse.

That library wraps every text in a chat if the tokenizer has a chat template, and it appends no end-of-sequence token.
So the exported tokenizer has no chat template, and appends the token where the method does. The token ids are compared
before the export is complete.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from retbench.cards.method import Method, Similarity
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.errors import DataError, UsageError
from retbench.system.durable_files import move_into_place

POOLING_MODES = {"last": "lasttoken", "mean": "mean", "weighted": "weightedmean", "first": "cls"}
MAX_SEQ_LENGTH = 512
PROBE_TEXTS = ("A short one.", "def add(a, b):\n    return a + b", "ein längerer Text, mit Umlauten " * 60, "x")


def export_sentence_transformers(source: Path, prompt_tokenizer: PromptTokenizer, width: int, folder: Path) -> Path:
    """Write `folder` from the plain Hugging Face folder `source`, all or nothing."""
    method, work = prompt_tokenizer.method, folder.with_name(f"{folder.name}.partial")
    prefixes = get_prefixes(method)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for file in (*source.glob("*.safetensors"), source / "config.json"):
        shutil.copyfile(file, work / file.name)
    _build_tokenizer(source, prompt_tokenizer.end_token if method.eos else None).save_pretrained(work)
    _check_token_ids(work, prompt_tokenizer, prefixes)
    _write_modules(work, POOLING_MODES[method.pooling], width, method.similarity)
    prompts = {"prompts": prefixes, "default_prompt_name": None, "similarity_fn_name": method.similarity}
    _write_json(work / "config_sentence_transformers.json", prompts)
    shutil.rmtree(folder, ignore_errors=True)
    move_into_place(work, folder)
    return folder


def get_prefixes(method: Method) -> dict[str, str]:
    """The text before a query and before a document; a method that needs more than prefixes is refused."""
    return {role: _get_prefix(method, role) for role in ("query", "document")}


def _get_prefix(method: Method, role: Any) -> str:
    template = method.get_template(role).replace("{instruction}", method.instruction)
    plain = method.kind == "dense" and method.span == "all" and method.post == "none"
    simple = plain and method.layer is None and method.attention == "own"
    simple = simple and method.document_words is None
    if method.chat or not template.endswith("{text}") or not simple:
        raise UsageError(
            f"method {method.name} cannot be exported: sentence-transformers supports only prefixes and pooling",
            "export a model trained with a plain method, such as those of the recipes repllama and quick",
        )
    return template.removesuffix("{text}")


def _build_tokenizer(source: Path, end_token: str | None) -> Any:
    tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    tokenizer.chat_template = None
    if end_token:
        from tokenizers.processors import Sequence, TemplateProcessing

        end_id = tokenizer.convert_tokens_to_ids(end_token)
        end = TemplateProcessing(single=f"$A {end_token}", special_tokens=[(end_token, end_id)])
        present = tokenizer.backend_tokenizer.post_processor
        tokenizer.backend_tokenizer.post_processor = Sequence([present, end]) if present else end
    return tokenizer


def _check_token_ids(folder: Path, prompt_tokenizer: PromptTokenizer, prefixes: dict[str, str]) -> None:
    """Check that the exported tokenizer gives the token ids that the model was trained with."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    for role, prefix in prefixes.items():
        exported_ids = tokenizer([prefix + text for text in PROBE_TEXTS], truncation=True, max_length=MAX_SEQ_LENGTH)[
            "input_ids"
        ]
        tokens = prompt_tokenizer.tokenize(PROBE_TEXTS, role, MAX_SEQ_LENGTH)  # type: ignore[arg-type]  # the keys are the two roles
        if [list(map(int, tokens[row])) for row in range(len(PROBE_TEXTS))] != exported_ids:
            raise DataError(
                f"the exported tokenizer gives other token ids than method {prompt_tokenizer.method.name}",
                "use the model with retbench",
            )


def _write_modules(folder: Path, mode: str, width: int, similarity: Similarity) -> None:
    kinds = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling")]
    kinds += [("2", "2_Normalize", "Normalize")] if similarity == "cosine" else []
    modules = [
        {"idx": int(number), "name": number, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, path, kind in kinds
    ]
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": MAX_SEQ_LENGTH, "do_lower_case": False})
    names = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    chosen = {"cls": "cls_token", "mean": "mean_tokens", "weightedmean": "weightedmean_tokens"}.get(mode, mode)
    flags = {f"pooling_mode_{name}": name == chosen for name in names}
    (folder / "1_Pooling").mkdir()
    _write_json(
        folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **flags, "include_prompt": True}
    )
    if similarity == "cosine":
        (folder / "2_Normalize").mkdir()


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=1), encoding="utf-8")
