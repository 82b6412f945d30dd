"""What the checksums of a run cost, in processor seconds, beside all of its processor seconds.

    python benchmarks/checksum_cost.py run --model minilm-l6 --task ../shared/collections/scifact --sample 5

The words are those of any `retbench` command. Weights and collection are hashed once, whatever the number of texts, so
the share falls with the size of a run; it must stay below 2%. The figures are printed and kept in
results/checksum_cost.json.
"""

import hashlib
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULT_FILE = Path(__file__).parent / "results" / "checksum_cost.json"
LIMIT = 0.02


def main(words: list[str]) -> int:
    """Run a command; exit 1 if its checksums cost more than the limit."""
    spent = 0.0

    def measure(function: Callable[..., Any]) -> Callable[..., Any]:
        def measured(*arguments: Any, **options: Any) -> Any:
            nonlocal spent
            started = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                spent += time.thread_time() - started

        return measured

    hashlib.sha256 = measure(hashlib.sha256)
    hashlib.file_digest = measure(hashlib.file_digest)
    from retbench.cli.main import app  # here, so that it finds the measured functions

    started = time.process_time()
    try:
        app(words)
    except SystemExit as end:
        if end.code:
            return int(end.code)
    seconds = time.process_time() - started
    facts: dict[str, Any] = {
        "command": " ".join(["python benchmarks/checksum_cost.py", *words]),
        "python": platform.python_version(),
        "checksum_seconds": round(spent, 3),
        "processor_seconds": round(seconds, 2),
        "share": round(spent / seconds, 4),
    }
    RESULT_FILE.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))
    return 0 if facts["share"] < LIMIT else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
