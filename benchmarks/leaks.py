"""Memory and open files under load: does either grow with the number of requests or of documents?

    python -m benchmarks.leaks requests --count 10000
    python -m benchmarks.leaks documents --count 1000000

`requests` sends single texts to a server in another process, several at once, by the endpoint engine. `documents` reads
a BEIR folder, compiles it, plans it, stores the vectors of an encoder that costs nothing, and searches them. Each part
prints resident memory and open files at ten points and adds them to results/leaks.json. Requests must leave memory
where it was at the first point; a document may leave a few numbers (its length, its place in the plan), and no file may
stay open. Exit code 1 if that is not so.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.big_collection import write_folder
from benchmarks.scale import QUERIES, K, StaticEncoder
from retbench.cards.engine import parse_engine
from retbench.corpora.collection_cache import compile_collection
from retbench.corpora.folder_source import read_folder
from retbench.corpora.texts import Texts
from retbench.encoders.embed_texts import EmbeddingJob, embed_texts
from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.encoders.shard_tasks import InProcessWorker
from retbench.engines.embeddings_client import EmbeddingsClient
from retbench.engines.http_client import ADDRESS_VARIABLE, EndpointServer
from retbench.retrievers.exact_search import search_exactly
from retbench.store.shard_store import ShardStore

RESULT_FILE = Path(__file__).parent / "results" / "leaks.json"
POINTS, WIDTH = 10, 64
MAX_REQUEST_MB = 16.0  # from the first point to the last, for any number of requests
MAX_BUFFERS_MB, MAX_DOCUMENT_BYTES = 100.0, 120.0  # of a phase, and of each document in it, in the same way


def measure_process() -> dict[str, float]:
    """The resident memory and the open files of this process."""
    status = Path("/proc/self/status").read_text().splitlines()
    resident = next(line for line in status if line.startswith("VmRSS"))
    return {"resident_mb": round(int(resident.split()[1]) * 1024 / 1e6, 1), "files": len(os.listdir("/proc/self/fd"))}


class PointRecorder:
    """Measures the process each time another tenth of the work is done."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.points: list[dict[str, float]] = []

    def advance(self, done: int) -> None:
        """Measure if the work has passed the next tenth."""
        if done >= self.total * (len(self.points) + 1) // POINTS and len(self.points) < POINTS:
            self.points.append({"done": done, **measure_process()})
            print(json.dumps(self.points[-1]), file=sys.stderr, flush=True)

    def compute_growth_mb(self) -> float:
        """The growth of memory from the first point to the last."""
        return round(self.points[-1]["resident_mb"] - self.points[0]["resident_mb"], 1)


