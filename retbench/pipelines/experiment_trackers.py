"""Send settings and metrics to experiment trackers (tensorboard, wandb, mlflow, ...), by the classes of accelerate.

A tracker finds its address, its key and its offline mode in its own environment variables, so no key passes through
here. A training is one run of a tracker; of an evaluation each cell is one.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from retbench.errors import MissingError, ResourceError, UsageError, redact_secrets, suggest_names

log = logging.getLogger(__name__)

Report = Callable[[dict[str, Any]], None]

PROJECT = "retbench"
SEPARATOR = "+"  # between names: a comma separates the values of a list in --set
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio", "aim", "clearml", "comet_ml", "dvclive", "swanlab")
RUN_NAME_OPTIONS = {"wandb": "name", "trackio": "name", "mlflow": "run_name", "swanlab": "experiment_name"}


class TrackerError(ResourceError):
    """A tracker failed; what it should have shown is on disk."""


def parse_tracker_names(text: str) -> tuple[str, ...]:
    """Split `tensorboard+wandb` into names."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(SEPARATOR) if name.strip()))


def require_trackers(names: tuple[str, ...]) -> None:
    """Refuse unknown trackers and those that are not installed, before any work begins."""
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"there is no tracker called {name!r}", suggest_names(name, TRACKERS))
        if find_spec(name) is None:
            raise MissingError(f"the tracker {name} is not installed", f"pip install {name.replace('_', '-')}")


@dataclass
class TrainingTrackers:
    """The trackers of one training. One that fails stops no training: it gets no more facts."""

    names: tuple[str, ...]
    folder: Path
    run: str
    settings: Mapping[str, Any]
    started: dict[str, Any] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    last_step: int = 0
    earlier_steps: int = 0

    def send(self, facts: dict[str, Any]) -> None:
        """Send facts to all trackers; they start with the first facts."""
        if facts["step"] < self.last_step:  # stage 2 counts from 1 again, and a tracker drops steps that go back
            self.earlier_steps += self.last_step
        self.last_step = facts["step"]
        for name in self.names:
            self._call(name, partial(self._send_to, name, facts, self.earlier_steps + self.last_step))

    def finish(self) -> None:
        """End the runs of all trackers."""
        for name, tracker in self.started.items():
            self._call(name, tracker.finish)

    def _send_to(self, name: str, facts: dict[str, Any], step: int) -> None:
        if name not in self.started:
            self.started[name] = start_tracker(name, self.folder, self.run, self.settings)
        log_facts(self.started[name], facts, step)

    def _call(self, name: str, action: Callable[[], object]) -> None:
        if name in self.problems:
            return
        try:
            action()
        except Exception as problem:  # noqa: BLE001  # a tracker is foreign code, and may raise anything
            self.problems[name] = redact_secrets(f"{type(problem).__name__}: {problem}")
            log.warning("the tracker %s failed and gets no more facts: %s", name, self.problems[name])


@contextmanager
def track_training(
    names: tuple[str, ...], folder: Path, run: str, settings: Mapping[str, Any], report: Report
) -> Iterator[Report]:
    """Within, a report that also sends its facts to the named trackers. At the end the error of those that failed."""
    require_trackers(names)
    trackers = TrainingTrackers(names, folder / "trackers", run, settings)

    def report_and_track(facts: dict[str, Any]) -> None:
        report(facts)
        trackers.send(facts)

    try:
        yield report_and_track
    finally:
        trackers.finish()
    if trackers.problems:
        raise TrackerError(
            "; ".join(f"the tracker {name} failed: {problem}" for name, problem in trackers.problems.items()),
            "the trained model is saved, and its metrics.jsonl has every step",
        )


def start_tracker(name: str, folder: Path, run: str, settings: Mapping[str, Any]) -> Any:
    """Start a run of a tracker, with its settings. One that only writes files writes them below `folder`."""
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # the trackers ask it whether this is the first process
    tracker_class: Any = LOGGER_TYPE_TO_CLASS[name]
    if tracker_class.requires_logging_directory:
        tracker = tracker_class(run, str(folder))
    else:
        option = RUN_NAME_OPTIONS.get(name)
        tracker = tracker_class(PROJECT, **({option: run} if option else {}))
    tracker.start()
    try:
        tracker.store_init_configuration(flatten_settings({"run": run, **settings}))
    except Exception:
        tracker.finish()  # else the next run would be a part of this one
        raise
    return tracker


def log_facts(tracker: Any, facts: Mapping[str, Any], step: int) -> None:
    """Log the numbers among the facts."""
    tracker.log({key: value for key, value in facts.items() if isinstance(value, int | float)}, step=step)


def flatten_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str | float | bool]:
    """Write nested settings as dotted names with simple values, which is what trackers take; None is left out."""
    flat: dict[str, str | float | bool] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten_settings(value, f"{prefix}{key}.")
        elif isinstance(value, str | int | float):
            flat[f"{prefix}{key}"] = value
        elif value is not None:
            flat[f"{prefix}{key}"] = json.dumps(value, ensure_ascii=False)
    return flat
