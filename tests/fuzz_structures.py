"""Typed mutations for the fuzz: files that stay well-formed, with values of other types, sizes and names.

Random bytes seldom pass a parser of JSON. Here a valid document is taken apart, some of its values are replaced,
removed, moved or renamed, and it is written again. So what is tried is the code behind the parser: whole runs of the
tiny model with a changed folder or GGUF file, reports over changed records, answers of a server, cards.
"""

import atexit
import copy
import json
import math
import shutil
import struct
import tempfile
import tomllib
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from typer.testing import CliRunner

from retbench.cards.engine import Engine
from retbench.cli.main import app
from retbench.engines.chat_client import ChatClient
from retbench.engines.embeddings_client import EmbeddingsClient
from retbench.engines.http_client import EndpointServer, TransientError
from tests import small_collection

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 1.5, 1e-300, 10**12, 10**30, math.nan, math.inf, "", "x", "0", "../x",
    "/etc/passwd", "a\nb", "\ud800", "{{ 1 }}", "漢" * 90, [], {}, [[]], [None], ["x", "x"], [1, 2], {"a": 1},
    {"": {}},
)  # fmt: skip
MAX_MUTATIONS = 3


@st.composite
def mutate_document(draw: st.DrawFn, documents: list[Any]) -> Any:
    """Change a document up to three times."""
    document = copy.deepcopy(draw(st.sampled_from(documents)))
    for _ in range(draw(st.integers(1, MAX_MUTATIONS))):
        found = _draw_place(draw, document)
        if found is None:
            break
        _mutate_entry(draw, *found, document)
    return document


def _draw_place(draw: st.DrawFn, document: Any) -> tuple[Any, Any] | None:
    """Draw a container in a document and one of its keys; None if nothing is left in it."""
    parent, key = None, None
    current = document
    while isinstance(current, (dict, list)) and current:
        keys = list(current) if isinstance(current, dict) else range(len(current))
        parent, key = current, draw(st.sampled_from(keys))
        current = parent[key]
        if draw(st.integers(0, 3)) == 0:
            break
    return None if parent is None else (parent, key)


def _mutate_entry(draw: st.DrawFn, parent: Any, key: Any, document: Any) -> None:
    change = draw(st.sampled_from(("replace", "replace", "replace", "remove", "move", "rename", "repeat")))
    if change == "replace":
        parent[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    elif change == "remove":
        del parent[key]
    elif change == "move":  # a value of another place, which often has the right type and the wrong meaning
        other = _draw_place(draw, document)
        parent[key] = copy.deepcopy(other[0][other[1]]) if other else None
    elif change == "rename" and isinstance(parent, dict):
        parent[draw(st.sampled_from(("", "x", "name", "type", "a.b", f"{key}_")))] = parent.pop(key)
    elif isinstance(parent, list):
        parent.append(copy.deepcopy(parent[key]))


def mutate_json(samples: list[bytes]) -> st.SearchStrategy[bytes]:
    """Mutate JSON files."""
    return mutate_document([json.loads(sample) for sample in samples]).map(lambda value: json.dumps(value).encode())


def mutate_toml(samples: list[bytes]) -> st.SearchStrategy[bytes]:
    """Mutate TOML files; an empty value is left out, because TOML has none."""
    documents = [tomllib.loads(sample.decode()) for sample in samples]
    return mutate_document(documents).map(lambda table: "".join(_write_entries(table, "\n")).encode("utf-8", "replace"))


def _write_entries(table: dict[str, Any], end: str) -> list[str]:
    return [f"{json.dumps(key)} = {_write_value(value)}{end}" for key, value in table.items() if value is not None]


def _write_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + "".join(_write_entries(value, ", ")).removesuffix(", ") + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_write_value(item) for item in value if item is not None) + "]"
    return str(value) if isinstance(value, float) else json.dumps(value)


def mutate_header(samples: list[bytes]) -> st.SearchStrategy[bytes]:
    """Mutate the JSON header of a safetensors file, and keep its tensors and the length of the header right."""
    (content,) = samples
    length = struct.unpack("<Q", content[:8])[0]

    def write_header(header: Any) -> bytes:
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + content[8 + length :]

    return mutate_document([json.loads(content[8 : 8 + length])]).map(write_header)


def make_temporary_folder() -> Path:
    """Return a temporary folder, which is removed when this process ends."""
    folder = tempfile.TemporaryDirectory(prefix="fuzz")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def run_command(*words: object) -> None:
    """Run a command as a user does: a bug raises here, and so does a cell that a bug ended."""
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert "this is a bug of retbench" not in result.output, result.output[-3000:]
    assert "Traceback" not in result.output, result.output[-3000:]


@cache
def write_collection() -> Path:
    """Write the small collection."""
    return small_collection.write_folder(make_temporary_folder() / "small")


@cache
def write_model() -> Path:
    """Write the tiny model as a folder of sentence-transformers."""
    from tests import tiny_models

    folder = tiny_models.build_model(make_temporary_folder() / "tiny")
    for name, content in MODEL_FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


