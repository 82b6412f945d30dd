"""The other libraries of the CPU benchmark, each called as its users would call it.

Each peer runs in an environment that holds it, so this module imports no peer at its top and nothing of retbench.
"""

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

Encode = Callable[[list[str]], np.ndarray]

THIS_ENVIRONMENT = ""
BACKENDS_ENVIRONMENT = ".venv-backends"
VLLM_ENVIRONMENT = ".venv-vllm"
CALIBRATION_TEXTS = 16  # OpenVINO finds the ranges of int8 activations with them; more take minutes


def load_sentence_transformer(options: argparse.Namespace, folder: str | Path, **choices: Any) -> Any:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", processor_kwargs={"chat_template": None}, **choices)
    model.max_seq_length = options.length
    if model.tokenizer.pad_token is None:
        model.tokenizer.pad_token = model.tokenizer.eos_token
    return model


def load_torch_model(options: argparse.Namespace, dtype: str | None) -> Any:
    """sentence-transformers on torch; `dtype` None is its default."""
    import torch

    chosen = {"dtype": getattr(torch, dtype)} if dtype else {}
    return load_sentence_transformer(options, options.weights, model_kwargs=chosen)


def encode_with(model: Any) -> Encode:
    return lambda texts: np.asarray(model.encode(texts, normalize_embeddings=True, convert_to_numpy=True))


def build_torch_run(options: argparse.Namespace, dtype: str | None) -> Encode:
    return encode_with(load_torch_model(options, dtype))


def build_onnx_run(options: argparse.Namespace, file: str) -> Encode:
    """sentence-transformers on onnxruntime, from one of the files that `export_once` writes."""
    import onnxruntime

    threads = onnxruntime.SessionOptions()
    threads.intra_op_num_threads = options.threads
    choices = {"file_name": file, "provider": "CPUExecutionProvider", "session_options": threads}
    folder = export_once(options, "onnx", file, export_onnx_int8)
    return encode_with(load_sentence_transformer(options, folder, backend="onnx", model_kwargs=choices))


def build_openvino_run(options: argparse.Namespace, file: str) -> Encode:
    """sentence-transformers on OpenVINO. Without int8 it takes the precision that OpenVINO chooses: bfloat16 on AMX."""
    threads = {"INFERENCE_NUM_THREADS": str(options.threads)}
    choices = {"file_name": file, "ov_config": threads}
    folder = export_once(options, "openvino", file, export_openvino_int8)
    return encode_with(load_sentence_transformer(options, folder, backend="openvino", model_kwargs=choices))


def export_once(options: argparse.Namespace, backend: str, file: str, export_int8: Callable[..., None]) -> Path:
    """The folder of the model in the backend's format, with `file` in it; the first round writes it."""
    folder = Path(options.folder) / backend
    plain = {"onnx": "model.onnx", "openvino": "openvino_model.xml"}[backend]
    if not (folder / backend / plain).exists():
        weights = Path(options.folder) / "transformers-4"
        link_for_transformers_4(options.weights, weights)
        load_sentence_transformer(options, weights, backend=backend).save_pretrained(str(folder))
    if not (folder / backend / file).exists():
        model = load_sentence_transformer(options, folder, backend=backend, model_kwargs={"file_name": plain})
        export_int8(options, model, folder)
    return folder


def link_for_transformers_4(weights: Path, folder: Path) -> None:
    """Make a folder of the same model for transformers 4, which knows two settings by other names."""
    if folder.exists():
        return
    folder.mkdir()
    for file in weights.iterdir():
        (folder / file.name).symlink_to(file)
    rewritten = {name: json.loads((weights / name).read_text()) for name in ("config.json", "tokenizer_config.json")}
    if rewritten["tokenizer_config.json"].get("tokenizer_class") == "TokenizersBackend":
        rewritten["tokenizer_config.json"]["tokenizer_class"] = "PreTrainedTokenizerFast"
    if rope := rewritten["config.json"].pop("rope_parameters", None):
        rewritten["config.json"]["rope_theta"] = rope["rope_theta"]
        if rope["rope_type"] != "default":
            rewritten["config.json"]["rope_scaling"] = rope
    for name, content in rewritten.items():
        (folder / name).unlink()
        (folder / name).write_text(json.dumps(content))