class Handler(BaseHTTPRequestHandler):
    """Answers at once, with the length of each text as its vector."""

    def do_POST(self) -> None:
        """Answer a request for embeddings."""
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
        rows = [{"index": i, "embedding": [float(len(text))] * WIDTH} for i, text in enumerate(texts)]
        content = json.dumps({"data": rows}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


def serve(port: Connection) -> None:
    """Serve on a free port, which is sent back."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.send(server.server_port)
    server.serve_forever()


def send_requests(count: int) -> dict[str, Any]:
    """Send many requests of one text; some at once, as a run does."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(sender,), daemon=True)
    server.start()
    os.environ[ADDRESS_VARIABLE] = f"http://127.0.0.1:{receiver.recv()}/v1"
    client = EmbeddingsClient(EndpointServer(parse_engine("endpoint:batch_size=1,max_in_flight=8")), "m")
    recorder, step = PointRecorder(count), max(1, count // 100)
    for done in range(0, count, step):
        client.embed_texts([f"{number} {'x' * (number % 97)}" for number in range(done, min(count, done + step))])
        recorder.advance(min(count, done + step))
    server.kill()
    server.join()
    growth = recorder.compute_growth_mb()
    files = recorder.points[-1]["files"] - recorder.points[0]["files"]
    return {"growth_mb": growth, "files_left": files, "flat": growth < MAX_REQUEST_MB and files <= 0,
            "points": recorder.points}  # fmt: skip


class WordEncoder(StaticEncoder):
    """The encoder of benchmarks/scale.py for texts of any words: the ids of the first 4 to 11 are digests of them.

    All words of ten million documents would cost more than everything that is measured.
    """

    def tokenize(self, texts: Any, role: str) -> TokenizedTexts:
        """Replace each of the first words by a number."""
        words = (text.split(None, 4 + len(text) % 8)[: 4 + len(text) % 8] for text in texts)
        numbers = (" ".join(str(hash(word) % 50_000) for word in first) for first in words)
        tokens: TokenizedTexts = super().tokenize(numbers, role)
        return tokens


def count_rows(rows: Iterator[Any], recorder: PointRecorder) -> Iterator[Any]:
    """Pass rows on, and measure at every tenth."""
    for done, row in enumerate(rows, start=1):
        yield row
        recorder.advance(done)


def use_documents(count: int) -> dict[str, Any]:
    """Read, compile, plan, store and search a collection of many documents."""
    with tempfile.TemporaryDirectory() as place:
        folder, reading, embedding = Path(place), PointRecorder(count), PointRecorder(count)
        write_folder(folder / "big", count)
        before, raw = measure_process(), read_folder(folder / "big")
        compile_collection(replace(raw, documents=count_rows(iter(raw.documents), reading)), folder / "c")
        texts, encoder = Texts.open(folder / "c" / "corpus.arrow", "leaks"), WordEncoder()
        # as documents are read: without space at the ends, which would change how many words are read
        queries = encoder.encode(encoder.tokenize((texts[row].text.strip() for row in range(QUERIES)), "query"))
        worker = InProcessWorker(lambda: encoder)  # type: ignore[arg-type,return-value]  # it costs nothing
        job, done = EmbeddingJob(texts, ("text",), "document", 65536), 0

        def advance(rows: int, *_: int) -> None:
            nonlocal done
            done += rows
            embedding.advance(done)

        ranking = search_exactly(queries, embed_texts(worker, job, ShardStore(folder / "store"), advance), K)
        assert all(row in found for row, found in enumerate(ranking.rows))
        del ranking, texts, raw
        after = measure_process()
    growth = {name: one.compute_growth_mb() for name, one in (("reading", reading), ("embedding", embedding))}
    bytes_each = {name: round(1e6 * mb / (0.9 * count), 1) for name, mb in growth.items()}
    files = after["files"] - before["files"]
    is_flat = files <= 0 and max(growth.values()) < MAX_BUFFERS_MB + MAX_DOCUMENT_BYTES * count / 1e6
    return {"growth_mb": growth, "bytes_per_document": bytes_each, "vectors_mb": round(count * 4 * WIDTH / 1e6),
            "files_left": files, "flat": is_flat, "before": before, "reading": reading.points,
            "embedding": embedding.points, "after": after}  # fmt: skip


PARTS: dict[str, Callable[[int], dict[str, Any]]] = {"requests": send_requests, "documents": use_documents}


def main() -> int:
    """Run one part; exit 1 if memory or open files grow."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("part", choices=PARTS)
    options.add_argument("--count", type=int, default=10_000)
    options.add_argument("--out", type=Path, default=RESULT_FILE)
    given = options.parse_args()
    command = " ".join(["python -m benchmarks.leaks", *sys.argv[1:]])
    facts = {"command": command, "python": platform.python_version(), "numpy": np.__version__,
             **PARTS[given.part](given.count)}  # fmt: skip
    stored = json.loads(given.out.read_text()) if given.out.exists() else {}
    given.out.write_text(json.dumps({**stored, given.part: facts}, indent=1) + "\n")
    print(json.dumps({key: value for key, value in facts.items() if not isinstance(value, list)}, indent=1))
    return 0 if facts["flat"] else 1


if __name__ == "__main__":
    sys.exit(main())
