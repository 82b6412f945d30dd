"""SIGKILL at random moments of rerank, adaptor, export, fetch and push: the same command again gives the same files."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import retbench
from retbench.cards import pins
from retbench.engines import fingerprints
from tests import fork_server, tiny_models
from tests.faults.file_server import REVISION, ServedFiles, serve_files
from tests.faults.helpers import (
    MakeJob,
    assert_results_are_intact,
    run_job,
    run_training,
    run_until_signal,
    run_without_fault,
)
from tests.faults.job import FaultJob
from tests.test_mteb_export import write_cached_dataset
from tests.test_push import HubImitation, serve_hub
from tests.test_search_adaptor import task as adaptor_task  # a fixture

__all__ = ["adaptor_task"]
pytestmark = pytest.mark.fault

KILLS = 3
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def server() -> Iterator[fork_server.ForkServer]:
    """A fork server that has imported mteb, so that no kill hits the import."""
    with fork_server.start_fork_server("tests.faults.test_kill_commands") as started:
        yield started


def read_files(folder: Path) -> Files:
    """Read all files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kill_and_repeat(
    server: fork_server.ForkServer, make: Callable[[str], FaultJob], read: Callable[[FaultJob], Files]
) -> None:
    """Kill a command at random moments of its phase; run again, each time its files are those of a whole run."""
    whole = make("whole")
    moments = whole.count_moments(server)
    expected, rng = read(whole), random.Random(whole.phase)
    assert expected
    for number in range(KILLS):
        job = run_until_signal(server, make(f"killed{number}"), moments, rng)
        assert run_job(server, replace(job, phase="")) == 0, job.read_output()
        assert "Traceback" not in job.read_output()
        assert read(job) == expected


def test_a_killed_reranking_asks_for_no_answer_twice(server: fork_server.ForkServer, cell: MakeJob) -> None:
    """The language model's answers are kept one by one, the reranked run is complete or absent."""
    first = cell("first")
    run_without_fault(server, replace(first, argv=("run", "--model", "bm25", "--task", first.task, "--out", first.out)))
    (run,) = (path.parent.relative_to(first.out) for path in Path(first.out).rglob("record.json"))

    def make(name: str) -> FaultJob:
        job = cell(name)
        folder = Path(shutil.copytree(first.out, job.out))
        shutil.copytree(first.cache, job.cache)  # the reranker reads the texts of the collection
        words = ("rerank", str(folder / run), "--with", f"pointwise:model={job.model},depth=4", "--out", job.out)
        return replace(job, argv=words, phase="rerank")

    def read(job: FaultJob) -> Files:
        assert_results_are_intact(job)
        answers = {f"answer {key}": content for key, content in read_files(Path(job.cache) / "answers").items()}
        assert len(answers) == 4 * 6  # of 6 queries
        results = read_files(Path(job.out)).items()
        return answers | {name: content for name, content in results if name.endswith(("gz", "parquet"))}

    kill_and_repeat(server, make, read)


@pytest.mark.parametrize("phase", ["adaptor training", "adaptor file"])
def test_a_killed_training_of_an_adaptor_gives_the_same_adaptor(
    server: fork_server.ForkServer, cell: MakeJob, adaptor_task: Path, phase: str
) -> None:
    short = ("--set", "max_steps=30", "--set", "alpha=[0.1]", "--set", "beta=[0.01]", "--set", "patience=30")

    def make(name: str) -> FaultJob:
        job = cell(name)
        words = ("finetune", str(adaptor_task), "--model", job.model, "--objective", "adaptor", *short, "--resume")
        return replace(job, argv=(*words, "--out", f"{job.out}/pupil"), phase=phase)

    def read(job: FaultJob) -> Files:
        """The adaptor, and the scores of a run that uses it."""
        words = ("run", "--model", f"{job.out}/pupil", "--task", str(adaptor_task), "--out", f"{job.out}/results")
        scores = run_without_fault(server, replace(job, argv=words, out=f"{job.out}/results"))
        assert not list(Path(job.out).rglob("*.partial"))
        return {"adaptor": (Path(job.out) / "pupil" / "adaptor.safetensors").read_bytes(), "run": scores["run.trec.gz"]}

    kill_and_repeat(server, make, read)


def test_a_killed_export_to_sentence_transformers_is_whole_or_absent(
    server: fork_server.ForkServer, training: MakeJob
) -> None:
    trained = training("trained")
    run_training(server, trained)

    def make(name: str) -> FaultJob:
        job = training(name, phase="sentence-transformers")
        shutil.copytree(trained.out, job.out)
        return replace(job, argv=(*job.argv, "--export", "sentence-transformers"))

    kill_and_repeat(server, make, lambda job: read_files(Path(job.out) / "sentence-transformers"))


