"""Energy of a run: the counters of processors (a stand-in folder) and of GPUs (a stand-in module)."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retbench.pipelines.report import build_report
from retbench.records import energy
from retbench.records.energy import EnergyCounter, EnergyMeter, find_gpu_counters, find_rapl_counters
from retbench.records.phase_timer import NoProgress, PhaseTimer
from retbench.reports.table_cells import compute_energy
from tests.finished_runs import write_finished_run
from tests.test_run import run_cells


def write_zone(root: Path, folder: str, name: str, microjoules: int, largest: int = 262_143_328_850) -> Path:
    zone = root / folder
    zone.mkdir(parents=True)
    (zone / "name").write_text(f"{name}\n")
    (zone / "max_energy_range_uj").write_text(f"{largest}\n")
    (zone / "energy_uj").write_text(f"{microjoules}\n")
    return zone


@pytest.fixture
def powercap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two processors, one with its memory and its cores."""
    root = tmp_path / "powercap"
    write_zone(root, "intel-rapl:0", "package-0", 5_000_000)
    write_zone(root, "intel-rapl:0:0", "core", 4_000_000)
    write_zone(root, "intel-rapl:0:1", "dram", 1_000_000)
    write_zone(root, "intel-rapl:1", "package-1", 7_000_000)
    write_zone(root, "intel-rapl:2", "psys", 30_000_000)
    monkeypatch.setattr(energy, "POWERCAP", root)
    return root


def test_packages_and_memory_are_counted_once(powercap: Path) -> None:
    """The zone of the cores is a part of its package, and psys contains everything."""
    assert sorted(counter.read_joules() for counter in find_rapl_counters(powercap)) == [1.0, 5.0, 7.0]


def test_a_counter_that_wraps_goes_on() -> None:
    readings = iter([8.0, 9.5, 2.0, 4.0])
    meter = EnergyMeter([EnergyCounter("cpu", lambda: next(readings), wraps_at=10.0)])
    for _ in range(3):
        meter.read()
    assert meter.joules == {"cpu": 1.5 + 2.5 + 2.0}


def test_a_zone_that_cannot_be_read_leaves_all_out(powercap: Path) -> None:
    (powercap / "intel-rapl:1" / "energy_uj").unlink()
    assert find_rapl_counters(powercap) == []
    assert find_rapl_counters(powercap / "absent") == []


def test_a_counter_that_stops_leaves_the_energy_out() -> None:
    readings = iter([1.0, 2.0])

    def read() -> float:
        if (value := next(readings, None)) is None:
            raise OSError("gone")
        return value

    meter = EnergyMeter([EnergyCounter("cpu", read)])
    meter.read()
    assert meter.collect_facts() == {}


def build_nvml(joules: dict[str, float]) -> Any:
    """What nvidia-ml-py offers, with counters in millijoules; a GPU without joules has no counter."""

    class NVMLError(Exception):
        """The error of the library."""

    def read(uuid: str) -> int:
        if joules[uuid] < 0:
            raise NVMLError("not supported")
        return int(joules[uuid] * 1e3)

    uuids = list(joules)
    return SimpleNamespace(
        NVMLError=NVMLError, nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: len(uuids),
        nvmlDeviceGetHandleByIndex=lambda number: uuids[number], nvmlDeviceGetUUID=lambda handle: handle,
        nvmlDeviceGetTotalEnergyConsumption=read,
    )  # fmt: skip


def test_only_the_gpu_that_computed_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    joules = {"GPU-a": 100.0, "GPU-b": 50.0, "GPU-old": -1.0}
    monkeypatch.setitem(sys.modules, "pynvml", build_nvml(joules))
    counters = find_gpu_counters()
    assert [counter.device for counter in counters] == ["GPU-a", "GPU-b"]
    meter = EnergyMeter(counters)
    joules.update({"GPU-a": 160.0, "GPU-b": 51.0})
    cuda = SimpleNamespace(
        is_initialized=lambda: True, current_device=lambda: 0, get_device_properties=lambda _: SimpleNamespace(uuid="a")
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert meter.collect_facts() == {"gpu_joules": 60.0}


def test_a_gpu_without_driver_has_no_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = build_nvml({})

    def fail() -> None:
        raise nvml.NVMLError("driver not loaded")

    nvml.nvmlInit = fail
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert find_gpu_counters() == []


def test_stored_vectors_leave_the_energy_out() -> None:
    readings = iter(range(100))
    timer = PhaseTimer(NoProgress(), EnergyMeter([EnergyCounter("cpu", lambda: float(next(readings)))]))
    timer.add_earlier_seconds("embed documents", 0.0)
    assert timer.collect_energy() == {"cpu_joules": 1.0}
    timer.add_earlier_seconds("embed documents", 2.5)
    assert timer.collect_energy() == {}


def test_a_long_phase_reads_the_counter_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 40.0, 40.0, 50.0])
    monkeypatch.setattr(energy.time, "monotonic", lambda: next(clock))
    readings = iter([9.0, 1.0])
    timer = PhaseTimer(NoProgress(), EnergyMeter([EnergyCounter("cpu", lambda: next(readings), wraps_at=10.0)]))
    for _ in range(2):
        timer.progress.advance(1, 2)
    assert timer.meter
    assert timer.meter.joules == {"cpu": 2.0}


def test_a_run_records_its_energy_and_a_second_one_from_stored_vectors_does_not(
    model: Path, task: Path, out: Path, powercap: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, spent = powercap / "intel-rapl:0" / "energy_uj", iter(range(0, 10**9, 3_000_000))
    read = Path.read_text

    def read_rising(self: Path, *words: Any, **options: Any) -> str:
        return f"{5_000_000 + next(spent)}\n" if self == file else read(self, *words, **options)

    monkeypatch.setattr(Path, "read_text", read_rising)
    line = ("run", "--model", model, "--task", task, "--method", "mean", "--out", out)
    first, second = run_cells(*line, "--set", "search=exact,int8")
    costs = [json.loads((Path(cell["record"]) / "record.json").read_text())["cost"] for cell in (first, second)]
    assert costs[0]["cpu_joules"] == 3.0
    assert "cpu_joules" not in costs[1]


def test_the_board_has_kilowatt_hours_per_million_documents(out: Path) -> None:
    """Three documents took 7.2 joules: 2.4 joules a document are 2.4 / 3.6 kWh a million."""
    write_finished_run(out, "a", "t", [0.5], cost={"cpu_joules": 7.2})
    write_finished_run(out, "b", "t", [0.4])
    report = build_report(out)
    assert [compute_energy(row) for row in report.boards[0].rows] == [pytest.approx(2.4 / 3.6), None]
    assert "kWh per 1M docs" in report.format("markdown")
    assert "| 0.67 |" in report.format("markdown")
