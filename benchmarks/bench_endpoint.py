"""Throughput of the endpoint engine with several requests in flight against one at a time, in one run.

    python benchmarks/bench_endpoint.py
    RETBENCH_ENDPOINT=http://localhost:8000/v1 python benchmarks/bench_endpoint.py --model NAME --batch-size 1

Without `--model` the server is a stand-in on this machine. It takes 100 ms for each request (a network and a model) and
answers up to 16 at once; further ones wait. `faster` is the ratio of the seconds by the clock. `least_cosine` compares
the vectors of both: a real server puts requests together, and its vectors then differ a little.
"""

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from retbench.cards.engine import parse_engine
from retbench.engines.embeddings_client import EmbeddingsClient
from retbench.engines.http_client import ADDRESS_VARIABLE, EndpointServer

RESULTS = Path(__file__).parent / "results"
LATENCY, CAPACITY, WIDTH = 0.1, 16, 64
MOST_IN_FLIGHT = 32
WORDS = (
    "how",
    "to",
    "sort",
    "a",
    "list",
    "of",
    "names",
    "by",
    "their",
    "length",
    "in",
    "one",
    "line",
    "without",
    "loops",
)
PLACES = threading.Semaphore(CAPACITY)


class Handler(BaseHTTPRequestHandler):
    """Answers a request after the latency, with the length of each text as its vector."""

    def do_POST(self) -> None:
        """Answer a request for embeddings."""
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
        with PLACES:
            time.sleep(LATENCY)
        rows = [{"index": i, "embedding": [float(len(text))] * WIDTH} for i, text in enumerate(texts)]
        content = json.dumps({"data": rows, "usage": {"prompt_tokens": len(texts)}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@contextmanager
def start_stand_in() -> Iterator[None]:
    """Start the stand-in, and set its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ[ADDRESS_VARIABLE] = f"http://127.0.0.1:{server.server_port}/v1"
    yield
    server.shutdown()


def build_texts(count: int) -> list[str]:
    """Build short texts, each another one."""
    return [f"{' '.join(WORDS[number % 7 :])} {number}" for number in range(count)]


def embed(model: str, texts: list[str], batch_size: int, in_flight: int) -> tuple[np.ndarray, float, int]:
    """Embed the texts; return vectors, seconds, and the most requests at once."""
    engine = parse_engine(f"endpoint:batch_size={batch_size},max_in_flight={in_flight}")
    client = EmbeddingsClient(EndpointServer(engine), model)
    started = time.perf_counter()
    vectors = client.embed_texts(texts)
    return vectors, time.perf_counter() - started, client.server.window.largest


def compute_least_cosine(one: np.ndarray, many: np.ndarray) -> float:
    """The smallest cosine of two vectors of the same text."""
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(many, axis=1)
    return float(((one * many).sum(axis=1) / norms).min())


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="the name of a model on the server at RETBENCH_ENDPOINT")
    parser.add_argument("--texts", type=int, default=3200)
    parser.add_argument("--batch-size", type=int, default=16, help="texts of a request")
    parser.add_argument("--out", type=Path, default=RESULTS / "endpoint.json")
    options = parser.parse_args()
    texts, model = build_texts(options.texts), options.model or "stand-in"
    with nullcontext() if options.model else start_stand_in():
        embed(model, texts[: options.batch_size], options.batch_size, 1)  # a warm-up
        one, slow, _ = embed(model, texts, options.batch_size, 1)
        many, fast, largest = embed(model, texts, options.batch_size, MOST_IN_FLIGHT)
    facts = {
        "command": " ".join(["python", *sys.argv]), "model": model, "texts": options.texts,
        "texts_per_request": options.batch_size, "one_at_a_time_seconds": round(slow, 2),
        "in_flight_seconds": round(fast, 2), "most_in_flight": largest, "faster": round(slow / fast, 2),
        "least_cosine": round(compute_least_cosine(one, many), 6),
    }  # fmt: skip
    print(json.dumps(facts, indent=1))
    options.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
