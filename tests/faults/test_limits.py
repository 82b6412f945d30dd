"""Limits of the operating system and odd surroundings: a right answer, or two lines that name what is short."""

from dataclasses import replace
from pathlib import Path

import pytest

from retbench.records.results_folder import ResultsFolder
from tests import fork_server
from tests.faults.helpers import MakeJob, run_job, run_without_fault
from tests.faults.job import FaultJob
from tests.faults.test_disk import MountSmallDisk, small_disk

__all__ = ["small_disk"]  # a fixture
pytestmark = pytest.mark.fault


def run_within(server: fork_server.ForkServer, job: FaultJob, reason: str) -> bool:
    """Run with a limit: it succeeds, or exits with 5 and two lines and leaves nothing half-made. Return whether."""
    code, output = run_job(server, job), job.read_output()
    assert "Traceback" not in output
    assert "unexpected" not in output
    if code:
        assert code == 5, output
        assert reason in output
        assert "next:  " in output
        assert ResultsFolder(Path(job.out)).scan_runs().runs == []
    return code == 0


@pytest.mark.parametrize("method", ["mean", "bm25"])
def test_a_full_folder_for_temporary_files(
    server: fork_server.ForkServer, cell: MakeJob, tmp_path: Path, small_disk: MountSmallDisk, method: str
) -> None:
    expected, outcomes, scratch = run_without_fault(server, choose_method(cell("whole"), method)), [], tmp_path / "tmp"
    for pages in (1, 2, 40):
        small_disk(scratch, pages)
        job = choose_method(cell(f"pages{pages}", environment={"TMPDIR": str(scratch)}), method)
        outcomes.append(run_within(server, job, "free disk space"))
        assert run_without_fault(server, replace(job, environment=None)) == expected
    assert outcomes[-1]


def choose_method(job: FaultJob, method: str) -> FaultJob:
    """The job with its model, or with BM25."""
    if method != "bm25":
        return job
    return replace(job, argv=("run", "--model", "bm25", "--task", job.task, "--out", job.out))


@pytest.mark.parametrize(("limit", "name"), [(64, "open_files"), (5, "open_files"), (3000, "file_bytes")])
def test_few_open_files_and_small_files(server: fork_server.ForkServer, cell: MakeJob, limit: int, name: str) -> None:
    expected = run_without_fault(server, cell("whole"))
    job = cell("limited", **{name: limit})
    is_done = run_within(server, job, "ulimit -n" if name == "open_files" else "File too large")
    assert is_done == (limit == 64)
    assert run_without_fault(server, job) == expected


@pytest.mark.parametrize("folder", ["out", "cache", "task"])
def test_a_path_that_is_not_utf_8(server: fork_server.ForkServer, cell: MakeJob, tmp_path: Path, folder: str) -> None:
    job = cell("odd")
    odd = tmp_path / "caf\udce9"  # "café" in Latin-1
    if folder == "task":
        odd.symlink_to(job.task)
    argv = tuple(str(odd) if word == getattr(job, folder) else word for word in job.argv)
    run_within(server, replace(job, argv=argv, **{folder: str(odd)}), "is not UTF-8")
