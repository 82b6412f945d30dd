"""Speed of embedding on a CPU against sentence-transformers and mteb: same texts, same weights, one run.

    python -m benchmarks.bench_cpu --weights FOLDER --collection BEIR_FOLDER

Every contestant runs in a new process with a warm-up, once in every round; the median round counts. Tokenization is
measured; warm-up and loading are not. The same run times matrix products alone: their speed, weighted by the model's
use of each shape, is the peak that a forward pass can reach. Only ratios are comparable between machines.

The OpenVINO backend of sentence-transformers needs an older transformers, so it runs in an environment of its own
(`make bench` installs it; `--openvino-python`). Its ONNX backend cannot be installed beside sentence-transformers 6.2.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
WARMUP_TEXTS = 8  # texts of the warm-up

Encode = Callable[[list[str]], np.ndarray]


def build_retbench_run(options: argparse.Namespace, dtype: str) -> Encode:
    """retbench from texts to shards on disk, as in `retbench run`."""
    import torch

    from retbench.cards.method import Method
    from retbench.encoders.dense_encoder import BackboneEncoder
    from retbench.encoders.embed_texts import EmbeddingJob, embed_texts
    from retbench.encoders.encoder_spec import EncoderSpec
    from retbench.encoders.prompt_tokenizer import PromptTokenizer
    from retbench.encoders.shard_tasks import InProcessWorker
    from retbench.engines import backbone
    from retbench.retrievers.embedding_retriever import compute_token_budget
    from retbench.store.shard_store import ShardStore

    method = Method("bench", "", "exact", "library", options.pooling)
    spec = EncoderSpec("", method, "", options.length, options.length, dtype)  # type: ignore[arg-type]
    loaded = backbone.load_backbone(Path(options.weights), spec.dtype, torch.device("cpu"))
    encoder = BackboneEncoder(spec, loaded, PromptTokenizer(loaded.tokenizer, method))

    def encode(texts: list[str]) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            budget, rows = compute_token_budget("cpu", options.threads), InMemoryTexts(texts)
            job = EmbeddingJob(rows, ("text",), "document", budget)  # type: ignore[arg-type]
            vectors = np.empty((len(texts), encoder.dimension), dtype=np.float32)
            for block in embed_texts(InProcessWorker(lambda: encoder), job, ShardStore(Path(folder)), lambda *_: None):
                vectors[block.rows] = block.vectors
        return vectors

    return encode


class InMemoryTexts:
    """Texts in memory with the interface that a job reads."""

    def __init__(self, texts: list[str]) -> None:
        self.texts, self.fingerprint, self.images = texts, "bench", None

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[Any]:
        from retbench.corpora.rows import TextRow

        return (TextRow(str(number), "", text) for number, text in enumerate(self.texts))


def build_sentence_transformers_run(options: argparse.Namespace, dtype: str | None) -> Any:
    """sentence-transformers; `dtype` None is its default."""
    import torch
    from sentence_transformers import SentenceTransformer

    chosen = {"dtype": getattr(torch, dtype)} if dtype else {}
    model = SentenceTransformer(
        options.weights, device="cpu", processor_kwargs={"chat_template": None}, model_kwargs=chosen
    )
    model.max_seq_length = options.length
    if model.tokenizer.pad_token is None:
        model.tokenizer.pad_token = model.tokenizer.eos_token
    return model


def peer(options: argparse.Namespace, dtype: str | None) -> Encode:
    model = build_sentence_transformers_run(options, dtype)
    return lambda texts: np.asarray(model.encode(texts, normalize_embeddings=True, convert_to_numpy=True))


def build_openvino_run(options: argparse.Namespace) -> Encode:
    """sentence-transformers on OpenVINO, with the precision that OpenVINO takes by default: bfloat16 on AMX."""
    from sentence_transformers import SentenceTransformer

    threads = {"ov_config": {"INFERENCE_NUM_THREADS": str(options.threads)}}
    model = SentenceTransformer(options.weights, device="cpu", backend="openvino", model_kwargs=threads)
    model.max_seq_length = options.length
    return lambda texts: np.asarray(model.encode(texts, normalize_embeddings=True, convert_to_numpy=True))


def build_mteb_run(options: argparse.Namespace) -> Encode:
    """The path of `mteb.evaluate` for a sentence-transformers model: its wrapper and data loader."""
    import mteb
    from datasets import Dataset
    from mteb.models import SentenceTransformerEncoderWrapper
    from mteb.types import PromptType
    from torch.utils.data import DataLoader

    wrapper = SentenceTransformerEncoderWrapper(build_sentence_transformers_run(options, None))
    task = mteb.get_task("SciFact").metadata

    def encode(texts: list[str]) -> np.ndarray:
        inputs = DataLoader(Dataset.from_dict({"text": texts}), batch_size=32)
        found = wrapper.encode(
            inputs, task_metadata=task, hf_split="test", hf_subset="default", prompt_type=PromptType.document
        )
        vectors = np.asarray(found, dtype=np.float32)
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    return encode


CONTESTANTS: dict[str, Callable[[argparse.Namespace], Encode]] = {
    "retbench bfloat16": lambda options: build_retbench_run(options, "bfloat16"),
    "retbench float32": lambda options: build_retbench_run(options, "float32"),
    "retbench int8": lambda options: build_retbench_run(options, "int8"),
    "sentence-transformers bfloat16": lambda options: peer(options, "bfloat16"),
    "sentence-transformers default": lambda options: peer(options, None),
    "sentence-transformers OpenVINO": build_openvino_run,
    "mteb": build_mteb_run,
}
OPENVINO = "sentence-transformers OpenVINO"
TRUTH = "sentence-transformers default"


def sample_documents(options: argparse.Namespace) -> list[str]:
    """Title and text of documents spread evenly over the corpus."""
    file = next(Path(options.collection).glob("corpus.jsonl*"))
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    lines = content.decode().splitlines()
    rows = [json.loads(lines[int(at)]) for at in np.linspace(0, len(lines) - 1, options.documents)]
    return [f"{row.get('title', '')} {row['text']}".strip() for row in rows]


def measure_contestant(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Measure one contestant in this process; write its vectors to the folder of the run."""
    import torch

    torch.set_num_threads(options.threads)
    texts = sample_documents(options)
    encode = CONTESTANTS[name](options)
    encode(texts[:WARMUP_TEXTS])
    started, used = time.perf_counter(), time.process_time()
    vectors = encode(texts)
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    np.save(Path(options.folder) / f"{name}.npy", vectors)
    return {"seconds": seconds, "cpu_seconds": cpu}


