"""The fork server of the kills with images. It embeds one image before its first fork, so that a moment of a kill is
one of the work and not of an import."""

import tempfile
from pathlib import Path

import numpy as np

import retbench
from tests import fork_server, image_collection, tiny_vision_models
from tests.faults.job import FaultJob


def embed_once() -> None:
    """Run a cell on images in this process."""
    with tempfile.TemporaryDirectory() as name:
        folder = image_collection.write_folder(Path(name) / "discs")
        model = tiny_vision_models.build_vision_model(Path(name) / "clip", "clip")
        (cell,) = retbench.evaluate(model, tasks=folder, out=Path(name) / "out")
        assert cell.status == "done", cell.error


def write_many(folder: Path, count: int = 18) -> Path:
    """Write a collection of noise pictures, some texts between them, and two queries, one of them an image."""
    image_collection.write_folder(folder)
    random = np.random.default_rng(4)
    rows = []
    for number in range(count):
        if number % 6 == 5:
            rows.append({"_id": f"d{number}", "text": f"number {number}"})
            continue
        data = image_collection.encode_noise(random, (40 + number, 30 + number))
        (folder / "images" / f"{number}.png").write_bytes(data)
        rows.append({"_id": f"d{number}", "image": f"images/{number}.png"})
    image_collection.write_rows(folder / "corpus.jsonl", rows)
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td5\t1\nq3\td2\t1\n")
    return folder


if __name__ == "__main__":
    embed_once()
    fork_server.serve_forks(FaultJob)
