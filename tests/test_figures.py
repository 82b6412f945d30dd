"""The figures of a report: the Pareto front, the score over the length of documents, and the loss of a training."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from retbench.pipelines.report import build_report
from retbench.reports.svg_charts import ScatterPoint, find_pareto_front
from retbench.reports.svg_figures import draw_length_curves, draw_training_curves
from tests.finished_runs import write_finished_run

SCORES = np.random.default_rng(2).uniform(0.2, 0.6, 30)


def test_the_pareto_front_has_the_undominated_models() -> None:
    points = [
        ScatterPoint("a", 1, 10, ""),
        ScatterPoint("b", 2, 9, ""),
        ScatterPoint("c", 3, 20, ""),
        ScatterPoint("d", 4, 20, ""),
    ]
    assert [point.label for point in find_pareto_front(points, higher_is_better=False)] == ["a", "c"]
    assert [point.label for point in find_pareto_front(points, higher_is_better=True)] == ["d"]


def test_the_score_is_drawn_over_length(tmp_path: Path) -> None:
    for model, loss in (("short-sighted", 0.1), ("steady", 0.0)):
        for number, length in enumerate((256, 512, 1024)):
            write_finished_run(tmp_path, model, f"haystack-{length}", SCORES - number * loss)
    (board,) = build_report(tmp_path).boards
    curves = draw_length_curves(board)
    assert curves
    assert [line.count(",") for line in re.findall(r'<polyline points="([^"]+)"', curves)] == [3, 3]
    steady, short_sighted = (
        [float(point.split(",")[1]) for point in line.split()] for line in re.findall(r'points="([^"]+)"', curves)
    )
    assert len(set(steady)) == 1
    assert short_sighted == sorted(short_sighted)  # downwards


def test_the_loss_of_a_trained_model_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_catalog: Callable[[], None]
) -> None:
    (tmp_path / "cards" / "model_cards").mkdir(parents=True)
    (tmp_path / "cards" / "model_cards" / "pupil.toml").write_text(
        f'name = "pupil"\n[weights]\nsource = "path"\npath = "{tmp_path}"\n'
    )
    losses = [{"step": step, "loss": 2 / step} for step in (1, 2, 3, 4)]
    lines = [*losses, {"step": 4, "score": 0.5}, {"step": 5, "loss": math.nan}, {"step": "x", "loss": []}, [3], None]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_bytes(text.encode() + b'{"step": 6, "lo\xff\n{"step": 7, "lo')  # of a full disk
    monkeypatch.setenv("RETBENCH_CARDS", str(tmp_path / "cards"))
    fresh_catalog()
    for model in ("pupil", "other"):
        write_finished_run(tmp_path / "results", model, "text", SCORES)
    chart = draw_training_curves(build_report(tmp_path / "results").boards[0])
    assert chart
    (line,) = re.findall(r'points="([^"]+)"', chart)
    assert len(line.split()) == 4
