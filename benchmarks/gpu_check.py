"""Everything a GPU has to be asked, in one run of five minutes: tests, embedding, search, training.

    python -m benchmarks.gpu_check OUT [--parts tests embedding search training] [--total 285]

Each part is a process of its own with a time of its own; what one leaves over the next may use. Rows go to
OUT/gpu_check.jsonl as soon as they are known, pytest's words to OUT/tests.txt, the table to OUT/table.md.
Without a GPU the same runs end to end with tiny shapes, and nothing is measured.
"""

import argparse
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu.sheet import FILE, NO_GPU, Sheet
from benchmarks.gpu.table import table

SHARES = {"tests": 70, "embedding": 110, "search": 45, "training": 60}
WORDS = ("PASSED", "FAILED", "SKIPPED", "ERROR")
GRACE = 6  # seconds for a part to end by itself
PYTEST = ("-o", "addopts=", "-o", "filterwarnings=", "-p", "no:cacheprovider", "-v", "-rfEs", "--tb=short",
          "--color=no")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", nargs="*", default=list(SHARES), choices=list(SHARES))
    parser.add_argument("--total", type=float, default=285, help="seconds for all parts")
    parser.add_argument("--part", choices=list(SHARES), help="used inside: run this one here")
    parser.add_argument("--ends", type=float, help="used inside: when the part has to be done")
    wanted = parser.parse_args()
    if wanted.part:
        run(Sheet(wanted.out, wanted.part, wanted.ends))
        return
    wanted.out.mkdir(parents=True, exist_ok=True)
    (wanted.out / FILE).unlink(missing_ok=True)
    ends, scale = time.time(), wanted.total / sum(SHARES[part] for part in wanted.parts)
    for part in wanted.parts:
        ends += SHARES[part] * scale
        watch(Sheet(wanted.out, part, ends))
    found = table(wanted.out)
    (wanted.out / "table.md").write_text(found + "\n")
    print(f"\n{found}", flush=True)


def run(sheet: Sheet) -> None:
    """One part, in its process."""
    if sheet.part == "embedding":
        from benchmarks.gpu.embedding import measure
    elif sheet.part == "search":
        from benchmarks.gpu.searching import measure
    else:
        from benchmarks.gpu.training import measure
    measure(sheet)


def watch(sheet: Sheet) -> None:
    """Start a part and see that it ends."""
    started = time.time()
    command = tests() if sheet.part == "tests" else [
        sys.executable, "-m", "benchmarks.gpu_check", str(sheet.folder), "--part", sheet.part, "--ends", str(sheet.ends)
    ]  # fmt: skip
    how = tested(sheet, command) if sheet.part == "tests" else ended(subprocess.Popen(command), sheet)
    sheet.row("ended", how=how, seconds=round(time.time() - started, 1))


def ended(process: "subprocess.Popen[bytes]", sheet: Sheet, ask: int = signal.SIGTERM) -> str:
    """How it ended: by itself, asked, or killed."""
    for wait, number in ((sheet.left() + GRACE / 2, ask), (GRACE, signal.SIGKILL)):
        try:
            return f"exit code {process.wait(max(1.0, wait))}"
        except subprocess.TimeoutExpired:
            process.send_signal(number)
    process.wait()
    return "stopped: its time was over"


def tests() -> list[str]:
    """pytest over what depends on the device; asked by a light process, since torch is not loaded here."""
    device = "cuda" if Path("/dev/nvidiactl").exists() else "cpu"
    if device == "cpu":
        print(NO_GPU, flush=True)
    return [sys.executable, "-u", "-m", "pytest", "tests/cuda", f"--device={device}", *PYTEST,
            *(["--timeout=40"] if find_spec("pytest_timeout") else [])]  # fmt: skip


def tested(sheet: Sheet, command: list[str]) -> str:
    """Run pytest into a file; what passed and failed becomes a row even where it was stopped."""
    file = sheet.folder / "tests.txt"
    with file.open("wb") as out:
        how = ended(subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT), sheet, signal.SIGINT)
    told = file.read_text(errors="replace")
    counts = {word: len(re.findall(rf"^tests/\S.* {word}\b", told, re.MULTILINE)) for word in WORDS}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", told, re.MULTILINE)
    sheet.row("tests", told=", ".join(f"{count} {word.lower()}" for word, count in counts.items()), failed=failed)
    print(told[-3000:], flush=True)
    return how


if __name__ == "__main__":
    main()