def measure_peak(options: argparse.Namespace) -> dict[str, Any]:
    """GFLOP/s of matrix products alone: each linear shape of the model, weighted by its share of the work.

    0 where other processes disturbed the timing.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    from retbench.engines.peak_throughput import count_linear_shapes, measure_peak_throughput

    torch.set_num_threads(options.threads)
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.from_pretrained(options.weights))
    flop = 2.0 * sum(count * rows * columns for (rows, columns), count in count_linear_shapes(model).items())
    peaks: dict[str, float] = {}
    for dtype in ("bfloat16", "float32"):
        tokens_per_second = measure_peak_throughput(model, getattr(torch, dtype), torch.device("cpu"))
        peaks[dtype] = flop * (tokens_per_second or 0.0) / 1e9
    return {"flop_per_token": flop, **peaks}


def run_contestant(options: argparse.Namespace, name: str, folder: str) -> dict[str, Any]:
    """Run one contestant in a new process."""
    python = options.openvino_python if name == OPENVINO else sys.executable
    command = [python, __file__, "--only", name, "--folder", folder]
    for key in ("weights", "collection", "documents", "length", "threads", "pooling"):
        command += [f"--{key}", str(getattr(options, key))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if ran.returncode:
        raise SystemExit(f"{name}: {ran.stderr.strip()}")
    answer: dict[str, Any] = json.loads(ran.stdout.strip().splitlines()[-1])
    return answer


def run_benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Run all contestants in turn, `rounds` times, with the peak before and after; keep the median round of each."""
    names = [name for name in CONTESTANTS if not options.contestants or name in options.contestants]
    if not options.openvino_python:
        names = [name for name in names if name != OPENVINO]
    with tempfile.TemporaryDirectory() as folder:
        tries: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        peaks = []
        for _ in range(options.rounds):
            peaks.append(run_contestant(options, "peak", folder))
            for name in names:
                tries[name].append(run_contestant(options, name, folder))
                print(f"{name}: {tries[name][-1]}", file=sys.stderr, flush=True)
        peaks.append(run_contestant(options, "peak", folder))
        rows = {
            name: sorted(tried, key=lambda one: one["seconds"])[(len(tried) - 1) // 2] for name, tried in tries.items()
        }
        vectors = {name: np.load(Path(folder) / f"{name}.npy") for name in rows}
    best = {key: max(p[key] for p in peaks) for key in ("bfloat16", "float32", "flop_per_token")}
    tokens = count_tokens(options)
    for name, row in rows.items():
        row["tokens_per_second"] = tokens / row["seconds"]
        reach = best["bfloat16" if "bfloat16" in name else "float32"]
        if reach and "int8" not in name:  # its products are not measured alone
            row["share_of_peak"] = row["tokens_per_second"] * best["flop_per_token"] / 1e9 / reach
        if TRUTH in vectors:
            row["min_cosine_to_fp32"] = float((vectors[name] * vectors[TRUTH]).sum(axis=1).min())
    setting = {key: getattr(options, key) for key in ("pooling", "documents", "length", "threads", "rounds")}
    weights_folder = f'"$(python benchmarks/print_weights_folder.py {Path(options.weights).name})"'
    arguments = {"weights": weights_folder, "collection": Path(options.collection).name, **setting}
    if options.contestants:
        arguments["contestants"] = " ".join(f'"{name}"' for name in names)
    command = " ".join(["python -m benchmarks.bench_cpu", *(f"--{key} {value}" for key, value in arguments.items())])
    return {
        "command": command,
        "processor": find_processor(),
        "settings": {**setting, "tokens": tokens},
        "peak_gflops": best,
        "contestants": rows,
    }


def find_processor() -> str:
    """The processor, and the widest of its instructions that matter here."""
    from retbench.records.machine import describe_machine

    flags = Path("/proc/cpuinfo").read_text()
    kinds = {"AMX": "amx_bf16", "AVX512 with VNNI": "avx512_vnni", "AVX512": "avx512f", "AVX2": "avx2"}
    widest = next((kind for kind, flag in kinds.items() if flag in flags), "none of AMX, AVX512 and AVX2")
    return f"{describe_machine()['cpu']}, {widest}"


def count_tokens(options: argparse.Namespace) -> int:
    """Tokens of the truncated texts, without padding."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(options.weights) / "tokenizer.json"))
    tokenizer.no_padding()
    return sum(min(len(encoding.ids), options.length) for encoding in tokenizer.encode_batch(sample_documents(options)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, help="a Hugging Face folder")
    parser.add_argument("--collection", required=True, help="a BEIR folder")
    parser.add_argument("--documents", type=int, default=512)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pooling", default="last", choices=["last", "mean", "first"], help="that of the folder")
    parser.add_argument("--openvino-python", help="the Python of an environment with OpenVINO; without it no OpenVINO")
    parser.add_argument("--contestants", nargs="*", help=f"some of {', '.join(CONTESTANTS)}")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu_decoder.json")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        import torch

        torch.set_num_threads(options.threads)
        print(
            json.dumps(measure_peak(options) if options.only == "peak" else measure_contestant(options, options.only))
        )
        return
    found = run_benchmark(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    from benchmarks.write_tables import format_cpu_table

    print(format_cpu_table(found))


if __name__ == "__main__":
    main()
