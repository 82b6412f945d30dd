"""GGUF files, converted once to a Hugging Face folder with the whole causal model.

Vectors need only the backbone; generation and query likelihood also need the language-model head, so it is kept.
"""

import contextlib
import functools
import hashlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retbench.engines.config_checks import explain_load_errors
from retbench.errors import DataError

# Parameters above which the folder is saved in float16. A quantised weight is a small integer times a float16 scale,
# so float16 changes it by at most 2^-11 of its value (measured on SmolLM2 Q4_1: 4.88e-4), far less than quantisation.
HALF_PRECISION_ABOVE = 500_000_000

# File types that are not quantised. They are not added to the name of the model.
UNQUANTIZED = ("f32", "f16", "bf16")

# Pre-tokenizers that first split off each digit. transformers 5.23 does not know their names and uses the rule of
# GPT-2, which splits white space before a number differently ("\n\n1" becomes three tokens instead of two).
DIGIT_SPLITTERS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")


# A number in the name of the cached folder. It grows when a file is converted to other weights than before.
CONVERSION = 2

# Counts that some dimension of a tensor has, or exceeds.
SIZE_FIELDS = (
    "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
    "attention.key_length", "attention.value_length", "rope.dimension_count", "vocab_size", "expert_count",
)  # fmt: skip

ROPE_TENSOR = "rope_freqs.weight"
LLAMA3_FACTORS = (8.0, 32.0)  # of Llama 3.1 and 3.3, and of Llama 3.2
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(frozen=True)
class GgufHeader:
    """The header of a GGUF file; `label` is its quantisation, such as `q4_k_m`."""

    parameters: int
    label: str | None
    pre_tokenizer: str
    architecture: str = ""
    tensors: tuple[str, ...] = ()
    has_tokenizer: bool = True
    rope_factors: tuple[float, ...] = ()  # of Llama 3.1 and later: divisors of the rotary frequencies

    def compute_fingerprint(self, checksum: str) -> str:
        """The checksum of the file; another value for files whose rotary factors were ignored by conversion 1."""
        return hashlib.sha256(f"{checksum} {CONVERSION}".encode()).hexdigest() if self.rope_factors else checksum


def read_header(file: Path) -> GgufHeader:
    """Read the header without the tensors."""
    import gguf

    try:
        reader = _open_reader(gguf, file)
        file_type = _read_field(reader, "general.file_type")
        label = None if file_type is None else gguf.LlamaFileType(file_type).name.lower()
        pre_tokenizer = _read_field(reader, "tokenizer.ggml.pre")
        _check_counts(reader)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as problem:
        raise DataError(f"{file} is not a complete GGUF file: {problem}", "fetch it again") from problem
    label = label and label.removeprefix("all_").removeprefix("mostly_")
    return GgufHeader(
        parameters=sum(int(tensor.n_elements) for tensor in reader.tensors),
        label=None if label in UNQUANTIZED else label,
        pre_tokenizer=str(pre_tokenizer or ""),
        architecture=str(_read_field(reader, "general.architecture") or ""),
        tensors=tuple(tensor.name for tensor in reader.tensors),
        has_tokenizer=reader.get_field("tokenizer.ggml.tokens") is not None,
        rope_factors=next((tuple(map(float, t.data)) for t in reader.tensors if t.name == ROPE_TENSOR), ()),
    )


def _open_reader(gguf: Any, file: Path) -> Any:
    """The library's reader with a check for the end of the file: a damaged length would make it loop forever.

    It reads plain arrays. The library's slices of a memory map, one or two for every token and merge, take ten times as
    long.
    """

    def read_inside_file(self: Any, offset: int, dtype: Any, count: int = 1, override_order: str | None = None) -> Any:
        kind = np.dtype(dtype).newbyteorder(override_order or self.byte_order)
        try:
            return np.frombuffer(self.data, kind, int(count), int(offset))
        except ValueError as problem:
            raise ValueError("the file ends within a field") from problem

    return type("CheckedReader", (gguf.GGUFReader,), {"_get": read_inside_file})(file)


@contextlib.contextmanager
def _read_file_once(file: Path) -> Iterator[None]:
    """Let transformers share one reader and one table of names.

    It would read the header for the config, the tokenizer and the weights, and build the table for every module: that
    was half of the time of a conversion.
    """
    import gguf

    library: Any = gguf
    reader, reader_class, build_names = _open_reader(library, file), library.GGUFReader, library.get_tensor_name_map
    library.GGUFReader = lambda path: reader if Path(path).samefile(file) else reader_class(path)
    library.get_tensor_name_map = functools.cache(build_names)
    try:
        yield
    finally:
        library.GGUFReader, library.get_tensor_name_map = reader_class, build_names


