"""Send metrics to experiment trackers (tensorboard, wandb, trackio, ...), by the callbacks of transformers."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from retbench.errors import MissingError, UsageError, suggest_names

Report = Callable[[dict[str, Any]], None]


def add_trackers(names: tuple[str, ...], folder: Path, run: str, report: Report) -> Report:
    """A report that also sends its facts to the named trackers; they start with the first facts."""
    if not names:
        return report
    from transformers import TrainerControl, TrainerState, TrainingArguments

    callbacks = [_load_callback(name) for name in names]
    settings = TrainingArguments(str(folder / "trackers"), report_to=list(names), run_name=run, use_cpu=True)
    state, control = TrainerState(is_world_process_zero=True), TrainerControl()

    @cache
    def start_trackers() -> None:
        for callback in callbacks:
            callback.on_train_begin(settings, state, control)

    def report_and_track(facts: dict[str, Any]) -> None:
        report(facts)
        start_trackers()
        state.global_step = facts["step"]
        for callback in callbacks:
            callback.on_log(settings, state, control, logs=dict(facts))
            if facts["step"] == facts.get("steps"):
                callback.on_train_end(settings, state, control)

    return report_and_track


def _load_callback(name: str) -> Any:
    from transformers.integrations import integration_utils

    known = integration_utils.INTEGRATION_TO_CALLBACK
    if name not in known:
        raise UsageError(f"there is no tracker called {name!r}", suggest_names(name, known))
    try:
        return known[name]()
    except (RuntimeError, ImportError) as problem:
        raise MissingError(f"the tracker {name} is not installed: {problem}", f"install {name}") from problem
