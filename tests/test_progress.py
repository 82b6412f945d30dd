"""The progress line: speed and time left from the work done and its times."""

import sys
import time
from collections.abc import Iterator

import pytest
import torch

from retbench.cli import command, progress
from retbench.cli.progress import PhaseProgress, ProgressDisplay, fit_figures
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
    assert phase_progress.estimate_seconds_left() == pytest.approx(10 * (500 + 3 * 6) / 506)
    assert phase_progress.list_figures() == ["10 s left", "1 of 4 texts", "50 tokens/s", "0.1 texts/s"]


def test_work_found_on_disk_does_not_count_as_speed(clock: list[float]) -> None:
    phase_progress = PhaseProgress("texts")
    clock[0] += 1
    phase_progress.add(1000, 2000, tokens=0, tokens_left=800)  # read from the cache
    clock[0] += 10
    phase_progress.add(500, 2000, tokens=40_000, tokens_left=40_000)
    assert phase_progress.estimate_seconds_left() == pytest.approx(10)
    assert "50.0 texts/s" in phase_progress.list_figures()


def test_peak_throughput_is_measured_once_and_only_if_tokens_are_computed(clock: list[float]) -> None:
    measurements: list[int] = []

    def reach() -> float:
        measurements.append(1)
        return 200.0

    phase_progress = PhaseProgress("texts", reach)
    clock[0] += 1
    phase_progress.add(5, 10, tokens=0, tokens_left=0)
    assert "peak" not in str(phase_progress.list_figures())
    assert not measurements
    clock[0] += 2
    phase_progress.add(2, 10, tokens=100, tokens_left=100)
    assert phase_progress.list_figures()[2:4] == ["50 tokens/s", "25% of peak"]
    phase_progress.list_figures()
    assert measurements == [1]


def test_a_log_gets_periodic_lines_and_a_last_line(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    live = ProgressDisplay()
    live.begin_phase("embed documents", "texts", lambda: None)
    for _ in range(4):
        clock[0] += 6
        live.advance(1, 4, 10, 0)
    live.end_phase("embed documents", 24.0)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0].strip() for line in lines] == ["0 s left", "embed documents: 24.0 s"]
    assert all(len(line) < 80 for line in lines)


def test_lines_in_a_log_become_rare(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    live = ProgressDisplay()
    live.begin_phase("embed documents", "texts", lambda: None)
    for _ in range(3600):
        clock[0] += 1
        live.advance(1, 3600)
    assert len(capsys.readouterr().err.splitlines()) < 20
    live.end_phase("score", 0.1)
    assert capsys.readouterr().err == "", "a phase of no time needs no line"


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_line_fits_the_terminal(width: int) -> None:
    """The bar and the time left vanished at 80 columns."""
    figures = ["12 min 30 s left", "1,234 of 5,678,901 texts", "12,345 tokens/s", "25% of peak", "410.0 texts/s"]
    text = fit_figures("embed and search documents", figures, width - 17)
    assert len(text) <= width - 17
    assert text.startswith("12 min 30 s left  embed and search documents")
    assert (figures[1] in text, figures[-1] in text) == (width == 120, False)


@pytest.fixture
def product_times(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[float, bool]]]:
    """Seconds of each row of products after the warm-up, and whether another process interrupted it."""
    times: list[tuple[float, bool]] = []
    preemptions = [0]

    def time_row(*_: object) -> float:
        if not times:
            return 9.0  # a warm-up
        seconds, was_disturbed = times.pop(0)
        preemptions[0] += was_disturbed
        return seconds * peak_throughput.PRODUCTS_PER_TIMING

    monkeypatch.setattr(peak_throughput, "_time_row", time_row)
    monkeypatch.setattr(peak_throughput, "_count_preemptions", lambda: preemptions[0])
    peak_throughput._measure_shapes.cache_clear()
    yield times
    peak_throughput._measure_shapes.cache_clear()


def time_product() -> peak_throughput.ProductTime:
    return peak_throughput._time_product((8, 16), 4, torch.float32, torch.device("cpu"))


