"""The CPU benchmark: a contestant that fails or is not installed is named, and records of several kinds of CPU stay."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from benchmarks import bench_cpu, cpu_peers, write_tables

ONNX, TORCH, VLLM = "sentence-transformers ONNX", "sentence-transformers default", "vLLM bfloat16"

# stands for the Python of an environment; the contestant is the argument behind --only, the folder the last one
PYTHON = """#!/bin/sh
if [ "$4" = "sentence-transformers ONNX" ]; then
    echo "Traceback" >&2; echo "ValueError: no such layer" >&2; echo "a warning at the end" >&2; exit 1
fi
for folder; do :; done
echo "{\\"seconds\\": 2.0, \\"cpu_seconds\\": 3.5}" > "$folder/$4.json"
"""
RECORD: dict[str, Any] = {
    "processor": "CPU of a maker",
    "settings": {"documents": 16, "tokens": 2000, "threads": 2, "rounds": 1},
    "peak_gflops": {"bfloat16": 0.0, "float32": 100.0},
    "contestants": {TORCH: {"seconds": 2.0, "cpu_seconds": 3.5, "tokens_per_second": 1000.0}},
    "left_out": {VLLM: ".venv-vllm is not installed (make .venv-vllm/installed)"},
}


def build_options(**changed: Any) -> argparse.Namespace:
    options = bench_cpu.build_parser().parse_args(["--weights", "weights", "--collection", "scifact"])
    return argparse.Namespace(**{**vars(options), **changed})


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "python"
    script.write_text(PYTHON)
    script.chmod(0o755)
    monkeypatch.setattr(bench_cpu, "find_python", lambda _: str(script))
    return script


@pytest.mark.usefixtures("python")
def test_a_contestant_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left_out: dict[str, str] = {}
    tries, peaks = bench_cpu.measure_rounds(build_options(rounds=2), [ONNX, TORCH], tmp_path, left_out)
    assert left_out == {ONNX: "failed: ValueError: no such layer"}
    assert tries == {TORCH: [{"seconds": 2.0, "cpu_seconds": 3.5}] * 2}
    assert len(peaks) == 3
    assert capsys.readouterr().err.count(f"{ONNX} failed:\nTraceback") == 1  # it is not tried again


def test_no_text_of_the_warm_up_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM keeps the states of texts that it has seen: 8 of 32 texts were computed before the clock started."""
    (tmp_path / "corpus.jsonl").write_text("".join(f'{{"text": "document {n}"}}\n' for n in range(50)))
    options, batches = build_options(collection=str(tmp_path), documents=16, folder=str(tmp_path)), []

    def encode(texts: list[str]) -> np.ndarray:
        batches.append(texts)
        return np.zeros((len(texts), 4))

    monkeypatch.setitem(bench_cpu.BUILDS, TORCH, lambda _: encode)
    bench_cpu.write_texts(tmp_path, bench_cpu.sample_documents(options))
    bench_cpu.measure_contestant(options, TORCH)
    warmup, measured = batches
    assert (len(warmup), len(measured)) == (bench_cpu.WARMUP_TEXTS, 16)
    assert not set(warmup) & set(measured)


def test_tokens_are_counted_up_to_the_length_and_not_to_the_one_in_the_tokenizers_file(tmp_path: Path) -> None:
    tokenizer = Tokenizer(WordLevel({"word": 0}))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    options = build_options(weights=str(tmp_path), length=10)
    assert bench_cpu.count_tokens(options, ["word " * 3, "word " * 7, "word " * 12]) == 3 + 7 + 10


def test_a_contestant_without_its_environment_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_cpu, "HERE", tmp_path / "benchmarks")
    (tmp_path / ".venv-backends/bin").mkdir(parents=True)
    (tmp_path / ".venv-backends/bin/python").touch()
    names = [TORCH, ONNX, VLLM]
    missing = {VLLM: ".venv-vllm is not installed (make .venv-vllm/installed)"}
    assert bench_cpu.find_contestants_to_leave_out(names, "") == missing
    emulated = bench_cpu.find_contestants_to_leave_out(names, "ONEDNN_MAX_CPU_ISA=AVX2")
    assert emulated == {**missing, ONNX: "may not obey ONEDNN_MAX_CPU_ISA=AVX2"}


