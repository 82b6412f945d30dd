"""Cost as the work grows: embedding through the store and searching, with an encoder that costs nothing.

    python benchmarks/scale.py --documents 1000 10000 100000 1000000

What is measured is all of ours around a model: reading texts, planning, shards on disk, search. Each size runs in
a process of its own, so that its peak of resident memory is its own. Time per document and memory should stay flat;
what grows with the corpus and stays is a few numbers a text (its length, its place in the plan), no text, id or vector.
The table and a plot lie beside the figures, in results/scale.md.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
WIDTH, QUERIES, K, WORDS = 64, 100, 100, 12


def batched(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while chunk := list(islice(iterator, size)):
        yield chunk


class Static:
    """Rows of a fixed table, summed: one text one vector, at almost no cost."""

    dimension = WIDTH
    kernel = "none"

    def __init__(self) -> None:
        self.table = np.random.default_rng(0).standard_normal((50_000, WIDTH), dtype=np.float32)

    def tokenize(self, texts: Iterable[str], role: str) -> Any:
        """Words are numbers already."""
        from retbench.encoders.prompt_tokenizer import TEXTS_PER_CHUNK, TokenizedTexts
        from retbench.encoders.token_ids import TokenIdBuffer

        with TokenIdBuffer() as ids:
            for chunk in batched(texts, TEXTS_PER_CHUNK):
                ids.append([list(map(int, text.split())) for text in chunk])
            return TokenizedTexts(ids.read_all(), ids.compute_offsets(), 0, 0)

    def encode(self, batch: Any) -> np.ndarray:
        """Sums of rows, at length one."""
        sums = np.add.reduceat(self.table[batch.flat], batch.offsets[:-1])
        return np.asarray(sums / np.linalg.norm(sums, axis=1, keepdims=True))


def one(documents: int) -> dict[str, Any]:
    from retbench.corpora.collection_cache import compile_collection
    from retbench.corpora.rows import Judgment, RawCollection, TextRow
    from retbench.corpora.texts import Texts
    from retbench.encoders.embed_texts import EmbeddingJob, embed_texts
    from retbench.encoders.shard_tasks import InProcessWorker
    from retbench.engines.memory import get_peak_memory_mb, reset_peak_memory
    from retbench.retrievers.exact_search import search_exactly
    from retbench.store.shard_store import ShardStore

    draw, encoder = np.random.default_rng(documents), Static()

    def rows() -> Iterable[TextRow]:
        for number in range(documents):
            yield TextRow(f"d{number}", "", " ".join(map(str, draw.integers(0, 50_000, 4 + number % WORDS).tolist())))

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        compile_collection(
            RawCollection(rows(), [TextRow("q", "", "1")], {"test": [Judgment("q", "d0", 1)]}), place / "c"
        )
        texts = Texts.open(place / "c" / "corpus.arrow", "scale")
        queries = encoder.encode(encoder.tokenize((texts[i].text for i in range(QUERIES)), "query"))
        reset_peak_memory()
        base, started, spent = get_peak_memory_mb(), time.perf_counter(), time.process_time()
        job = EmbeddingJob(texts, ("text",), "document", 65536)
        blocks = embed_texts(InProcessWorker(lambda: encoder), job, ShardStore(place / "store"), lambda *_: None)  # type: ignore[arg-type,return-value]
        found = search_exactly(queries, blocks, K)
        seconds, cpu = time.perf_counter() - started, time.process_time() - spent
        assert all(rows[0] == row for row, rows in enumerate(found.rows))
        return {
            "documents": documents,
            "seconds": seconds,
            "microseconds_per_document": seconds / documents * 1e6,
            "cpu_microseconds_per_document": cpu / documents * 1e6,
            "vectors_mb": documents * WIDTH * 4 / 1e6,
            "peak_mb": get_peak_memory_mb(),
            "growth_mb": get_peak_memory_mb() - base,
        }


def plot(rows: list[dict[str, Any]]) -> str:
    """Bars in text: no plotting library is worth a dependency here."""
    lines = []
    for key, unit in (("microseconds_per_document", "µs a document"), ("peak_mb", "MB resident at most")):
        top = max(row[key] for row in rows)
        lines += ["", unit]
        lines += [f"{row['documents']:>9,} {'█' * round(40 * row[key] / top)} {row[key]:,.0f}" for row in rows]
    return "\n".join(lines)


def table(rows: list[dict[str, Any]]) -> str:
    keys = (
        "seconds",
        "microseconds_per_document",
        "cpu_microseconds_per_document",
        "peak_mb",
        "growth_mb",
        "vectors_mb",
    )
    lines = [
        "| documents | seconds | µs a document | CPU µs | peak MB | of which this grew | the vectors' MB |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        lines.append(f"| {row['documents']:,} | " + " | ".join(f"{row[key]:,.1f}" for key in keys) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "scale.json")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one)))
        return
    rows = []
    for documents in options.documents:
        command = [sys.executable, __file__, "--one", str(documents)]
        rows.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        print(rows[-1], file=sys.stderr, flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    typed = " ".join(["python", *sys.argv])
    facts = {"command": typed, "python": platform.python_version(), "width": WIDTH, "queries": QUERIES, "sizes": rows}
    options.out.write_text(json.dumps(facts, indent=1) + "\n")
    told = f"# Cost as the work grows\n\n    {typed}\n\n{table(rows)}\n\n```{plot(rows)}\n```\n"
    options.out.with_suffix(".md").write_text(told)
    print(told)


if __name__ == "__main__":
    main()
