"""SIGKILL at fifty random moments over all phases: nothing finished is lost, and the result is the same."""

import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests import fork_server
from tests.faults.helpers import (
    MakeJob,
    assert_results_are_intact,
    run_job,
    run_training,
    run_until_signal,
    run_without_fault,
)
from tests.faults.job import FaultJob
from tests.test_crash_recovery import TEXTS

pytestmark = pytest.mark.fault

MOMENTS = {
    "collection": 4,
    "embedding": 12,
    "search": 6,
    "scoring": 6,
    "record": 8,
}  # kills per phase: 36, and 14 in the tests below


@pytest.mark.parametrize(("phase", "kills"), MOMENTS.items(), ids=MOMENTS)
def test_a_run_killed_in_any_phase_resumes_to_the_same_result(
    server: fork_server.ForkServer, cell: MakeJob, phase: str, kills: int
) -> None:
    expected, rng = run_without_fault(server, cell("whole")), random.Random(f"kill {phase}")
    moments = cell("counted", phase=phase).count_moments(server)
    for number in range(kills):
        job = run_until_signal(server, cell(f"killed{number}", phase=phase), moments, rng)
        assert_results_are_intact(job)
        assert run_without_fault(server, job) == expected
        assert job.count_computed_texts() <= TEXTS + fork_server.SHARD_ROWS  # at most one shard was lost
        assert not list(Path(job.out).rglob("*.partial"))


def test_a_run_killed_many_times_resumes_to_the_same_result(server: fork_server.ForkServer, cell: MakeJob) -> None:
    expected, rng, kills = run_without_fault(server, cell("whole")), random.Random("again"), 0
    moments, attempts = cell("counted", phase="embedding").count_moments(server), 0
    while kills < 6:
        attempts += 1
        assert attempts < 40
        job = cell(f"killed{attempts}", phase="embedding")
        kills_here = kills
        while run_job(server, replace(job, signal_at=rng.randint(1, moments))):
            kills += 1
            assert job.count_computed_texts() <= TEXTS + (kills - kills_here) * fork_server.SHARD_ROWS
        assert run_without_fault(server, job) == expected


# Training


@pytest.mark.parametrize(("phase", "kills"), [("training", 2), ("checkpoint", 4), ("model", 2)])
def test_a_training_killed_in_any_phase_gives_the_same_weights(
    server: fork_server.ForkServer, training: MakeJob, phase: str, kills: int
) -> None:
    expected, rng = run_training(server, training("whole")), random.Random(f"kill {phase}")
    moments = training("counted", phase=phase).count_moments(server)
    for number in range(kills):
        job = run_until_signal(server, training(f"killed{number}", phase=phase), moments, rng)
        assert run_training(server, job) == expected
        assert not list(Path(job.out).glob("*.partial"))


# Reports and studies


def test_a_killed_report_is_complete_or_absent(server: fork_server.ForkServer, cell: MakeJob, tmp_path: Path) -> None:
    done = cell("done")
    run_without_fault(server, done)
    page, rng = tmp_path / "page.html", random.Random("kill report")
    report = replace(done, argv=("report", done.out, "--format", "html", "--out", str(page)), phase="report")
    moments = report.count_moments(server)
    expected = page.read_bytes()
    for _ in range(3):
        page.unlink(missing_ok=True)
        run_until_signal(server, report, moments, rng)
        assert not page.exists() or page.read_bytes() == expected
        assert run_job(server, replace(report, phase="")) == 0
        assert page.read_bytes() == expected


@pytest.mark.parametrize(("phase", "kills"), [("training", 2), ("note", 1)])
def test_a_killed_study_that_trains_ends_with_the_same_weights_and_scores(
    server: fork_server.ForkServer, cell: MakeJob, training: MakeJob, tmp_path: Path, phase: str, kills: int
) -> None:
    parent, plan = training("unused"), tmp_path / "trains.toml"  # it has written its data and its recipe
    plan.write_text(
        f'name = "trains"\ntitle = "t"\n[[stages]]\nname = "trained"\nverb = "finetune"\nmodels = ["{parent.model}"]\n'
        f'tasks = ["{cell("unused").task}"]\n[stages.options]\n'
        f'dataset = "{tmp_path / "sentences.jsonl"}"\nrecipe = "{tmp_path / "short.toml"}"\n'
    )

    def make(name: str) -> FaultJob:
        job = cell(name, real=True, phase=phase)  # with the encoder that was trained
        return replace(job, argv=("study", "run", str(plan), "--out", job.out))

    def finish(job: FaultJob) -> dict[str, bytes]:
        """Run the study to its end: the trained weights, rankings and scores."""
        assert run_job(server, replace(job, phase="")) == 0, job.read_output()
        assert_results_are_intact(job)
        files = [*Path(job.cache, "model_cards").rglob("*.safetensors"), *Path(job.out).rglob("run.trec.gz")]
        files += Path(job.out).rglob("per_query.parquet")
        return {file.name: file.read_bytes() for file in files}

    expected, moments = finish(make("whole")), make("counted").count_moments(server)
    assert len(expected) >= 3
    rng = random.Random(f"kill study {phase}")
    for number in range(kills):
        assert finish(run_until_signal(server, make(f"killed{number}"), moments, rng)) == expected


def test_a_study_killed_while_writing_its_status_resumes(
    server: fork_server.ForkServer, cell: MakeJob, tmp_path: Path
) -> None:
    plan, rng = tmp_path / "little.toml", random.Random("kill note")
    first = cell("whole")
    plan.write_text(
        f'name = "little"\ntitle = "t"\n[[stages]]\nname = "words"\nmodels = ["bm25", "{first.model}"]\n'
        f'tasks = ["{first.task}"]\nmethods = ["mean"]\n'
    )

    def study(name: str, verb: str = "run") -> FaultJob:
        job = cell(name)
        return replace(job, argv=("study", verb, str(plan), "--out", job.out), phase="note")

    def left(job: FaultJob) -> list[tuple[str, bytes]]:
        assert run_job(server, replace(job, phase="")) == 0, job.read_output()
        files = [file for file in Path(job.out).rglob("*") if file.suffix in (".parquet", ".gz")]
        return sorted((file.relative_to(job.out).as_posix(), file.read_bytes()) for file in files)

    expected, moments = left(study("whole")), study("counted").count_moments(server)
    assert len(expected) == 4
    for number in range(3):
        job = run_until_signal(server, study(f"killed{number}"), moments, rng)
        assert run_job(server, replace(study(f"killed{number}", "status"), phase="")) == 0, job.read_output()
        assert left(job) == expected