def test_an_unknown_contestant_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_cpu.build_parser().parse_args(["--weights", "w", "--collection", "c", "--contestants", "ONXX"])
    assert "invalid choice: 'ONXX'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "environment", "kind"),
    [
        ("flags : avx2 avx512f avx512_vnni amx_bf16", {}, "AMX"),
        ("flags : avx2 avx512f avx512_vnni", {}, "AVX512 with VNNI"),
        ("flags : avx2 avx512f", {}, "AVX512"),
        ("flags : avx2", {}, "AVX2"),
        ("flags : avx2 amx_bf16", {"ONEDNN_MAX_CPU_ISA": "AVX2"}, "AMX, emulating another by ONEDNN_MAX_CPU_ISA=AVX2"),
    ],
)
def test_the_kind_of_cpu_is_the_widest_and_an_emulated_one_is_named(
    flags: str, environment: dict[str, str], kind: str
) -> None:
    assert bench_cpu.find_kind(flags, bench_cpu.find_limits(environment)) == kind


def test_records_of_several_kinds_of_cpu_stay_and_each_has_a_table(tmp_path: Path) -> None:
    file = tmp_path / "results" / "cpu.json"
    bench_cpu.save_record(file, "AMX", {**RECORD, "processor": "old"})
    bench_cpu.save_record(file, "AVX2", RECORD)
    bench_cpu.save_record(file, "AMX", RECORD)
    records = json.loads(file.read_text())
    assert records == {"AMX": RECORD, "AVX2": RECORD}
    tables = write_tables.format_cpu_tables(records)
    assert [line for line in tables.splitlines() if line.startswith("CPU with")] == ["CPU with AMX:", "CPU with AVX2:"]
    assert tables.count(f"| {TORCH} | 1,000 | – | 2.0 | 3.5 |") == 2
    assert tables.count(f"Not measured: {VLLM}, .venv-vllm is not installed (make .venv-vllm/installed).") == 2


def test_shares_of_the_peak_are_left_out_where_the_precision_is_not_that_of_the_peak() -> None:
    names = ["retbench bfloat16", "retbench int8", TORCH, "sentence-transformers OpenVINO"]
    rows = {name: {"seconds": 2.0, "cpu_seconds": 3.5} for name in names}
    vectors = {name: np.eye(2, dtype=np.float32) for name in names}
    best = {"bfloat16": 200.0, "float32": 100.0, "flop_per_token": 1e7}
    bench_cpu.add_comparisons(rows, 2000, best, vectors)
    assert {name: row.get("share_of_peak") for name, row in rows.items()} == {
        "retbench bfloat16": 0.05,
        "retbench int8": None,
        TORCH: 0.1,
        "sentence-transformers OpenVINO": None,
    }
    assert all(row["min_cosine_to_fp32"] == 1 for row in rows.values())


def test_a_contestant_whose_vectors_are_not_finite_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench_cpu.write_texts(tmp_path, ["text"] * (bench_cpu.WARMUP_TEXTS + 2))
    monkeypatch.setitem(bench_cpu.BUILDS, ONNX, lambda _: lambda texts: np.log(np.arange(len(texts)) - 1.0)[:, None])
    with np.errstate(all="ignore"), pytest.raises(bench_cpu.ContestantError, match="2 of 2 vectors are not finite"):
        bench_cpu.measure_contestant(build_options(folder=tmp_path), ONNX)
    assert not list(tmp_path.glob("*.npy"))


def test_cpu_seconds_of_a_process_that_still_runs_are_counted() -> None:
    code = "import sys, time\nwhile time.process_time() < 0.15: pass\nprint(flush=True); sys.stdin.read()"
    before = bench_cpu.count_cpu_seconds()
    with subprocess.Popen([sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert bench_cpu.count_cpu_seconds() - before >= 0.1  # the system counts in steps of 0.01
        child.communicate()


def test_the_folder_for_transformers_4_has_its_names_and_the_weights_stay_as_they_are(tmp_path: Path) -> None:
    weights, folder = tmp_path / "weights", tmp_path / "linked"
    weights.mkdir()
    config = {"rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"}, "dtype": "float32"}
    tokenizer = {"tokenizer_class": "TokenizersBackend", "pad_token": "<pad>"}
    (weights / "config.json").write_text(json.dumps(config))
    (weights / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (weights / "model.safetensors").write_bytes(b"weights")
    cpu_peers.link_for_transformers_4(weights, folder)
    found = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert json.loads(found["config.json"]) == {"rope_theta": 100000.0, "dtype": "float32"}
    assert json.loads(found["tokenizer_config.json"]) == {**tokenizer, "tokenizer_class": "PreTrainedTokenizerFast"}
    assert found["model.safetensors"] == b"weights"
    assert json.loads((weights / "config.json").read_text()) == config
