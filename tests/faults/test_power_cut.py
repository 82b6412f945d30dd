"""A power cut right after a command: only what was flushed to the disk is still there, and that is everything.

Each file loses what was written after its last flush, as on a disk whose cache is lost.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import small_collection
from tests.faults.helpers import MakeJob
from tests.test_run import run_cells, run_command
from tests.test_weights import write_gguf

pytestmark = pytest.mark.fault


class Disk:
    """Knows how many bytes of each file are on the disk."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flushed_bytes: dict[int, int] = {}
        self.fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self.flush)

    def flush(self, handle: int) -> None:
        self.fsync(handle)
        state = os.fstat(handle)
        self.flushed_bytes[state.st_ino] = state.st_size

    def cut_power(self, *folders: Path) -> list[str]:
        """Take from each file what is not on the disk; return the names of the files that lost something."""
        files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
        lost = {file: self.flushed_bytes.get(file.stat().st_ino, 0) for file in files}
        shorter = [file for file, size in lost.items() if size < file.stat().st_size]
        for file in shorter:
            os.truncate(file, lost[file])
        return sorted(file.name for file in shorter)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def read_rankings(out: Path) -> dict[str, bytes]:
    files = [*out.rglob("run.trec.gz"), *out.rglob("per_query.parquet")]
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in files}


def test_a_finished_run_survives_a_power_cut(
    disk: Disk, model: Path, tmp_path: Path, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task, out = small_collection.write_folder(tmp_path / "pantry"), tmp_path / "out"
    weights = write_gguf(model, tmp_path / "tiny.gguf")

    def run() -> list[dict[str, Any]]:
        where = ("--task", task, "--out", out)
        cells = run_cells("run", "--model", weights, "--model", "bm25", "--method", "mean", *where)
        return cells + run_cells("run", "--model", "bm25", "--rerank", f"pointwise:model={model},depth=2", *where)

    first, expected = run(), read_rankings(out)
    assert disk.cut_power(out, own_cache) == []
    assert all(cell["cached"] for cell in run())
    shutil.rmtree(out)  # so that the collection, the weights, the vectors and the answers are read
    again = run()
    assert [cell["scores"] for cell in again] == [cell["scores"] for cell in first]
    assert read_rankings(out) == expected
    assert caplog.messages == []


def test_a_trained_model_survives_a_power_cut(disk: Disk, training: MakeJob, own_cache: Path) -> None:
    job = training("trained")
    assert run_command(*job.argv).exit_code == 0
    weights = {file.name: file.read_bytes() for file in Path(job.out).glob("*.safetensors")}
    assert weights
    lost = disk.cut_power(Path(job.out), own_cache)
    assert lost in ([], ["metrics.jsonl"])  # a log of steps, not needed by any command but the curve of a report
    assert run_command(*job.argv).exit_code == 0
    assert {file.name: file.read_bytes() for file in Path(job.out).glob("*.safetensors")} == weights
