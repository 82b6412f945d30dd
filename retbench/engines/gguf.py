"""GGUF files, turned once into a plain Hugging Face folder with the whole causal model: backbone and head.

Vectors need the backbone alone; generation and query likelihood need the head too, so it is kept.
"""

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retbench.errors import DataError

# Above this, the folder is saved in half precision. A quantised weight is a small integer times a float16 scale, so
# float16 moves it by at most 2^-11 of itself (measured on SmolLM2 Q4_1: 4.88e-4), far less than quantisation did.
HALF_PRECISION_ABOVE = 500_000_000

# File types that are not quantised; their name adds nothing to the model's.
UNQUANTIZED = ("f32", "f16", "bf16")

# Tokenizers that split off every digit before anything else. transformers 5.23 does not know these names and falls
# back to GPT-2's rule, which tears white space before a number apart ("\n\n1" becomes three tokens, not two).
DIGIT_SPLITTERS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says about itself; `label` is its quantisation, such as `q4_k_m`."""

    parameters: int
    label: str | None
    pre_tokenizer: str


def read_header(file: Path) -> GgufHeader:
    """Read the header; the tensors stay on disk."""
    import gguf

    try:
        reader = _open_reader(gguf, file)
        kind = _read_field(reader, "general.file_type")
        label = None if kind is None else gguf.LlamaFileType(kind).name.lower()
        splitter = _read_field(reader, "tokenizer.ggml.pre")
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as problem:
        raise DataError(f"{file} is not a whole GGUF file: {problem}", "fetch it again") from problem
    label = label and label.removeprefix("all_").removeprefix("mostly_")
    return GgufHeader(
        parameters=sum(int(tensor.n_elements) for tensor in reader.tensors),
        label=None if label in UNQUANTIZED else label,
        pre_tokenizer=str(splitter or ""),
    )


def _open_reader(gguf: Any, file: Path) -> Any:
    """The library's reader, kept inside the file: a damaged length would let it read nothing, for ever."""

    def inside(self: Any, offset: int, dtype: Any, count: int = 1, **order: Any) -> Any:
        found = gguf.GGUFReader._get(self, offset, dtype, count, **order)
        if len(found) < count:
            raise ValueError("it ends within a field")
        return found

    return type("Inside", (gguf.GGUFReader,), {"_get": inside})(file)


def _read_field(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    return field.contents() if field else None


def convert_to_folder(file: Path, facts: GgufHeader, folder: Path) -> None:
    """Write the model and its tokenizer to `folder` as safetensors and JSON."""
    import torch
    import transformers

    dtype = torch.float32 if facts.parameters < HALF_PRECISION_ABOVE else torch.float16
    config = getattr(transformers, "GgufConfig", None)  # the lowest version has none: it always unpacks
    unpacked = {"quantization_config": config(dequantize=True)} if config else {}
    with _silence_transformers():
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=dtype, **unpacked
            )
            spoken = load_gguf_tokenizer(file, facts)
        except ValueError as problem:
            raise DataError(f"{file}: transformers cannot read it: {problem}", "use a Hugging Face folder") from problem
        _check_finite(model, file)
        model.save_pretrained(folder)
        spoken.save_pretrained(folder)


def load_gguf_tokenizer(file: Path, facts: GgufHeader) -> Any:
    """The tokenizer of a GGUF file, splitting as the file says."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    spoken: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    if facts.pre_tokenizer in DIGIT_SPLITTERS:
        steps = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        spoken.backend_tokenizer.pre_tokenizer = Sequence(steps)
    return spoken


def _check_finite(model: Any, file: Path) -> None:
    for name, weight in model.named_parameters():
        if not weight.isfinite().all():
            raise DataError(f"{file}: {name} holds values that are not finite", "fetch another quantisation")


@contextlib.contextmanager
def _silence_transformers() -> Iterator[None]:
    """Hold back progress bars (the one for GGUF has no switch but stderr) and chatter. Errors are raised as ever."""
    from transformers.utils import logging as chatter

    level = chatter.get_verbosity()
    chatter.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        chatter.set_verbosity(level)
