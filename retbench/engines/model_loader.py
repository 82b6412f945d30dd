"""Loads the weights of a Hugging Face folder, and refuses a model that the folder does not hold completely.

transformers fills a missing weight with random numbers and says so only in a log. So everything that loads weights
(evaluation, training, merging, mining, reranking) does it here, where missing and unused weights are an error, except
those that cannot change a vector (below: towers, heads, poolers, buffers).

Of a multimodal model only the text part is loaded. The prefix of its names differs between the hub, transformers'
versions and trained models (`model.`, `language_model.model.`, `model.language_model.`), so it is read from the files.
"""

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_TEXT_ENCODING_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.import_utils import is_accelerate_available

from retbench.cards.model import Dtype
from retbench.cards.published_late_interaction import is_stanford
from retbench.cards.published_page_retriever import find_page_retriever
from retbench.cards.vision_config import is_prefix_model
from retbench.engines import model_folders, remote_code, rotary_positions, weights_cache
from retbench.engines.config_checks import check_config_sizes, explain_load_errors
from retbench.engines.fingerprints import read_json_object
from retbench.engines.memory import keep_freed_pages
from retbench.engines.text_config import T5_TYPES, read_text_settings
from retbench.errors import DataError

log = logging.getLogger(__name__)

TOWERS = r"(^|\.)(visual|vision_tower|vision_model|vision_embed_tokens|multi_modal_projector|audio_tower|embed_audio)\."
HEADS = (  # of language models, classifiers, BERT, DistilBERT, ALBERT, ELECTRA and ModernBERT
    r"(^|\.)(lm_head|embed_out|score|classifier|qa_outputs)\."
    r"|^(cls|predictions|vocab_transform|vocab_layer_norm|vocab_projector|(discriminator|generator)_predictions)\."
    r"|^head\.(dense|norm)\.|^decoder\.(weight|bias)$"
)
NEXT_SENTENCE = r"^cls\.seq_relationship\."  # BERT's second task in pretraining
POOLER = r"(^|\.)pooler\."  # BERT's layer over its first state; no method reads it
T5_DECODER = r"^decoder\.(block|embed_tokens|final_layer_norm)\."
BUFFERS = r"rotary_emb\.inv_freq$|(^|\.)position_ids$|(attention|attn)\.(masked_)?bias$"  # computed, not learned
EMBEDDING = "embed_tokens.weight"
# of ColQwen and ColPali in all published layouts, to those of the vision-language model in transformers
PAGE_RETRIEVER_NAMES = {
    r"^(?:model\.|vlm\.|language_model\.)*(?=(?:layers|embed_tokens|norm)\.)": "language_model.",
    r"^(?:model\.|vlm\.)*visual\.": "visual.",
    r"^(?:model\.|vlm\.)*vision_tower\.(?:vision_model\.)?": "vision_tower.",
    r"^(?:model\.|vlm\.)*multi_modal_projector\.": "multi_modal_projector.",
}
MAX_NAMES = 4  # in a message


def load_text_model(
    folder: Path,
    dtype: Dtype,
    device_options: dict[str, Any] | None = None,
    rope: str | None = None,
    trust: bool = False,
) -> PreTrainedModel:
    """The text part without language-model head. `rope` is the RoPE scaling; `trust` allows remote code."""
    config = load_config(folder, trust)
    text_config = find_text_config(config)
    options: dict[str, Any] = dict(device_options or {})
    if text_config is not None or rope:
        options["config"] = text_config or config.get_text_config()
    if rope:
        rotary_positions.apply_rope_scaling(options["config"], rope)
    is_t5 = config.model_type in T5_TYPES
    classes: Any = MODEL_FOR_TEXT_ENCODING_MAPPING if is_t5 else MODEL_MAPPING
    model_class: Any = AutoModel if text_config is None and not is_t5 else classes[type(text_config or config)]
    model, info = _load(model_class, folder, dtype, _map_text_names(folder, ""), options, trust)
    unused = (TOWERS, HEADS, POOLER, BUFFERS, *list_projection_patterns(folder), *([T5_DECODER] if is_t5 else []))
    check_loaded_weights(folder, info, missing=(POOLER,), unused=unused)
    part: Any = model
    part.has_renamed_weights = text_config is not None  # for save_model_folder
    return model