def test_peak_throughput_is_that_of_the_linear_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.LayerNorm(16), torch.nn.Linear(16, 8))
    assert peak_throughput.count_linear_shapes(model) == {(16, 8): 1, (8, 16): 1}
    measured: list[tuple[int, int]] = []

    def answer(shape: tuple[int, int], tokens: int, *_: object) -> peak_throughput.ProductTime:
        measured.append(shape)
        return peak_throughput.ProductTime(tokens / 1000, True)  # 1,000 tokens per second through each layer

    monkeypatch.setattr(peak_throughput, "_time_product", answer)
    peak_throughput._measure_shapes.cache_clear()
    for _ in range(2):  # measured once for all phases of a run
        peak = peak_throughput.measure_peak_throughput(model, torch.float32, torch.device("cpu"))
        assert peak == pytest.approx(500)
    assert sorted(measured) == [(8, 16), (16, 8)]
    peak_throughput._measure_shapes.cache_clear()


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([(1.0, False), (1.0, False), (1.05, False)], (1.0, True)),  # the first is taken by the warm-up
        ([(0.0, False), (0.5, True), (1.0, False), (3.0, False), (1.05, False)], (0.5, True)),
        ([(0.0, False), *[(1.0, True)] * 5], (1.0, False)),  # never undisturbed
        ([(0.0, False), *[(1.2**n, False) for n in range(5)]], (1.0, False)),  # no two agree
    ],
)
def test_a_peak_is_reliable_only_if_two_undisturbed_times_agree(
    times: list[tuple[float, bool]], expected: tuple[float, bool], product_times: list[tuple[float, bool]]
) -> None:
    product_times += times
    assert time_product() == pytest.approx(expected)


def test_without_a_reliable_time_there_is_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    unreliable = peak_throughput.ProductTime(1.0, False)
    monkeypatch.setattr(peak_throughput, "_time_product", lambda *_: unreliable)
    peak_throughput._measure_shapes.cache_clear()
    assert peak_throughput.measure_peak_throughput(torch.nn.Linear(8, 24), torch.float32, torch.device("cpu")) is None
    peak_throughput._measure_shapes.cache_clear()


def test_products_of_large_layers_have_fewer_tokens() -> None:
    cpu = torch.device("cpu")
    choose = peak_throughput._choose_token_count
    assert [choose(shape, cpu) for shape in ((384, 384), (1536, 2048), (11008, 4096))] == [2048, 317, 256]


def test_products_are_timed_together_without_synchronizing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    linear = torch.nn.functional.linear
    monkeypatch.setattr(peak_throughput, "_synchronize", lambda _: calls.append("|"))
    monkeypatch.setattr(
        peak_throughput.nn.functional, "linear", lambda *arguments: (calls.append("."), linear(*arguments))[1]
    )
    time_product()
    assert set("".join(calls).split("||")) == {"|....", "....", "....|"}


def test_a_share_above_one_is_not_shown_and_no_later_share_either(clock: list[float]) -> None:
    phase_progress = PhaseProgress("texts", lambda: 40.0)
    clock[0] += 2
    phase_progress.add(2, 10, tokens=100, tokens_left=100)
    assert "50 tokens/s, 1.0 texts/s" in ", ".join(phase_progress.list_figures())
    clock[0] += 8
    assert "10 tokens/s, 0.2 texts/s" in ", ".join(phase_progress.list_figures())


def test_the_measurement_of_the_peak_does_not_count_as_work(clock: list[float]) -> None:
    def measure_for_a_minute() -> float:
        clock[0] += 60
        return 100.0

    phase_progress = PhaseProgress("texts", measure_for_a_minute)
    clock[0] += 2
    phase_progress.add(2, 4, tokens=100, tokens_left=100)
    ", ".join(phase_progress.list_figures())
    clock[0] += 2
    phase_progress.add(1, 4, tokens=100, tokens_left=50)
    assert "50 tokens/s, 50% of peak" in ", ".join(phase_progress.list_figures())


def test_many_short_texts_take_longer_than_few_long_ones_of_as_many_tokens(clock: list[float]) -> None:
    phase_progress = PhaseProgress("texts")
    clock[0] += 10
    phase_progress.add(10, 1010, tokens=4000, tokens_left=4000)
    assert phase_progress.estimate_seconds_left() == pytest.approx(10 * (4000 + 6000) / 4060)


@pytest.mark.parametrize("slower", [1.0, 2.0, 1 / 2])
def test_the_time_left_follows_the_load_of_the_machine(clock: list[float], slower: float) -> None:
    phase_progress = PhaseProgress("texts")
    for batch in range(90):
        seconds = 1.0 if batch < 20 else slower  # then other work begins or ends
        clock[0] += seconds
        phase_progress.add(10, 1000, tokens=1000, tokens_left=1000 * (99 - batch))
    assert phase_progress.estimate_seconds_left() == pytest.approx(10 * slower, rel=0.15)


def test_a_silent_command_says_that_it_is_loading(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "SILENT_SECONDS", 0.01)
    command._has_printed.clear()
    with command.announce_loading():
        time.sleep(0.05)
    assert capsys.readouterr().err == "", "a log needs no such line"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with command.announce_loading():
        deadline = time.monotonic() + 5
        while not command._has_printed.is_set() and time.monotonic() < deadline:
            time.sleep(0.005)
    assert capsys.readouterr().err == "loading ...\n"
    with command.announce_loading():
        command.print_status("something")
        time.sleep(0.05)
    assert capsys.readouterr().err == "something\n"
