"""A full disk while a command writes a report, plots, an export, an import or a push: exit 5 and two lines, and nothing
half-written that a later command would take for whole. The disk is a tmpfs that grows until the command succeeds.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import retbench
from tests import fork_server
from tests.faults.helpers import MakeJob, run_job, run_training
from tests.faults.job import FaultJob
from tests.faults.test_disk import PAGE, MountSmallDisk, small_disk
from tests.faults.test_kill_commands import Files, read_files
from tests.finished_runs import write_finished_run
from tests.test_mteb_export import write_cached_dataset
from tests.test_push import HubImitation, serve_hub

__all__ = ["small_disk"]  # a fixture
pytestmark = pytest.mark.fault

FILLING = "filling"  # a file that takes the first page of the disk


@pytest.fixture(scope="module")
def server() -> Iterator[fork_server.ForkServer]:
    """A fork server that has imported mteb."""
    with fork_server.start_fork_server("tests.faults.test_kill_commands") as started:
        yield started


def read_whole_files(folder: Path) -> Files:
    """The files that a later command reads: those without a temporary name, and not what fills the disk."""
    whole = {name: content for name, content in read_files(folder).items() if ".partial" not in name}
    whole.pop(FILLING, None)
    return whole


def fill_and_grow(
    server: fork_server.ForkServer, job: FaultJob, folder: Path, expected: Files, grow: Callable[[int], None]
) -> int:
    """Run a command on a disk that is larger each time, until it succeeds; return how often the disk was full."""
    for failures in range(40):
        grow(failures)
        if failures == 0:
            (folder / FILLING).write_bytes(b"x" * PAGE)
        before = read_whole_files(folder)
        code, output = run_job(server, job), job.read_output()
        assert "Traceback" not in output
        if code == 0:
            assert read_whole_files(folder) == expected
            return failures
        assert code == 5, output
        assert "No space left on device" in output or "disk is full" in output, output
        assert "next:  " in output
        after = read_whole_files(folder)
        assert after.items() <= {**before, **expected}.items(), output  # every file is as before or whole
    raise AssertionError("the disk never sufficed")


# (arguments after the results, the least number of full disks)
REPORTS = {
    "html": (("--format", "html", "--out", "{disk}/page.html"), 2),
    "csv": (("--format", "csv", "--out", "{disk}/table.csv"), 1),
    "plots": (("--plots", "{disk}/plots"), 2),
}


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_is_whole_or_absent(
    server: fork_server.ForkServer, cell: MakeJob, tmp_path: Path, small_disk: MountSmallDisk, name: str
) -> None:
    for number in range(4):
        write_finished_run(tmp_path / "results", f"model{number}", "task", [0.1 * number, 0.5, 0.9])

    def make(disk: Path) -> FaultJob:
        disk.mkdir(exist_ok=True)
        words = ("report", str(tmp_path / "results"), *(word.format(disk=disk) for word in REPORTS[name][0]))
        return replace(cell(disk.name), argv=words)

    whole, full = make(tmp_path / "whole"), tmp_path / "full"
    assert run_job(server, whole) == 0, whole.read_output()
    expected = read_files(tmp_path / "whole")
    step = max(1, sum(map(len, expected.values())) // PAGE // 4)
    failures = fill_and_grow(server, make(full), full, expected, lambda number: small_disk(full, 1 + number * step))
    assert failures >= REPORTS[name][1]


def test_an_export_to_mteb_and_its_import_are_whole_or_absent(
    server: fork_server.ForkServer, cell: MakeJob, tmp_path: Path, own_cache: Path, small_disk: MountSmallDisk
) -> None:
    write_cached_dataset("scifact")
    (done,) = retbench.evaluate(["bm25"], tasks=["scifact"], out=tmp_path / "results")

    def make(*words: object) -> FaultJob:
        return replace(cell("job", cache=str(own_cache)), argv=tuple(map(str, words)))

    whole, full = tmp_path / "whole", tmp_path / "full"
    assert run_job(server, make("export", done.record, "--out", whole)) == 0
    exporting = make("export", done.record, "--out", full)
    assert fill_and_grow(server, exporting, full, read_files(whole), lambda n: small_disk(full, 1 + n)) >= 1
    imported, small = tmp_path / "imported", tmp_path / "small"
    assert run_job(server, make("import", whole, "--results", imported)) == 0
    importing = make("import", whole, "--results", small)
    assert fill_and_grow(server, importing, small, read_files(imported), lambda n: small_disk(small, 1 + n)) >= 1
    assert run_job(server, make("report", small, "--reference")) in (0, 3)


def test_an_export_to_sentence_transformers_is_whole_or_absent(
    server: fork_server.ForkServer, training: MakeJob, small_disk: MountSmallDisk
) -> None:
    trained, whole, full = training("trained"), training("whole"), training("full")
    run_training(server, trained)
    shutil.copytree(trained.out, whole.out)
    export = ("--export", "sentence-transformers")
    assert run_job(server, replace(whole, argv=(*whole.argv, *export))) == 0, whole.read_output()
    model, expected = read_files(Path(trained.out)), read_files(Path(whole.out))
    pages = sum(-(-len(content) // PAGE) for content in model.values()) + 20  # of the model, and its folders
    step = sum(map(len, (expected[name] for name in expected.keys() - model.keys()))) // PAGE // 3

    def grow(number: int) -> None:
        small_disk(Path(full.out), pages + number * step)
        if number == 0:
            shutil.copytree(trained.out, full.out, dirs_exist_ok=True)

    job = replace(full, argv=(*full.argv, *export))
    assert fill_and_grow(server, job, Path(full.out), expected, grow) >= 2
    assert not list(Path(full.out).glob("*.partial"))


def test_a_push_with_full_disks_sends_everything(
    server: fork_server.ForkServer, training: MakeJob, tmp_path: Path, small_disk: MountSmallDisk
) -> None:
    """Nothing is staged on a disk: neither the cache nor the folder for temporary files needs room."""
    trained, hub = training("trained"), HubImitation()
    run_training(server, trained)
    cache, scratch = tmp_path / "full-cache", tmp_path / "scratch"
    for folder in (cache, scratch):
        small_disk(folder, 1)
        (folder / FILLING).write_bytes(b"x" * PAGE)
    with serve_hub(hub) as address:
        environment = {"HF_TOKEN": "hf_secret", "HF_ENDPOINT": address, "TMPDIR": str(scratch)}
        words = ("push", trained.out, "kitchen/pupil", "--results", f"{trained.out}-results")
        job = replace(trained, argv=words, environment=environment, cache=str(cache))
        assert run_job(server, job) == 0, job.read_output()
    for name, content in read_files(Path(trained.out)).items():
        assert hub.files.get(name, content) == content
    assert {"model.safetensors", "card.toml", "config.json", "README.md"} <= hub.files.keys()
    assert json.loads(hub.files["config.json"])