def load_whole_model(folder: Path, dtype: Dtype, device_options: dict[str, Any] | None = None) -> PreTrainedModel:
    """All parts of a multimodal model without its language-model head: no weight of a tower may be missing."""
    config, options, names = load_config(folder), dict(device_options or {}), {}
    if find_page_retriever(folder):  # without its projection, which `token_layers.py` reads
        options["config"], names = getattr(config, "vlm_config", config), PAGE_RETRIEVER_NAMES
    model, info = _load(AutoModel, folder, dtype, names, options)
    check_loaded_weights(folder, info, missing=(), unused=(HEADS, BUFFERS, *list_projection_patterns(folder)))
    return model


def list_projection_patterns(folder: Path) -> tuple[str, ...]:
    """The names of the projection of a late-interaction model, which `token_layers.py` reads by itself."""
    if is_stanford(folder):
        return (r"^linear\.weight$",)
    layout = find_page_retriever(folder)
    return (rf"^{layout.projection}\.(weight|bias)$",) if layout else ()


def load_language_model(folder: Path, dtype: Dtype, device_options: dict[str, Any] | None = None) -> PreTrainedModel:
    """The causal language model with its head; a vision tower that comes along is frozen."""
    config = load_config(folder)
    text_config = find_text_config(config)
    if text_config is not None and type(text_config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        model, info = _load(
            AutoModelForImageTextToText,
            folder,
            dtype,
            _map_text_names(folder, "model.language_model."),
            device_options or {},
        )
        for name, weight in model.named_parameters():
            weight.requires_grad_(not re.search(TOWERS, name))
    else:
        options = {**(device_options or {}), **({} if text_config is None else {"config": text_config})}
        model, info = _load(AutoModelForCausalLM, folder, dtype, _map_text_names(folder, "model."), options)
    check_loaded_weights(folder, info, missing=(), unused=(TOWERS, POOLER, BUFFERS))
    return model


def load_sequence_classifier(
    folder: Path, dtype: Dtype, device_options: dict[str, Any] | None = None, trust: bool = False
) -> PreTrainedModel:
    """The model with its classification head; no weight of the head may be missing."""
    load_config(folder, trust)
    model, info = _load(AutoModelForSequenceClassification, folder, dtype, {}, device_options or {}, trust)
    check_loaded_weights(folder, info, missing=(), unused=(POOLER, BUFFERS))
    return model


def load_masked_language_model(
    folder: Path, dtype: Dtype, device_options: dict[str, Any] | None = None, trust: bool = False
) -> PreTrainedModel:
    """The masked language model with its head, whose weights must all be there."""
    load_config(folder, trust)
    model, info = _load(AutoModelForMaskedLM, folder, dtype, {}, device_options or {}, trust)
    check_loaded_weights(folder, info, missing=(), unused=(POOLER, BUFFERS, NEXT_SENTENCE))
    return model


def load_config(folder: Path, trust: bool = False) -> Any:
    """The config of a folder whose files are intact. An attention kernel of the hub would be code: it is refused."""
    weights_cache.verify_files(folder)
    settings = read_json_object(folder / "config.json")
    kernels = [str(settings.get(name)) for name in ("attn_implementation", "_attn_implementation")]
    if any("/" in kernel for kernel in kernels):
        raise DataError(
            f"{folder / 'config.json'} names an attention kernel of the hub, which is code", "delete that entry"
        )
    check_config_sizes(folder, settings)
    with explain_load_errors(folder), remote_code.explain_refused_code(folder):
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust)


def find_text_config(config: Any) -> Any | None:
    """The config of the text part of a multimodal model; None for other models."""
    text_config = config.get_text_config()
    if text_config is config or type(text_config) not in MODEL_MAPPING:
        return None
    if is_prefix_model(config.to_dict()):
        text_config.is_causal = False
    if getattr(config, "tie_word_embeddings", None) is not None:  # tied heads are stated there
        text_config.tie_word_embeddings = config.tie_word_embeddings
    return text_config


