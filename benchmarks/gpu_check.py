"""Every check that needs a GPU, in one run of five minutes: tests, embedding, search, training.

    python -m benchmarks.gpu_check OUT [--parts tests embedding search training] [--total 300]

Each part is a separate process with its own time limit; time that a part does not use goes to the next ones. Rows are
written to OUT/gpu_check.jsonl one by one, the output of pytest to OUT/tests.txt, the table to OUT/table.md.
Without a GPU the same code runs end to end with tiny shapes, and the timings mean nothing.
"""

import argparse
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.result_log import FILE, NO_GPU, ResultLog
from benchmarks.gpu.table import format_table

TIME_SHARES = {"tests": 85, "embedding": 110, "search": 45, "training": 60}  # seconds
OUTCOMES = ("PASSED", "FAILED", "SKIPPED", "ERROR")
GRACE_SECONDS = 6  # seconds that a part has to end after its time limit
PYTEST = ("-o", "addopts=", "-o", "filterwarnings=", "-p", "no:cacheprovider", "-v", "-rfEs", "--tb=short",
          "--color=no")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", nargs="*", default=list(TIME_SHARES), choices=list(TIME_SHARES))
    parser.add_argument("--total", type=float, default=300, help="seconds for all parts")
    parser.add_argument("--part", choices=list(TIME_SHARES), help="internal: run this part in this process")
    parser.add_argument("--ends", type=float, help="internal: the deadline of the part, in seconds since the epoch")
    options = parser.parse_args()
    if options.part:
        run_part(ResultLog(options.out, options.part, options.ends))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / FILE).unlink(missing_ok=True)
    ends, scale = time.time(), options.total / sum(TIME_SHARES[part] for part in options.parts)
    for part in options.parts:
        ends += TIME_SHARES[part] * scale
        supervise_part(ResultLog(options.out, part, ends))
    found = format_table(options.out)
    (options.out / "table.md").write_text(found + "\n")
    print(f"\n{found}", flush=True)


def run_part(log: ResultLog) -> None:
    """Run one part in this process."""
    if log.part == "embedding":
        from benchmarks.gpu.embedding import measure
    elif log.part == "search":
        from benchmarks.gpu.searching import measure
    else:
        from benchmarks.gpu.training import measure
    measure(log)


def supervise_part(log: ResultLog) -> None:
    """Run a part in a new process and stop it at its deadline."""
    started = time.time()
    command = build_pytest_command() if log.part == "tests" else [
        sys.executable, "-m", "benchmarks.gpu_check", str(log.folder), "--part", log.part, "--ends", str(log.deadline)
    ]  # fmt: skip
    how = run_tests(log, command) if log.part == "tests" else wait_for_process(subprocess.Popen(command), log)
    log.write_row("ended", how=how, seconds=round(time.time() - started, 1))


def wait_for_process(process: "subprocess.Popen[bytes]", log: ResultLog, ask: int = signal.SIGTERM) -> str:
    """Wait for a process; send a signal at the deadline, then SIGKILL. Return how it ended."""
    for wait, number in ((log.seconds_left() + GRACE_SECONDS / 2, ask), (GRACE_SECONDS, signal.SIGKILL)):
        try:
            return f"exit code {process.wait(max(1.0, wait))}"
        except subprocess.TimeoutExpired:
            process.send_signal(number)
    process.wait()
    return "stopped at the time limit"


def build_pytest_command() -> list[str]:
    """The pytest command for the tests that depend on the device. This process does not import torch."""
    device = "cuda" if Path("/dev/nvidiactl").exists() else "cpu"
    if device == "cpu":
        print(NO_GPU, flush=True)
    return [sys.executable, "-u", "-m", "pytest", "tests/cuda", f"--device={device}", *PYTEST,
            *(["--timeout=40"] if find_spec("pytest_timeout") else [])]  # fmt: skip


def run_tests(log: ResultLog, command: list[str]) -> str:
    """Run pytest with its output in a file; write the counts as a row even if it was stopped."""
    file = log.folder / "tests.txt"
    with file.open("wb") as out:
        how = wait_for_process(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT), log, signal.SIGINT)
    output = file.read_text(errors="replace")
    counts = {word: len(re.findall(rf"^tests/\S.* {word}\b", output, re.MULTILINE)) for word in OUTCOMES}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    log.write_row("tests", told=", ".join(f"{count} {word.lower()}" for word, count in counts.items()), failed=failed)
    print(output[-3000:], flush=True)
    return how


if __name__ == "__main__":
    main()
