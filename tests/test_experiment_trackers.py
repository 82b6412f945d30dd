"""Trackers receive settings, scores and cost of each cell, and every step of a training; never a key."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

import retbench
from retbench.cli.main import app
from retbench.errors import MissingError, UsageError
from retbench.pipelines import experiment_trackers
from retbench.pipelines.experiment_trackers import TrackerError
from tests import small_collection
from tests.finished_runs import write_finished_run


class Event(NamedTuple):
    """What a tracker was told."""

    kind: str
    run: str
    facts: dict[str, Any]
    step: int | None = None


def install_stand_in(monkeypatch: pytest.MonkeyPatch, fail: bool = False) -> list[Event]:
    """Put a tracker in the place of tensorboard, which is not installed here; return the list of what it is told."""
    from accelerate import tracking

    events: list[Event] = []

    class StandIn(tracking.GeneralTracker):  # type: ignore[misc]  # untyped in accelerate
        name, requires_logging_directory, tracker = "tensorboard", True, None

        def __init__(self, run_name: str, logging_dir: str) -> None:
            super().__init__()
            self.run = run_name
            Path(logging_dir, run_name).mkdir(parents=True)  # one part of a path, as the real one needs

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            assert all(isinstance(value, str | int | float) for value in values.values())
            events.append(Event("settings", self.run, values))

        def log(self, values: dict[str, Any], step: int | None = None) -> None:
            if fail:
                raise ConnectionError("no route to the tracker")
            events.append(Event("log", self.run, values, step))

        def finish(self) -> None:
            events.append(Event("finish", self.run, {}))

    find_spec: Callable[..., Any] = importlib.util.find_spec
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", StandIn)
    monkeypatch.setattr(experiment_trackers, "find_spec", lambda name: name == "tensorboard" or find_spec(name))
    return events


@pytest.fixture
def kettles(tmp_path: Path) -> Path:
    return small_collection.write_folder(tmp_path / "kettles")


def test_each_cell_is_a_run_with_settings_scores_and_cost(
    kettles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = install_stand_in(monkeypatch)
    monkeypatch.setenv("RETBENCH_API_KEY", "sk-secret")
    models = ["bm25", "query-likelihood"]
    cells = retbench.evaluate(models, tasks=kettles, out=tmp_path / "results", report_to="tensorboard")
    assert [event.kind for event in events] == ["settings", "log", "finish"] * 2
    settings, logged, _ = events[:3]
    assert settings.facts["settings_id"] == cells[0].settings_id
    assert (settings.facts["model"], settings.facts["settings.lexical.k1"]) == ("bm25", 1.5)
    assert logged.facts["ndcg_at_10"] == logged.facts["main_score"] == cells[0].main_score
    assert logged.facts["cost/documents_per_second"] > 0
    assert logged.facts["seconds/index documents"] >= 0
    assert logged.step == 0
    assert "sk-secret" not in str(events)
    (tmp_path / "results" / "trackers").rename(tmp_path / "moved")  # the stand-in refuses a folder that exists
    retbench.evaluate("bm25", tasks=kettles, out=tmp_path / "results", report_to="tensorboard")
    assert events[6:] == events[:3]  # a cell found on disk is sent again


def test_a_tracker_that_fails_stops_no_cell(kettles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = install_stand_in(monkeypatch, fail=True)
    arguments = ["run", "--model", "bm25", "--model", "query-likelihood", "--task", str(kettles)]
    arguments += ["--out", str(tmp_path / "results"), "--set", "report_to=tensorboard"]
    answer = CliRunner().invoke(app, [*arguments, "--json"])
    assert answer.exit_code == 1
    assert [cell["status"] for cell in json.loads(answer.stdout)] == ["done", "done"]
    assert "tensorboard did not take 2 cells: ConnectionError: no route" in answer.stderr
    assert [event.kind for event in events] == ["settings", "finish"] * 2
    with pytest.raises(TrackerError, match="tensorboard did not take 1 cells"):
        retbench.evaluate("bm25", tasks=kettles, out=tmp_path / "other", report_to=["tensorboard"])


def test_unknown_and_missing_trackers_are_refused_before_any_work(kettles: Path, tmp_path: Path) -> None:
    arguments = ["run", "--model", "bm25", "--task", str(kettles), "--out", str(tmp_path / "results"), "--set"]
    answer = CliRunner().invoke(app, [*arguments, "report_to=wandb+tensorbord"])
    assert (answer.exit_code, (tmp_path / "results").exists()) == (3 if not _is_installed("wandb") else 2, False)
    with pytest.raises(UsageError, match="no tracker called 'tensorbord'"):
        experiment_trackers.require_trackers(("tensorbord",))
    with pytest.raises(MissingError, match="aim is not installed") as problem:
        experiment_trackers.require_trackers(("aim",))
    assert problem.value.next_step == "pip install aim"


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def test_the_names_are_those_of_accelerate() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    assert {*experiment_trackers.TRACKERS} <= {*LOGGER_TYPE_TO_CLASS}
    assert experiment_trackers.parse_tracker_names(" wandb + mlflow+wandb+") == ("wandb", "mlflow")


def test_a_second_stage_does_not_go_back_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events, printed = install_stand_in(monkeypatch), list[dict[str, Any]]()
    facts = [{"step": 1, "steps": 2}, {"step": 2, "steps": 2}, {"step": 1, "steps": 1}, {"step": 1, "score": 0.5}]
    with experiment_trackers.track_training(("tensorboard",), tmp_path, "r", {"a": {"b": None}}, printed.append) as log:
        for one in facts:
            log(one)
    assert printed == facts
    assert [event.step for event in events[1:-1]] == [1, 2, 3, 3]  # the last score too is sent before the end
    assert (events[0].facts, events[-1].kind) == ({"run": "r"}, "finish")


def test_a_tracker_that_fails_stops_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    events, printed = install_stand_in(monkeypatch, fail=True), list[dict[str, Any]]()

    def train() -> None:
        with experiment_trackers.track_training(("tensorboard",), tmp_path, "r", {}, printed.append) as log:
            for step in (1, 2, 3):
                log({"step": step, "steps": 3})

    with pytest.raises(TrackerError, match="the tracker tensorboard failed: ConnectionError: no route") as caught:
        train()
    assert [facts["step"] for facts in printed] == [1, 2, 3]
    assert [event.kind for event in events] == ["settings"]
    assert caplog.text.count("the tracker tensorboard failed") == 1
    assert "the trained model is saved" in caught.value.next_step


def test_an_interrupted_training_ends_its_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = install_stand_in(monkeypatch)

    def train() -> None:
        with experiment_trackers.track_training(("tensorboard",), tmp_path, "r", {}, lambda _: None) as log:
            log({"step": 1, "steps": 3})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train()
    assert [event.kind for event in events] == ["settings", "log", "finish"]


def test_settings_are_written_flat() -> None:
    nested = {"a": 1, "b": {"c": [1, "x"], "d": None, "e": True}}
    assert experiment_trackers.flatten_settings(nested) == {"a": 1, "b.c": '[1, "x"]', "b.e": True}


def test_the_folder_of_trackers_is_no_record(tmp_path: Path) -> None:
    from retbench.records.results_folder import ResultsFolder

    write_finished_run(tmp_path, "bm25", "text", [0.5])
    (tmp_path / "trackers" / "a" / "b" / "c").mkdir(parents=True)
    scan = ResultsFolder(tmp_path).scan_runs()
    assert (len(scan.runs), scan.problems) == (1, [])
