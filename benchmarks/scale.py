"""Cost by corpus size: embedding into the cache and search, with an encoder that costs nothing.

    python benchmarks/scale.py --documents 1000 10000 100000 1000000

This measures everything around the model: reading texts, the batch plan, shards on disk, search. Each size runs in its
own process, so that its peak memory is separate. Time per document and memory should stay flat: only a few numbers per
text grow with the corpus (its length, its position in the plan), no text, id or vector. The table and a plot are in
results/scale.md.
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
from types import SimpleNamespace
from typing import Any

import numpy as np

HERE = Path(__file__).parent
WIDTH, QUERIES, K, WORDS = 64, 100, 100, 12


def split_batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while chunk := list(islice(iterator, size)):
        yield chunk


class StaticEncoder:
    """An encoder at almost no cost: a vector is the sum of rows of a fixed table."""

    dimension = WIDTH
    kernel = "none"
    computed_dtype = "float32"
    shard_tokens = None
    spec = SimpleNamespace(method=SimpleNamespace(vector_kind="dense"))

    def __init__(self) -> None:
        self.table = np.random.default_rng(0).standard_normal((50_000, WIDTH), dtype=np.float32)

    def tokenize(self, texts: Iterable[str], role: str) -> Any:
        """The words are token ids already."""
        from retbench.encoders.prompt_tokenizer import TEXTS_PER_CHUNK, TokenizedTexts
        from retbench.encoders.token_ids import TokenIdBuffer

        with TokenIdBuffer() as ids:
            for chunk in split_batches(texts, TEXTS_PER_CHUNK):
                ids.append([list(map(int, text.split())) for text in chunk])
            return TokenizedTexts(ids.read_all(), ids.compute_offsets(), 0, 0)

    def encode(self, batch: Any) -> np.ndarray:
        """Normalised sums of rows."""
        sums = np.add.reduceat(self.table[batch.flat], batch.offsets[:-1])
        return np.asarray(sums / np.linalg.norm(sums, axis=1, keepdims=True))


def measure_size(documents: int) -> dict[str, Any]:
    from retbench.corpora.collection_cache import compile_collection
    from retbench.corpora.rows import Judgment, RawCollection, TextRow
    from retbench.corpora.texts import Texts
    from retbench.encoders.embed_texts import EmbeddingJob, embed_texts
    from retbench.encoders.shard_tasks import InProcessWorker
    from retbench.engines.memory import get_peak_memory_mb, reset_peak_memory
    from retbench.retrievers.exact_search import search_exactly
    from retbench.store.shard_store import ShardStore

    draw, encoder = np.random.default_rng(documents), StaticEncoder()

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


def format_plot(rows: list[dict[str, Any]]) -> str:
    """A bar chart in text, without a plotting library."""
    lines = []
    for key, unit in (("microseconds_per_document", "µs a document"), ("peak_mb", "MB resident at most")):
        top = max(row[key] for row in rows)
        lines += ["", unit]
        lines += [f"{row['documents']:>9,} {'█' * round(40 * row[key] / top)} {row[key]:,.0f}" for row in rows]
    return "\n".join(lines)


def format_table(rows: list[dict[str, Any]]) -> str:
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
        print(json.dumps(measure_size(options.one)))
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
    told = f"# Cost by corpus size\n\n    {typed}\n\n{format_table(rows)}\n\n```{format_plot(rows)}\n```\n"
    options.out.with_suffix(".md").write_text(told)
    print(told)


if __name__ == "__main__":
    main()