def _check_counts(reader: Any) -> None:
    """Raise ValueError for counts that the tensors contradict: a model of a million layers would be built first."""
    architecture = _read_field(reader, "general.architecture")
    largest = max((int(size) for tensor in reader.tensors for size in tensor.shape), default=0)
    limits = {"block_count": len(reader.tensors), **dict.fromkeys(SIZE_FIELDS, largest)}
    for name, limit in limits.items():
        count = _read_field(reader, f"{architecture}.{name}")
        values = count if isinstance(count, list) else [count or 0]
        if any(not isinstance(value, int) or not 0 <= value <= limit for value in values):
            raise ValueError(f"{architecture}.{name} is {count!r:.40}, which its tensors contradict")


def _read_field(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    return field.contents() if field else None


def convert_to_folder(file: Path, facts: GgufHeader, folder: Path) -> None:
    """Write model and tokenizer to `folder`, as safetensors and JSON."""
    import torch
    import transformers

    from retbench.engines import model_loader

    if not facts.has_tokenizer:
        raise DataError(f"{file} has no tokenizer", "fetch a complete GGUF file, or use a Hugging Face folder")
    dtype = torch.float32 if facts.parameters < HALF_PRECISION_ABOVE else torch.float16
    model_class: Any = transformers.AutoModelForCausalLM
    config = getattr(
        transformers, "GgufConfig", None
    )  # the lowest supported transformers has none and always dequantises
    options = {"quantization_config": config(dequantize=True)} if config else {}
    with _silence_transformers(), _read_file_once(file):
        with explain_load_errors(file, "use a Hugging Face folder"):
            model, info = model_class.from_pretrained(
                file.parent, gguf_file=file.name, dtype=dtype, output_loading_info=True, **options
            )
            tokenizer = load_gguf_tokenizer(file, facts)
        info["unexpected_keys"] = _list_unused_tensors(model, facts)
        model_loader.check_loaded_weights(file, info)
        _set_rope_factors(model.config, file, facts)
        _check_finite(model, file)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _list_unused_tensors(model: Any, facts: GgufHeader) -> list[str]:
    """The tensors of the file that have no place in the model; transformers does not report them."""
    import gguf

    layers = model.config.get_text_config().num_hidden_layers
    architecture = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[facts.architecture]
    names = gguf.get_tensor_name_map(architecture, layers)
    used = {names.get_name(name, (".weight", ".bias")) for name, _ in model.named_parameters(remove_duplicate=False)}
    return [name for name in facts.tensors if name not in used and name != ROPE_TENSOR and "_exps." not in name]


def _set_rope_factors(config: Any, file: Path, facts: GgufHeader) -> None:
    """Scale the rotary frequencies of Llama 3.1 and later; transformers ignores the factors in the file."""
    if not facts.rope_factors or all(factor == 1 for factor in facts.rope_factors):
        return
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    plain = config.rope_parameters
    exponents = torch.arange(0, len(facts.rope_factors)).float() / len(facts.rope_factors)
    for factor in LLAMA3_FACTORS:
        config.rope_parameters = {**plain, "rope_type": "llama3", "factor": factor, **LLAMA3_ROPE}
        frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        found = plain["rope_theta"] ** -exponents / frequencies
        if torch.allclose(found, torch.tensor(facts.rope_factors), rtol=1e-4):
            return
    raise DataError(f"{file}: {ROPE_TENSOR} is not that of a Llama 3 model", "use a Hugging Face folder")


def load_gguf_tokenizer(file: Path, facts: GgufHeader) -> Any:
    """The tokenizer of a GGUF file, with the pre-tokenizer that the file names."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    from retbench.engines import tokenizers

    with tokenizers.explain_damaged_tokenizer(file):
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizers.check_vocabulary(tokenizer, file)
    if facts.pre_tokenizer in DIGIT_SPLITTERS:
        steps = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(steps)
    return tokenizer


def _check_finite(model: Any, file: Path) -> None:
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise DataError(f"{file}: {name} has values that are NaN or infinite", "fetch another quantisation")


@contextlib.contextmanager
def _silence_transformers() -> Iterator[None]:
    """Suppress messages and progress bars (that of GGUF can only be hidden with stderr). Errors are still raised."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        transformers_logging.set_verbosity(level)
