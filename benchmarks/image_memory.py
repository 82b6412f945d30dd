"""Peak memory of a run on a collection with images: it must not grow with their number.

A tiny CLIP with random weights embeds few and many different pictures, each run in a process of its own. The folder
is compiled, the images are read and decoded batch by batch, and the vectors are searched, all as in `retbench run`.

    python benchmarks/image_memory.py --out benchmarks/results/image_memory.json
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the tests' tiny models

COUNTS = [1_000, 10_000]
SIZE = 224  # pixels on each side; noise does not compress, so each picture is about 50 kB


def write_pictures(folder: Path, count: int) -> int:
    """Write a collection of noise; return the bytes of its images."""
    import numpy as np
    from PIL import Image

    from tests.image_collection import encode, write_rows

    (folder / "images").mkdir(parents=True)
    (folder / "qrels").mkdir()
    random, total = np.random.default_rng(7), 0
    for number in range(count):
        pixels = random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        total += (folder / "images" / f"{number}.jpg").write_bytes(encode(Image.fromarray(pixels), "JPEG"))
    write_rows(folder / "corpus.jsonl", [{"_id": str(n), "image": f"images/{n}.jpg"} for n in range(count)])
    write_rows(folder / "queries.jsonl", [{"_id": "q", "text": "a picture"}])
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\t0\t1\n")
    return total


def measure(count: int, model: Path, work: Path) -> dict[str, float]:
    """Run in a process of its own and return its peak memory."""
    image_bytes = write_pictures(work / str(count), count)
    line = [sys.executable, __file__, "--run", str(work / str(count)), "--model", str(model)]
    started = time.perf_counter()
    answer = subprocess.run(
        line, check=True, capture_output=True, text=True, env={**os.environ, "RETBENCH_CACHE": str(work / "cache")}
    )
    seconds, peak = time.perf_counter() - started, float(answer.stdout.splitlines()[-1])
    return {
        "images": count, "image_mb": round(image_bytes / 1e6, 1), "peak_mb": round(peak, 1),
        "seconds": round(seconds, 1),
    }  # fmt: skip


def run(folder: Path, model: Path) -> None:
    """Evaluate and print the peak memory of this process."""
    import retbench

    [cell] = retbench.evaluate(model, tasks=folder, out=folder.with_name(f"results-{folder.name}"))
    if cell.status != "done":
        sys.exit(str(cell.error))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--counts", type=int, nargs=2, default=COUNTS, help="images of the two runs")
    parser.add_argument("--run", type=Path, help="for the measured process")
    parser.add_argument("--model", type=Path, help="for the measured process")
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.run, arguments.model)
        return
    from tests.tiny_vision_models import build_vision_model

    with tempfile.TemporaryDirectory() as name:
        model = build_vision_model(Path(name) / "clip", "clip")
        rows = [measure(count, model, Path(name)) for count in arguments.counts]
    growth = rows[1]["peak_mb"] - rows[0]["peak_mb"]
    result = {"runs": rows, "growth_mb": round(growth, 1), "growth_of_image_bytes": round(
        growth / (rows[1]["image_mb"] - rows[0]["image_mb"]), 3
    )}  # fmt: skip
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
