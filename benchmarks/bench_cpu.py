"""Speed of embedding on a CPU against the libraries that a user would pick: same texts, same weights, one run.

    python -m benchmarks.bench_cpu --weights FOLDER --collection BEIR_FOLDER

Every contestant runs in a new process with a warm-up, once in every round; the median round counts. Tokenization is
measured; warm-up and loading are not. The warm-up has other texts, because vLLM keeps what it has computed for a text.
CPU seconds include the processes that a contestant starts. The same run times matrix products alone: their speed,
weighted by the model's use of each shape, is the peak that a forward pass can reach. Only ratios are comparable between
machines, so the file of results has one record for each kind of CPU.

The ONNX and OpenVINO backends of sentence-transformers run in `.venv-backends` (`make .venv-backends/installed`), vLLM
in `.venv-vllm` (`make .venv-vllm/installed`). A contestant whose environment is missing, or that fails, is left out of
the table and named below it.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu_peers import PEERS, THIS_ENVIRONMENT, Encode
from benchmarks.write_tables import format_cpu_tables

HERE = Path(__file__).parent
WARMUP_TEXTS = 8  # texts of the warm-up, which are not measured


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


OURS: dict[str, Callable[[argparse.Namespace], Encode]] = {
    "retbench bfloat16": partial(build_retbench_run, dtype="bfloat16"),
    "retbench float32": partial(build_retbench_run, dtype="float32"),
    "retbench int8": partial(build_retbench_run, dtype="int8"),
}
BUILDS = {**OURS, **{name: build for peers in PEERS.values() for name, build in peers.items()}}
ENVIRONMENTS = {name: environment for environment, peers in PEERS.items() for name in peers}
TRUTH = "sentence-transformers default"
PEAK = "peak"  # the process that times matrix products alone
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


class ContestantError(Exception):
    """A contestant ended without a measurement."""


def sample_documents(options: argparse.Namespace) -> list[str]:
    """Title and text of documents spread evenly over the corpus: those of the warm-up first."""
    file = next(Path(options.collection).glob("corpus.jsonl*"))
    content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    lines = content.decode().splitlines()
    rows = [json.loads(lines[int(at)]) for at in np.linspace(0, len(lines) - 1, WARMUP_TEXTS + options.documents)]
    return [f"{row.get('title', '')} {row['text']}".strip() for row in rows]


def write_texts(folder: Path, texts: list[str]) -> None:
    """Write the texts where each contestant reads them, in a form that the calibration of OpenVINO reads too."""
    (folder / "texts").mkdir()
    rows = [json.dumps({"text": text}) for text in texts]
    (folder / "texts" / "train.jsonl").write_text("\n".join(rows) + "\n")


def measure_contestant(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Measure one contestant in this process; write its vectors to the folder of the run."""
    lines = (Path(options.folder) / "texts" / "train.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    encode = BUILDS[name](options)
    encode(texts[:WARMUP_TEXTS])
    started, used = time.perf_counter(), count_cpu_seconds()
    vectors = encode(texts[WARMUP_TEXTS:])
    seconds, cpu = time.perf_counter() - started, count_cpu_seconds() - used
    if broken := int((~np.isfinite(vectors).all(axis=1)).sum()):
        raise ContestantError(f"{broken} of {len(vectors)} vectors are not finite")
    np.save(Path(options.folder) / f"{name}.npy", vectors)
    return {"seconds": seconds, "cpu_seconds": cpu}


def count_cpu_seconds() -> float:
    """CPU seconds of this process and of all that it has started, while they run too."""
    import psutil

    this = psutil.Process()
    return float(sum(sum(process.cpu_times()[:4]) for process in (this, *this.children(recursive=True))))


def measure_peak(options: argparse.Namespace) -> dict[str, Any]:
    """GFLOP/s of matrix products alone: each linear shape of the model, weighted by its share of the work.

    0 where other processes disturbed the timing.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    from retbench.engines.peak_throughput import count_linear_shapes, measure_peak_throughput

    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.from_pretrained(options.weights))
    flop = 2.0 * sum(count * rows * columns for (rows, columns), count in count_linear_shapes(model).items())
    peaks: dict[str, float] = {}
    for dtype in ("bfloat16", "float32"):
        tokens_per_second = measure_peak_throughput(model, getattr(torch, dtype), torch.device("cpu"))
        peaks[dtype] = flop * (tokens_per_second or 0.0) / 1e9
    return {"flop_per_token": flop, **peaks}


def run_contestant(options: argparse.Namespace, name: str, folder: Path) -> dict[str, Any]:
    """Run one contestant in a new process of its environment."""
    command = [find_python(ENVIRONMENTS.get(name, THIS_ENVIRONMENT)), "-m", "benchmarks.bench_cpu", "--only", name]
    for key in ("weights", "collection", "documents", "length", "threads", "pooling"):
        command += [f"--{key}", str(getattr(options, key))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(
        [*command, "--folder", str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=HERE.parent,
        check=False,
    )
    if ran.returncode:
        print(f"{name} failed:\n{ran.stderr.strip()}", file=sys.stderr)
        lines = ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"]
        raise ContestantError(next((line for line in reversed(lines) if "Error" in line), lines[-1]))
    answer: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return answer


def find_python(environment: str) -> str:
    return str(HERE.parent / environment / "bin" / "python") if environment else sys.executable


def find_contestants_to_leave_out(names: list[str], limits: str) -> dict[str, str]:
    """For each contestant that cannot run here, or not under the limits of an emulation, the reason."""
    left_out = {}
    for name in names:
        environment = ENVIRONMENTS.get(name, THIS_ENVIRONMENT)
        if not Path(find_python(environment)).exists():
            left_out[name] = f"{environment} is not installed (make {environment}/installed)"
        elif environment and limits:
            left_out[name] = f"may not obey {limits}"
    return left_out


def measure_rounds(
    options: argparse.Namespace, names: list[str], folder: Path, left_out: dict[str, str]
) -> tuple[dict[str, list[dict[str, Any]]], list[dict[str, Any]]]:
    """Run all contestants in turn, `rounds` times, and the peak before and after.

    A contestant that fails is added to `left_out` and not run again; the others go on.
    """
    tries: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    peaks = []
    for _ in range(options.rounds):
        peaks.append(run_contestant(options, PEAK, folder))
        for name in names:
            if name in left_out:
                continue
            try:
                tries[name].append(run_contestant(options, name, folder))
            except ContestantError as problem:
                left_out[name] = f"failed: {problem}"
                continue
            print(f"{name}: {tries[name][-1]}", file=sys.stderr, flush=True)
    peaks.append(run_contestant(options, PEAK, folder))
    return {name: tried for name, tried in tries.items() if name not in left_out}, peaks


def run_benchmark(options: argparse.Namespace) -> dict[str, Any]:
    """Measure all contestants; keep the median round of each."""
    from retbench.records.machine import describe_machine

    names = options.contestants or list(BUILDS)
    left_out = find_contestants_to_leave_out(names, find_limits(os.environ))
    texts = sample_documents(options)
    tokens = count_tokens(options, texts[WARMUP_TEXTS:])
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        write_texts(folder, texts)
        tries, peaks = measure_rounds(options, names, folder, left_out)
        vectors = {name: np.load(folder / f"{name}.npy") for name in tries}
    rows = {name: sorted(tried, key=lambda one: one["seconds"])[(len(tried) - 1) // 2] for name, tried in tries.items()}
    best = {key: max(p[key] for p in peaks) for key in ("bfloat16", "float32", "flop_per_token")}
    add_comparisons(rows, tokens, best, vectors)
    setting = {key: getattr(options, key) for key in ("pooling", "documents", "length", "threads", "rounds")}
    return {
        "command": describe_command(options, setting),
        "processor": describe_machine()["cpu"],
        "settings": {**setting, "tokens": tokens},
        "peak_gflops": best,
        "contestants": rows,
        "left_out": left_out,
    }


def add_comparisons(
    rows: dict[str, dict[str, Any]], tokens: int, best: dict[str, float], vectors: dict[str, np.ndarray]
) -> None:
    """Add tokens per second, the share of the peak and the least cosine to each row."""
    for name, row in rows.items():
        row["tokens_per_second"] = tokens / row["seconds"]
        reach = best["bfloat16" if "bfloat16" in name else "float32"]
        # int8 products are not measured alone, and OpenVINO chooses its own precision
        if reach and "int8" not in name and "OpenVINO" not in name:
            row["share_of_peak"] = row["tokens_per_second"] * best["flop_per_token"] / 1e9 / reach
        if TRUTH in vectors:
            row["min_cosine_to_fp32"] = float((vectors[name] * vectors[TRUTH]).sum(axis=1).min())


def describe_command(options: argparse.Namespace, setting: dict[str, Any]) -> str:
    weights = f'"$(python benchmarks/print_weights_folder.py {Path(options.weights).name})"'
    arguments = {"weights": weights, "collection": Path(options.collection).name, **setting}
    if options.contestants:
        arguments["contestants"] = " ".join(f'"{name}"' for name in options.contestants)
    return " ".join(["python -m benchmarks.bench_cpu", *(f"--{key} {value}" for key, value in arguments.items())])


def find_kind(flags: str, limits: str) -> str:
    """The widest of the processor's instructions that matter here, and whether wider ones are switched off."""
    kinds = {"AMX": "amx_bf16", "AVX512 with VNNI": "avx512_vnni", "AVX512": "avx512f", "AVX2": "avx2"}
    widest = next((kind for kind, flag in kinds.items() if flag in flags), "none of AMX, AVX512 and AVX2")
    return f"{widest}, emulating another by {limits}" if limits else widest


def find_limits(environment: Mapping[str, str]) -> str:
    """The environment variables with which torch leaves out instructions that the processor has."""
    return " ".join(f"{name}={environment[name]}" for name in LIMITS if name in environment)


def count_tokens(options: argparse.Namespace, texts: list[str]) -> int:
    """Tokens of the truncated texts, without padding."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(options.weights) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()  # MiniLM's file cuts at 128 tokens, though all contestants are told `length`
    return sum(min(len(encoding.ids), options.length) for encoding in tokenizer.encode_batch(texts))


def save_record(file: Path, kind: str, found: dict[str, Any]) -> None:
    """Put the record in the place of the one of the same kind of CPU; those of other kinds stay."""
    file.parent.mkdir(parents=True, exist_ok=True)
    records = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**records, kind: found}, indent=1) + "\n")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, type=Path, help="a Hugging Face folder")
    parser.add_argument("--collection", required=True, type=Path, help="a BEIR folder")
    parser.add_argument("--documents", type=int, default=512)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pooling", default="last", choices=["last", "mean", "first"], help="that of the folder")
    some = f"some of {', '.join(BUILDS)}; all without this option"
    parser.add_argument("--contestants", nargs="+", choices=list(BUILDS), metavar="NAME", help=some)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu_decoder.json")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def run_alone(options: argparse.Namespace) -> None:
    """What the process of one contestant does."""
    import torch

    torch.set_num_threads(options.threads)
    found = measure_peak(options) if options.only == PEAK else measure_contestant(options, options.only)
    (options.folder / f"{options.only}.json").write_text(json.dumps(found))


def main() -> None:
    options = build_parser().parse_args()
    options.weights, options.collection = options.weights.resolve(), options.collection.resolve()
    if options.only:
        run_alone(options)
        return
    found = run_benchmark(options)
    kind = find_kind(Path("/proc/cpuinfo").read_text(), find_limits(os.environ))
    save_record(options.out, kind, found)
    print(format_cpu_tables({kind: found}))


if __name__ == "__main__":
    main()
