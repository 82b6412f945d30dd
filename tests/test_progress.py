"""The progress line: speed and time left from the work done and its times."""

import pytest
import torch

from retbench.cli import progress
from retbench.cli.progress import PhaseProgress, ProgressDisplay
from retbench.engines import peak_throughput


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_time_left_is_estimated_by_tokens(clock: list[float]) -> None:
    phase_progress = PhaseProgress("texts")
    clock[0] += 10
    phase_progress.add(1, 4, tokens=500, tokens_left=500)  # one long text has half of the tokens
    assert phase_progress.estimate_seconds_left() == 10
    assert "1 of 4 texts, 50 tokens/s, 0.1 texts/s, 10 s left" in phase_progress.format_line()


def test_work_found_on_disk_does_not_count_as_speed(clock: list[float]) -> None:
    phase_progress = PhaseProgress("texts")
    clock[0] += 1
    phase_progress.add(1000, 2000, tokens=0, tokens_left=800)  # read from the cache
    clock[0] += 10
    phase_progress.add(500, 2000, tokens=400, tokens_left=400)
    assert phase_progress.estimate_seconds_left() == 10
    assert "50.0 texts/s" in phase_progress.format_line()


def test_peak_throughput_is_measured_once_and_only_if_tokens_are_computed(clock: list[float]) -> None:
    measurements: list[int] = []

    def reach() -> float:
        measurements.append(1)
        return 200.0

    phase_progress = PhaseProgress("texts", reach)
    clock[0] += 1
    phase_progress.add(5, 10, tokens=0, tokens_left=0)
    assert "peak" not in phase_progress.format_line()
    assert not measurements
    clock[0] += 2
    phase_progress.add(2, 10, tokens=100, tokens_left=100)
    assert "50 tokens/s, 25% of peak" in phase_progress.format_line()
    phase_progress.format_line()
    assert measurements == [1]


def test_a_log_gets_periodic_lines_and_a_last_line(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    live = ProgressDisplay()
    live.begin_phase("embed documents", "texts", lambda: None)
    for _ in range(4):
        clock[0] += 6
        live.advance(1, 4, 10, 0)
    live.end_phase("embed documents", 24.0)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0].strip() for line in lines] == ["3 of 4 texts", "embed documents: 24.0 s"]


def test_peak_throughput_is_that_of_the_linear_layers() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.LayerNorm(16), torch.nn.Linear(16, 8))
    assert peak_throughput.count_linear_shapes(model) == {(16, 8): 1, (8, 16): 1}
    assert peak_throughput.measure_peak_throughput(model, torch.float32, torch.device("cpu"), 64) > 0


def test_products_are_timed_together_without_synchronizing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(peak_throughput, "_synchronize", lambda _: calls.append("|"))
    monkeypatch.setattr(
        peak_throughput.nn.functional, "linear", lambda *arguments: (calls.append("."), linear(*arguments))[1]
    )
    peak_throughput.measure_peak_throughput(torch.nn.Linear(8, 16), torch.float32, torch.device("cpu"), 64)
    assert "".join(calls) == "|....|" * (peak_throughput.REPETITIONS + 1)


def test_a_share_above_one_is_not_shown(clock: list[float]) -> None:
    phase_progress = PhaseProgress("texts", lambda: 40.0)
    clock[0] += 2
    phase_progress.add(2, 10, tokens=100, tokens_left=100)
    assert "50 tokens/s, 1.0 texts/s" in phase_progress.format_line()
