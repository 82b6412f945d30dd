"""The energy of a cell, from the counters of the machine: RAPL for processors, NVML for NVIDIA GPUs.

A counter belongs to a whole processor or GPU, so other programs on it count too. A machine without a readable counter
has no energy in its records; nothing is estimated.
"""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
RAPL_ZONES = ("package", "dram")  # the memory is not a part of the package; cores and uncore are
SECONDS_BETWEEN_READINGS = 30.0  # a counter of a large server wraps after some minutes


@dataclass(frozen=True)
class EnergyCounter:
    """A counter of joules that only rises, and starts again at `wraps_at` if it is known to."""

    device: str  # "cpu", or the uuid of a GPU
    read_joules: Callable[[], float]
    wraps_at: float | None = None


@dataclass
class EnergyMeter:
    """Joules by device since the start."""

    counters: list[EnergyCounter]
    joules: dict[str, float] = field(default_factory=dict, init=False)
    _readings: list[float] = field(init=False)
    _read_at: float = field(init=False)

    def __post_init__(self) -> None:
        self._readings = [counter.read_joules() for counter in self.counters]
        self._read_at = time.monotonic()

    @staticmethod
    def start() -> "EnergyMeter":
        """Start with every counter of this machine that can be read."""
        return EnergyMeter([*find_rapl_counters(POWERCAP), *find_gpu_counters()])

    def read_if_due(self) -> None:
        """Read the counters if the last reading is old, so that none wraps twice between two readings."""
        if self.counters and time.monotonic() - self._read_at > SECONDS_BETWEEN_READINGS:
            self.read()

    def read(self) -> None:
        """Add what was used since the last reading. A counter that cannot be read any more ends the measurement."""
        try:
            readings = [counter.read_joules() for counter in self.counters]
        except (OSError, ValueError):
            self.counters, self.joules = [], {}
            return
        for number, (counter, reading) in enumerate(zip(self.counters, readings, strict=True)):
            before = self._readings[number]
            used = reading - before + (counter.wraps_at or 0.0) * (reading < before)
            self.joules[counter.device] = self.joules.get(counter.device, 0.0) + used
        self._readings = readings
        self._read_at = time.monotonic()

    def collect_facts(self) -> dict[str, float]:
        """Return the joules of the processors and of the GPU that computed, without those that are not known."""
        self.read()
        used = {"cpu_joules": self.joules.get("cpu"), "gpu_joules": self.joules.get(_get_gpu_uuid() or "")}
        return {name: round(joules, 1) for name, joules in used.items() if joules is not None}


def find_rapl_counters(root: Path) -> list[EnergyCounter]:
    """Find the counters of all processors; none if one of them cannot be read, because a part would look too good."""
    counters = []
    try:
        for zone in sorted(root.glob("intel-rapl:*")):  # AMD processors have this name too
            if (zone / "name").read_text().strip().startswith(RAPL_ZONES):
                counter = _build_rapl_counter(zone)
                counter.read_joules()
                counters.append(counter)
    except (OSError, ValueError):  # most systems let only root read them
        return []
    return counters


def _build_rapl_counter(zone: Path) -> EnergyCounter:
    def read_joules() -> float:
        return int((zone / "energy_uj").read_text()) / 1e6

    return EnergyCounter("cpu", read_joules, int((zone / "max_energy_range_uj").read_text()) / 1e6)


def find_gpu_counters() -> list[EnergyCounter]:
    """Find the counters of all NVIDIA GPUs, by the package nvidia-ml-py."""
    try:
        import pynvml
    except ImportError:
        return []
    return list(_iterate_gpu_counters(pynvml))


def _iterate_gpu_counters(nvml: Any) -> Iterator[EnergyCounter]:
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError:  # no driver
        return
    for handle in handles:
        counter = _build_gpu_counter(nvml, handle)
        try:
            counter.read_joules()
        except OSError:  # before Volta a GPU has no counter
            continue
        yield counter


def _build_gpu_counter(nvml: Any, handle: Any) -> EnergyCounter:
    def read_joules() -> float:
        try:
            return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
        except nvml.NVMLError as problem:
            raise OSError(f"NVML: {problem}") from problem

    return EnergyCounter(str(nvml.nvmlDeviceGetUUID(handle)), read_joules)


def _get_gpu_uuid() -> str | None:
    """Return the uuid of the GPU that computed; torch is used only if it is loaded already."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
