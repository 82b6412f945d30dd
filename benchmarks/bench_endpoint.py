"""Throughput of the endpoint engine with several requests in flight against one at a time, in one run.

    python benchmarks/bench_endpoint.py

The server is on this machine. It takes 100 ms for each request (a network and a model) and answers up to 16 at once;
further ones wait. Vectors must be equal. `faster` is the ratio of the seconds by the clock.
"""

import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from retbench.cards.engine import parse_engine
from retbench.engines.embeddings_client import EmbeddingsClient
from retbench.engines.http_client import ADDRESS_VARIABLE, EndpointServer

OUT = Path(__file__).parent / "results" / "endpoint.json"
LATENCY, CAPACITY, REQUESTS, BATCH, WIDTH = 0.1, 16, 200, 16, 64
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


def embed(in_flight: int) -> tuple[np.ndarray, float, int]:
    engine = parse_engine(f"endpoint:batch_size={BATCH},max_in_flight={in_flight}")
    client = EmbeddingsClient(EndpointServer(engine), "m")
    texts = ["x" * (1 + number % 97) for number in range(REQUESTS * BATCH)]
    started = time.perf_counter()
    vectors = client.embed_texts(texts)
    return vectors, time.perf_counter() - started, client.server.window.largest


def main() -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ[ADDRESS_VARIABLE] = f"http://127.0.0.1:{server.server_port}/v1"
    one, slow, _ = embed(1)
    many, fast, largest = embed(32)
    server.shutdown()
    facts = {
        "command": " ".join(["python", *sys.argv]), "latency_seconds": LATENCY, "server_capacity": CAPACITY,
        "requests": REQUESTS, "texts_per_request": BATCH, "one_at_a_time_seconds": round(slow, 2),
        "in_flight_seconds": round(fast, 2), "most_in_flight": largest, "faster": round(slow / fast, 2),
        "equal_vectors": bool(np.array_equal(one, many)),
    }  # fmt: skip
    print(json.dumps(facts, indent=1))
    OUT.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