def test_a_killed_export_to_mteb_is_whole_or_absent(
    server: fork_server.ForkServer, cell: MakeJob, tmp_path: Path, own_cache: Path
) -> None:
    write_cached_dataset("scifact")
    (done,) = retbench.evaluate(["bm25"], tasks=["scifact"], out=tmp_path / "results")

    def make(name: str) -> FaultJob:
        job = cell(name, cache=str(own_cache), phase="mteb")
        return replace(job, argv=("export", str(done.record), "--out", job.out))

    kill_and_repeat(server, make, lambda job: read_files(Path(job.out)))


def test_a_killed_push_sends_everything_the_next_time(server: fork_server.ForkServer, training: MakeJob) -> None:
    trained, hub, environment = training("trained"), HubImitation(), {"HF_TOKEN": "hf_secret"}
    run_training(server, trained)

    def make(name: str) -> FaultJob:
        hub.files.clear()
        words = ("push", "pupil", "kitchen/pupil", "--results", f"{trained.out}-results")
        return replace(trained, argv=words, environment=environment, phase="push", log=f"{trained.log}-{name}")

    with serve_hub(hub) as environment["HF_ENDPOINT"]:
        kill_and_repeat(server, make, lambda _: dict(hub.files))
    assert "adapter_model.safetensors" in hub.files or "model.safetensors" in hub.files


@pytest.fixture
def hub_model(tmp_path: Path) -> dict[str, bytes]:
    """The files of a model on the imitation of the hub, by their path."""
    folder = tiny_models.build_model(tmp_path / "tiny")
    (tmp_path / "cards" / "model_cards").mkdir(parents=True)
    (tmp_path / "cards/model_cards/far.toml").write_text('name = "far"\n[weights]\nsource = "hub"\nrepo = "org/tiny"\n')
    return {f"/org/tiny/resolve/{REVISION}/{file.name}": file.read_bytes() for file in folder.iterdir()}


def start_fetch(port: int, folder: Path) -> subprocess.Popen[str]:
    """Start a fetch of the model."""
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HUB_DISABLE_XET": "1"}
    environment = {**os.environ, **hub, "RETBENCH_CARDS": str(folder / "cards")}
    command = [sys.executable, "-m", "retbench", "fetch", "far"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def assert_model_is_fetched(folder: Path, cache: Path) -> None:
    """Check the pin of the fetched model, and that nothing is left beside it."""
    assert pins.read_pin("models", "far") == pins.Pin(
        REVISION, fingerprints.compute_folder_fingerprint(folder / "tiny")
    )
    assert not list((cache / "weights").rglob("*.partial"))


def test_a_killed_fetch_continues_and_has_the_same_weights(
    tmp_path: Path, own_cache: Path, hub_model: dict[str, bytes]
) -> None:
    rng = random.Random("fetch")
    for _ in range(KILLS):
        files = ServedFiles(hub_model, hang=rng.randrange(sum(map(len, hub_model.values()))))
        files.others.set()
        with serve_files(files) as port:
            running = start_fetch(port, tmp_path)
            while files.sent < (files.hang or 0):
                assert running.poll() is None
                time.sleep(0.01)
            running.send_signal(signal.SIGKILL)
            running.communicate()
            assert running.returncode == -signal.SIGKILL
            files.go.set()
        assert pins.read_pin("models", "far") is None
        assert not list((own_cache / "weights").glob("*/weights.json"))
    healthy = ServedFiles(hub_model)
    healthy.others.set()
    with serve_files(healthy) as port:
        done = start_fetch(port, tmp_path)
        output, _ = done.communicate()
    assert done.returncode == 0, output
    assert_model_is_fetched(tmp_path, own_cache)


def test_processes_that_fetch_one_model_at_once_send_each_file_once(
    tmp_path: Path, own_cache: Path, hub_model: dict[str, bytes]
) -> None:
    files = ServedFiles(hub_model)
    files.others.set()
    with serve_files(files) as port:
        running = [start_fetch(port, tmp_path) for _ in range(4)]
        outputs = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0] * 4, outputs
    assert files.sent < 1.1 * sum(map(len, hub_model.values()))  # and lists of the files
    assert_model_is_fetched(tmp_path, own_cache)


if __name__ == "__main__":
    import mteb  # noqa: F401  # before the forks: each kill would import it again

    fork_server.serve_forks(FaultJob)
