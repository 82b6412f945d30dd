"""Tokenizers: loaded from a model folder, and used to cut texts by tokens instead of characters."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from retbench.engines import remote_code, weights_cache
from retbench.errors import DataError, RetbenchError


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a Hugging Face folder. Its own code runs only if the user trusts it.

    Without vocabulary files transformers makes an empty tokenizer, which reads every text as nothing or as unknown.
    """
    weights_cache.verify_files(folder)
    with remote_code.explain_refused_code(folder), explain_damaged_tokenizer(folder):
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=remote_code.is_remote_code_trusted()
        )
    files = set(loaded.vocab_files_names.values())
    if files and not any((folder / name).is_file() for name in files):
        raise DataError(
            f"{folder} has no tokenizer: none of {', '.join(sorted(files))}", "copy or fetch the whole folder again"
        )
    check_vocabulary(loaded, folder)
    return loaded


@contextmanager
def explain_damaged_tokenizer(source: Path) -> Iterator[None]:
    """Wraps loading: turns what the libraries raise for a damaged file into an error with the next step."""
    try:
        yield
    except RetbenchError:
        raise
    except Exception as problem:  # the library tokenizers raises nothing narrower
        if isinstance(problem, (ImportError, MemoryError)):
            raise
        cause = f"the tokenizer of {source} cannot be read: {type(problem).__name__}: {problem!s:.200}"
        raise DataError(cause, "copy or fetch the whole folder again") from problem


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, source: Path) -> None:
    """Raise an error for a tokenizer that knows only special tokens."""
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise DataError(
            f"the tokenizer of {source} has an empty vocabulary: every text would be nothing or unknown",
            "copy or fetch the whole folder again",
        )


def truncate_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int) -> list[str]:
    """The first `max_tokens` tokens of each text, as the original characters."""
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True)
    ends = [offsets[max_tokens - 1][1] if len(offsets) > max_tokens else None for offsets in encoded["offset_mapping"]]
    return [text[:end] for text, end in zip(texts, ends, strict=True)]
