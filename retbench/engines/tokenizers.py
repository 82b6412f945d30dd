"""Texts cut by tokens and not by characters."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def truncate_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int) -> list[str]:
    """Each text's first tokens, as the bytes they stand for."""
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    ends = [offsets[max_tokens - 1][1] if len(offsets) > max_tokens else None for offsets in encoded["offset_mapping"]]
    return [text[:end] for text, end in zip(texts, ends, strict=True)]