def export_onnx_int8(_: argparse.Namespace, model: Any, folder: Path) -> None:
    """Weights in int8; activations get their ranges while a text is encoded."""
    from sentence_transformers.backend import export_dynamic_quantized_onnx_model

    kind = "avx512_vnni" if "avx512_vnni" in Path("/proc/cpuinfo").read_text() else "avx2"
    export_dynamic_quantized_onnx_model(model, kind, str(folder), file_suffix="int8")


def export_openvino_int8(options: argparse.Namespace, model: Any, folder: Path) -> None:
    """Weights and activations in int8; the first texts give the ranges of activations."""
    from optimum.intel import OVQuantizationConfig
    from sentence_transformers.backend import export_static_quantized_openvino_model

    export_static_quantized_openvino_model(
        model,
        OVQuantizationConfig(num_samples=min(CALIBRATION_TEXTS, options.documents)),
        str(folder),
        dataset_name=str(Path(options.folder) / "texts"),
        dataset_config_name="default",
        dataset_split="train",
        column_name="text",
        file_suffix="int8",
    )


def build_mteb_run(options: argparse.Namespace) -> Encode:
    """The path of `mteb.evaluate` for a sentence-transformers model: its wrapper and data loader."""
    import mteb
    from datasets import Dataset
    from mteb.models import SentenceTransformerEncoderWrapper
    from mteb.types import PromptType
    from torch.utils.data import DataLoader

    wrapper = SentenceTransformerEncoderWrapper(load_torch_model(options, None))
    task = mteb.get_task("SciFact").metadata

    def encode(texts: list[str]) -> np.ndarray:
        inputs = DataLoader(Dataset.from_dict({"text": texts}), batch_size=32)
        found = wrapper.encode(
            inputs, task_metadata=task, hf_split="test", hf_subset="default", prompt_type=PromptType.document
        )
        vectors = np.asarray(found, dtype=np.float32)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    return encode


def build_vllm_run(options: argparse.Namespace) -> Encode:
    """vLLM's pooling runner. It computes in processes of its own and normalizes the vectors."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    # Else vLLM takes one thread of each core; all other peers take as many threads as they are told.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    # MiniLM's folder asks for 256 tokens, but the model has 512 positions, and all other peers use them.
    os.environ.setdefault("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
    from vllm import LLM
    from vllm.config import PoolerConfig

    pooling = {"last": "LAST", "mean": "MEAN", "first": "CLS"}[options.pooling]
    pooler = PoolerConfig(pooling_type=pooling)
    model = LLM(
        str(options.weights), runner="pooling", dtype="bfloat16", max_model_len=options.length, pooler_config=pooler
    )
    truncation = {"truncation": True, "max_length": options.length}
    return lambda texts: np.asarray(
        [one.outputs.embedding for one in model.embed(texts, tokenization_kwargs=truncation, use_tqdm=False)],
        dtype=np.float32,
    )


# for each environment the peers in it
PEERS: dict[str, dict[str, Callable[[argparse.Namespace], Encode]]] = {
    THIS_ENVIRONMENT: {
        "sentence-transformers bfloat16": partial(build_torch_run, dtype="bfloat16"),
        "sentence-transformers default": partial(build_torch_run, dtype=None),
        "mteb": build_mteb_run,
    },
    BACKENDS_ENVIRONMENT: {
        "sentence-transformers ONNX": partial(build_onnx_run, file="model.onnx"),
        "sentence-transformers ONNX int8": partial(build_onnx_run, file="model_int8.onnx"),
        "sentence-transformers OpenVINO": partial(build_openvino_run, file="openvino_model.xml"),
        "sentence-transformers OpenVINO int8": partial(build_openvino_run, file="openvino_model_int8.xml"),
    },
    VLLM_ENVIRONMENT: {"vLLM bfloat16": build_vllm_run},
}