def _load(
    model_class: Any, folder: Path, dtype: Dtype, names: dict[str, str], options: dict[str, Any], trust: bool = False
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The model, and transformers' lists of missing, unused and ill-shaped weights."""
    keep_freed_pages()
    if pickles := model_folders.list_pickles(folder):
        log.info("%s is not opened: the weights beside it are read, which are safetensors", pickles[0])
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with explain_load_errors(folder):
        model, info = model_class.from_pretrained(
            folder,
            dtype=getattr(torch, dtype),
            attn_implementation=choose_attention_kernel(folder),
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            key_mapping=names or None,
            trust_remote_code=trust,
            **options,
        )
    return model, info


def get_device_map_options(device: torch.device) -> dict[str, Any]:
    """Options that make transformers load weights directly into GPU memory. This needs accelerate."""
    return {"device_map": {"": device}} if device.type == "cuda" and is_accelerate_available() else {}


def choose_attention_kernel(folder: Path) -> str | None:
    """The required attention kernel: eager for soft-capped scores, which not all versions of the kernels support."""
    return "eager" if read_text_settings(folder).get("attn_logit_softcapping") else None


def list_weight_files(folder: Path) -> list[Path]:
    """The weight files that transformers reads: one file, or those of the index."""
    indexed = model_folders.read_weights_index(folder)
    if (folder / "model.safetensors").is_file() or not indexed:
        return sorted(folder.glob("model.safetensors")) or sorted(folder.glob("*.safetensors"))
    return [folder / name for name in indexed]


def read_weight_names(folder: Path) -> list[str]:
    """The names of all stored weights. A name in two files is an error: it is not defined which of them counts."""
    names: dict[str, Path] = {}
    for file in list_weight_files(folder):
        for name in _read_names(file):
            if name in names:
                raise DataError(f"{names[name].name} and {file} both have {name}", "copy or fetch the folder again")
            names[name] = file
    return list(names)


def _read_names(file: Path) -> list[str]:
    try:
        with safe_open(file, "pt") as stored:
            return list(stored.keys())
    except SafetensorError as problem:
        raise DataError(f"{file} is damaged: {problem}", "copy or fetch it again") from problem


def _map_text_names(folder: Path, target: str) -> dict[str, str]:
    """Patterns that rename the stored weights of a text part, if transformers would not find them by itself."""
    stored = [name for name in read_weight_names(folder) if not re.search(TOWERS, name)]
    prefixes = {name.removesuffix(EMBEDDING) for name in stored if re.search(rf"(^|\.){EMBEDDING}$", name)}
    if len(prefixes) != 1 or prefixes <= {"", "model."}:
        return {}
    heads = {match.group() for name in stored if (match := re.search(r"^.*\.(?=lm_head\.)", name))}
    return {f"^{re.escape(prefix)}(?!lm_head)": target for prefix in prefixes} | {
        f"^{re.escape(head)}(?=lm_head)": "" for head in heads
    }


def check_loaded_weights(
    folder: Path, info: dict[str, Any], missing: Iterable[str] = (), unused: Iterable[str] = ()
) -> None:
    """Raise an error for missing, unused and ill-shaped weights, except those that the patterns allow."""
    problems = {
        "has no": _drop_matching(info["missing_keys"], missing),
        "has, but its config does not need,": _drop_matching(info["unexpected_keys"], unused),
        "has in another shape than its config": sorted(str(entry[0]) for entry in info["mismatched_keys"]),
        "cannot be read:": sorted(map(str, info.get("error_msgs") or ())),
    }
    for word, names in problems.items():
        if names:
            raise DataError(
                f"{folder} {word} {format_names(names)}",
                "a model with random or unused weights would be scored: copy or fetch the folder again, or report its "
                "layout",
            )


def _drop_matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    harmless = "|".join(patterns)
    return sorted(name for name in map(str, names) if not (harmless and re.search(harmless, name)))


def format_names(names: list[str]) -> str:
    """The first names of a list, and how many there are."""
    shown = ", ".join(names[:MAX_NAMES])
    return shown if len(names) <= MAX_NAMES else f"{shown} and {len(names) - MAX_NAMES} more ({len(names)} weights)"


def save_model_folder(model: nn.Module, folder: Path, **options: Any) -> None:
    """Write a loaded model in one file; a text part under its own names, so that every library reads it."""
    saved: Any = model
    renamed = getattr(model, "has_renamed_weights", False)
    saved.save_pretrained(folder, max_shard_size="1TB", save_original_format=not renamed, **options)