MODEL_FILES: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ],
    "1_Pooling/config.json": {"word_embedding_dimension": 64, "pooling_mode_mean_tokens": True, "include_prompt": True},
    "config_sentence_transformers.json": {"prompts": {"query": "q: ", "document": ""}, "similarity_fn_name": "cosine"},
    "sentence_bert_config.json": {"max_seq_length": 128, "do_lower_case": False},
}


def read_model_file(name: str) -> list[bytes]:
    """Read a file of the tiny model."""
    return [(write_model() / name).read_bytes()]


def run_model_folder(name: str, file: Path) -> None:
    """Run the tiny model with one of its files replaced, as its folder says."""
    folder = file.parent / "model"
    shutil.copytree(write_model(), folder)
    shutil.copy(file, folder / name)
    run_command("run", "--model", folder, "--task", write_collection(), "--out", file.parent / "results")


def build_gguf_samples() -> list[bytes]:
    """The fields and the names of the tensors of a GGUF file, as JSON."""
    import gguf

    fields = gguf.GGUFReader(_write_gguf()).fields
    names = [name for name in fields if not name.startswith("GGUF.") and name != "general.architecture"]
    return [json.dumps({"architecture": "qwen2", "fields": {n: fields[n].contents() for n in names}}).encode()]


@cache
def _write_gguf() -> Path:
    from tests.test_weights import write_gguf

    return write_gguf(write_model(), make_temporary_folder() / "tiny.gguf")


def run_gguf(file: Path) -> None:
    """Write a GGUF file with changed fields and run it. What the format cannot hold is left out."""
    import gguf

    document = json.loads(file.read_text())
    architecture, fields = document.get("architecture"), document.get("fields")
    if not isinstance(architecture, str) or not isinstance(fields, dict):
        return
    writer = gguf.GGUFWriter(file.with_suffix(".gguf"), architecture)
    for name, value in fields.items():
        if (kind := _choose_gguf_type(value)) is not None and name:
            writer.add_key_value(name, value, kind)
    for tensor in gguf.GGUFReader(_write_gguf()).tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    except (ValueError, TypeError, struct.error, UnicodeEncodeError):  # a list of mixed types, half a surrogate pair
        return
    finally:
        writer.close()
    run_command(
        "run", "--model", file.with_suffix(".gguf"), "--method", "mean", "--task", write_collection(),
        "--out", file.parent / "results",
    )  # fmt: skip


def _choose_gguf_type(value: Any) -> Any:
    from gguf import GGUFValueType as Type

    if isinstance(value, bool):
        return Type.BOOL
    if isinstance(value, int):
        return next((t for t, bits in ((Type.UINT32, 32), (Type.UINT64, 64)) if 0 <= value < 1 << bits), None)
    if isinstance(value, list):
        return Type.ARRAY if value else None
    return {float: Type.FLOAT32, str: Type.STRING}.get(type(value))


def build_all_reports(name: str, file: Path) -> None:
    """Build every report over results in which one file is replaced."""
    results = file.parent / "results"
    shutil.copytree(_write_results(), results)
    (target,) = results.glob(name)
    shutil.copy(file, target)
    for options in (("--format", "html"), ("--format", "latex"), ("--json",)):
        run_command("report", results, *options)


@cache
def _write_results() -> Path:
    from tests.test_hostile_results import write_mixed_results

    return write_mixed_results(make_temporary_folder() / "results")


def read_result_file(name: str) -> list[bytes]:
    """Read a file of the results."""
    (file,) = _write_results().glob(name)
    return [file.read_bytes()]


def parse_vectors(file: Path) -> None:
    """Parse an answer about the vectors of two texts."""
    client = EmbeddingsClient(EndpointServer(Engine("endpoint")), "m")
    try:
        vectors = client._parse_vectors(file.read_bytes(), ["a", "b"])
    except TransientError:
        return
    assert len(vectors) == 2


class FixedServer(EndpointServer):
    """A server that gives one answer."""

    def __init__(self, content: bytes) -> None:
        super().__init__(Engine("endpoint"))
        self.content = content

    def post(self, path: str, body: dict[str, Any], parse: Callable[[bytes], Any]) -> Any:
        return parse(self.content)


def parse_chat(file: Path) -> None:
    """Parse an answer of a chat model, as text and as log-probabilities."""
    client = ChatClient("m", FixedServer(file.read_bytes()), "digest")
    for ask in (partial(client.generate, "order", 10), partial(client.score_yes_no, ["good?"])):
        try:
            ask()
        except TransientError:
            continue


CHAT_ANSWER = {
    "choices": [
        {
            "message": {"role": "assistant", "content": "[2] > [1]"},
            "finish_reason": "stop",
            "logprobs": {
                "content": [{"top_logprobs": [{"token": "Yes", "logprob": -0.1}, {"token": "No", "logprob": -2}]}]
            },
        },
    ],
    "usage": {"prompt_tokens": 12, "completion_tokens": 3},
}  # fmt: skip
