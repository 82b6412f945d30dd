"""A small local server with OpenAI's embeddings and chat protocol, which can also misbehave."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

WIDTH = 24
Answer = tuple[int, dict[str, str], bytes]


def embed_text(text: str, width: int = WIDTH) -> list[float]:
    """A vector that is similar for texts with common words."""
    total = np.zeros(WIDTH)
    for word in text.lower().split() or [""]:
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big")
        total += np.random.default_rng(seed).normal(size=WIDTH)
    return [float(value) for value in total[:width]]


def answer_embeddings(body: dict[str, Any]) -> Answer:
    rows = [
        {"object": "embedding", "index": position, "embedding": embed_text(text, body.get("dimensions", WIDTH))}
        for position, text in enumerate(body["input"])
    ]
    return 200, {}, json.dumps({"object": "list", "model": body["model"], "data": rows[::-1]}).encode()


def answer_chat(say: Callable[[dict[str, Any]], str | None]) -> Callable[[dict[str, Any]], Answer]:
    """Build a chat answer from a request."""

    def answer(body: dict[str, Any]) -> Answer:
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        choice = {"index": 0, "message": {"role": "assistant", "content": say(body)}, "finish_reason": "stop"}
        return 200, {}, json.dumps({"choices": [choice], "usage": usage}).encode()

    return answer


def answer_with_error(status: int, words: str = "no", **headers: str) -> Callable[[dict[str, Any]], Answer]:
    return lambda body: (status, {key.replace("_", "-"): value for key, value in headers.items()}, words.encode())


def answer_half(body: dict[str, Any]) -> Answer:
    """Announce the whole length and send half of it."""
    status, _, content = answer_embeddings(body)
    return status, {"Content-Length": str(len(content))}, content[: len(content) // 2]


def answer_too_few(body: dict[str, Any]) -> Answer:
    return answer_embeddings({**body, "input": body["input"][:-1]})


def answer_narrow(body: dict[str, Any]) -> Answer:
    return answer_embeddings({**body, "dimensions": WIDTH // 2})


def answer_slowly(body: dict[str, Any]) -> Answer:
    time.sleep(1.5)
    return answer_embeddings(body)


class LocalServer:
    """The requests of a server and its answers; `faults` are answered first."""

    def __init__(self) -> None:
        self.faults: list[Callable[[dict[str, Any]], Answer]] = []
        self.answer: Callable[[dict[str, Any]], Answer] = answer_embeddings
        self.paths: tuple[str, ...] = ("/v1/embeddings", "/v1/chat/completions")
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.address = ""


@contextmanager
def start_server() -> Iterator[LocalServer]:
    state = LocalServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.requests.append(body)
            state.keys.append(self.headers.get("Authorization"))
            status, headers, content = (state.faults.pop(0) if state.faults else state.answer)(body)
            self.send_response(status if self.path in state.paths else 404)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):  # the client closed the connection
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.address = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
