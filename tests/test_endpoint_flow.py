"""Requests in flight, batches that a server refuses for their size, texts that are too long, prices and other shapes.

The messages are those of real servers: text-embeddings-inference, OpenAI, Cohere, vLLM, Azure and DashScope.
"""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from retbench.cards.engine import parse_engine
from retbench.engines.embeddings_client import EmbeddingsClient, EndpointUsage
from retbench.engines.http_client import EndpointServer
from retbench.engines.refused_batches import find_batch_limit, find_kept_share
from retbench.engines.request_flow import RateLimit, RequestWindow
from retbench.errors import UsageError
from retbench.retrievers.embedding_retriever import EXTERNAL_TOKEN_BUDGETS as BUDGETS
from tests import local_server
from tests.test_run import run_cells, run_command

TEXTS = [f"text number {number} of water and tea" for number in range(100)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[local_server.LocalServer]:
    with local_server.start_server() as running:
        monkeypatch.setenv("RETBENCH_ENDPOINT", running.address)
        yield running


def build_client(options: str = "endpoint", waits: list[float] | None = None) -> EmbeddingsClient:
    sleep = None if waits is None else waits.append
    return EmbeddingsClient(EndpointServer(parse_engine(options), sleep=sleep), "some-model")


def refuse_more_than(limit: int, status: int, message: str) -> Any:
    def answer(body: dict[str, Any]) -> local_server.Answer:
        if len(body["input"]) > limit:
            return status, {}, message.replace("SENT", str(len(body["input"]))).encode()
        return local_server.answer_embeddings(body)

    return answer


NAMED_LIMITS = {
    "tei": (32, 422, '{"error":"batch size SENT > maximum allowed batch size 32","error_type":"Validation"}'),
    "openai": (
        20, 400, "Invalid 'input': array too long. Expected an array with maximum length 20, but got length SENT.",
    ),
    "cohere": (24, 400, "invalid request: total number of texts must be at most 24 - received SENT"),
    "azure": (16, 400, "Too many inputs. The max number of inputs is 16."),
    "dashscope": (10, 400, "batch size is invalid, it should not be larger than 10.: input.contents"),
}  # fmt: skip


@pytest.mark.parametrize(("limit", "status", "message"), NAMED_LIMITS.values(), ids=NAMED_LIMITS)
def test_the_batch_limit_of_a_server_is_learned(
    server: local_server.LocalServer, limit: int, status: int, message: str
) -> None:
    server.answer = refuse_more_than(limit, status, message)
    client = build_client("endpoint:max_in_flight=1")
    vectors = client.embed_texts(TEXTS)
    assert np.allclose(vectors, [local_server.embed_text(text) for text in TEXTS])
    sizes = [len(body["input"]) for body in server.requests]
    assert client.batch_limit == limit
    assert [size for size in sizes if size > limit] == [64]  # refused once, and never asked again
    assert max(sizes[1:]) == limit


@pytest.mark.parametrize("status", [413, 422, 400])
def test_a_batch_is_halved_if_the_server_names_no_limit(server: local_server.LocalServer, status: int) -> None:
    server.answer = refuse_more_than(20, status, "Failed to buffer the request body: length limit exceeded")
    vectors = build_client().embed_texts(TEXTS)
    assert np.allclose(vectors, [local_server.embed_text(text) for text in TEXTS])


def test_the_parts_of_a_refused_batch_do_not_depend_on_timing(server: local_server.LocalServer) -> None:
    server.answer = refuse_more_than(30, 422, "batch size SENT > maximum allowed batch size 30")
    accepted = []
    for in_flight in (1, 8):
        server.requests.clear()
        build_client(f"endpoint:max_in_flight={in_flight}").embed_texts(TEXTS)
        accepted.append(sorted(body["input"] for body in server.requests if len(body["input"]) <= 30))
    assert accepted[0] == accepted[1]


def test_a_refusal_for_another_reason_is_not_split(server: local_server.LocalServer) -> None:
    server.faults = [local_server.answer_with_error(422, '{"detail": "field model: unknown"}')]
    with pytest.raises(UsageError, match="unknown"):
        build_client().embed_texts(TEXTS[:10])
    assert len(server.requests) == 1


def test_only_a_text_that_is_too_long_is_cut_and_counted(
    server: local_server.LocalServer, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(body: dict[str, Any]) -> local_server.Answer:
        longest = max(len(text.split()) for text in body["input"])
        if longest > 50:
            said = f"This model's maximum context length is 50 tokens. However, you requested {longest} tokens in it"
            return 400, {}, json.dumps({"message": said}).encode()
        return local_server.answer_embeddings(body)

    server.answer = answer
    long, usage = "word " * 200, EndpointUsage()
    vectors = build_client().embed_texts([*TEXTS[:5], long, *TEXTS[5:9]], usage=usage)
    assert usage.cut_texts == 1
    assert np.allclose(vectors[:5], [local_server.embed_text(text) for text in TEXTS[:5]])
    assert np.allclose(vectors[6:], [local_server.embed_text(text) for text in TEXTS[5:9]])
    assert "too long for the server" in caplog.text
    assert 40 <= max(len(text.split()) for body in server.requests for text in body["input"] if text != long) <= 50


def test_messages_of_servers_give_numbers() -> None:
    assert find_kept_share("`inputs` must have less than 512 tokens. Given: 1024") == 0.5
    assert find_kept_share("maximum context length is 8192 tokens, however you requested 16384 tokens (16384 in") == 0.5
    assert find_kept_share("too long") is None
    assert find_batch_limit("at most 20 tokens are allowed", 64) is None
    assert find_batch_limit("the maximum allowed batch size 512", 64) is None  # more than was sent


class SlowServer:
    """Answers after a while, and remembers how many requests were there at once."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.most, self.lock = seconds, 0, 0, threading.Lock()

    def __call__(self, body: dict[str, Any]) -> local_server.Answer:
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(self.seconds)
        with self.lock:
            self.now -= 1
        return local_server.answer_embeddings(body)


def test_several_requests_are_in_flight_and_grow(server: local_server.LocalServer) -> None:
    slow = server.answer = SlowServer(0.01)
    client = build_client("endpoint:batch_size=1,max_in_flight=12")
    vectors = client.embed_texts(TEXTS)
    assert np.allclose(vectors, [local_server.embed_text(text) for text in TEXTS])
    assert 4 <= client.server.window.largest <= 12
    assert 1 < slow.most <= client.server.window.largest


def test_fewer_requests_are_in_flight_after_429(server: local_server.LocalServer) -> None:
    server.faults = [local_server.answer_with_error(429, Retry_After="3")]
    waits: list[float] = []
    client = build_client("endpoint:batch_size=1", waits)
    vectors = client.embed_texts(TEXTS[:30])
    assert np.allclose(vectors, [local_server.embed_text(text) for text in TEXTS[:30]])
    assert client.server.window.size <= client.server.window.ceiling <= 3  # four were in flight
    assert max(waits) == pytest.approx(3, abs=0.5)
    assert len(waits) >= 2  # every request that starts in these seconds waits, not only the refused one


def test_the_window_grows_while_the_throughput_rises_and_halves_once() -> None:
    clock = [0.0]
    window = RequestWindow(64, lambda: clock[0])

    def run_round(seconds: float) -> None:
        for _ in range(window.size):
            window.acquire()
        clock[0] += seconds
        for _ in range(window.in_flight):
            window.release(1)

    for size in (8, 16, 32):  # a round takes the same time whatever its size
        run_round(1.0)
        assert window.size == size
    run_round(2.0)  # as fast as the last round: no more requests
    assert window.size == 32
    epoch = window.acquire()
    window.shrink(epoch)
    window.shrink(epoch)  # another request that was sent before
    assert window.size == 16
    window.release()
    for _ in range(6):
        run_round(0.01)
    assert window.size <= 31  # never again as many as were too many


def test_the_requests_of_the_first_shard_are_sent_first() -> None:
    window, sent = RequestWindow(1), list[int]()
    window.acquire()

    def send(turn: int) -> None:
        window.acquire(turn)
        sent.append(turn)
        window.release()

    threads = [threading.Thread(target=send, args=(turn,)) for turn in (5, 2, 7, 3, 2)]
    for thread in threads:
        thread.start()
    while len(window.waiting) < len(threads):
        time.sleep(0.001)
    window.release()
    for thread in threads:
        thread.join()
    assert sent == [2, 2, 3, 5, 7]


def test_a_run_that_fails_keeps_the_shards_that_were_paid_for(
    server: local_server.LocalServer, task: Path, out: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All shards have their first request waiting at the start; the first ones are finished first."""
    monkeypatch.setattr("retbench.encoders.external_encoders.USUAL_TOKENS_PER_SECOND", 1)
    monkeypatch.setitem(BUDGETS, "endpoint", 300)  # bytes of a batch, so that there are several shards
    server.answer = lambda body: (
        (401, {}, b"no credit") if len(server.requests) > 14 else local_server.answer_embeddings(body)
    )
    engine = "endpoint:batch_size=1,max_in_flight=20"
    monkeypatch.setattr("retbench.engines.request_flow.FIRST_IN_FLIGHT", 1)
    monkeypatch.setattr("retbench.engines.request_flow.MIN_GAIN", 1e9)  # one request at a time
    answer = run_command("run", "--model", "a/b", "--engine", engine, "--task", task, "--out", out)
    assert answer.exit_code == 3
    rows = [load_file(file)["rows"] for file in own_cache.glob("embeddings/*/*/shard-*.safetensors")]
    # texts that were paid for; a later shard may go first while the thread of an earlier one has not asked yet
    assert sum(map(len, rows)) >= 14 // 3


def test_tokens_and_requests_of_a_minute_are_kept() -> None:
    limit = RateLimit(requests_per_minute=600, tokens_per_minute=6000)
    waits = [limit.reserve(tokens) for tokens in (100, 1, 1)]
    assert waits[0] == 0
    assert waits[1:] == [pytest.approx(1.0, abs=0.2), pytest.approx(1.1, abs=0.2)]
    free = RateLimit(0, 0)
    assert [free.reserve(9) for _ in range(3)] == [0, 0, 0]
    free.hold(5)
    assert free.reserve(1) == pytest.approx(5, abs=0.2)


def answer_as_tei(body: dict[str, Any]) -> local_server.Answer:
    assert body.keys() == {"model", "inputs", "normalize", "truncate"}
    if any(len(text) > 200 for text in body["inputs"]) and not body["truncate"]:
        return 413, {}, b'{"error":"Input validation error: `inputs` must have less than 512 tokens. Given: 600"}'
    return 200, {}, json.dumps([local_server.embed_text(text) for text in body["inputs"]]).encode()


def answer_as_cohere(body: dict[str, Any]) -> local_server.Answer:
    vectors = [local_server.embed_text(f"{body['input_type']} {text}") for text in body["texts"]]
    meta = {"billed_units": {"input_tokens": 7 * len(vectors)}}
    return 200, {}, json.dumps({"embeddings": {"float": vectors}, "meta": meta}).encode()


def test_the_shape_of_tei(server: local_server.LocalServer) -> None:
    server.paths, server.answer = ("/embed",), answer_as_tei
    usage = EndpointUsage()
    vectors = build_client("endpoint:api=tei").embed_texts([*TEXTS[:3], "long " * 100], usage=usage)
    assert np.allclose(vectors, [local_server.embed_text(text) for text in [*TEXTS[:3], "long " * 100]])
    assert usage.cut_texts == 1


def test_the_shape_of_cohere_its_roles_and_the_price(server: local_server.LocalServer, task: Path, out: Path) -> None:
    server.paths, server.answer = ("/v2/embed",), answer_as_cohere
    engine = "endpoint:api=cohere,price=0.1,model=embed-v4"
    (cell,) = run_cells("run", "--model", "cohere/embed", "--engine", engine, "--task", task, "--out", out)
    assert {body["input_type"] for body in server.requests} == {"search_query", "search_document"}
    record = json.loads((Path(cell["record"]) / "record.json").read_text())
    assert record["settings"]["engine"] == "endpoint:api=cohere,model=embed-v4"
    assert record["texts"]["document"]["tokens"] == 7 * cell["documents"]
    assert record["cost"]["price"] == pytest.approx(7 * (cell["documents"] + cell["queries"]) * 0.1 / 1e6, abs=1e-6)
    assert record["cost"]["price_per_million_documents"] == pytest.approx(0.7)
    assert record["texts"]["document"]["cut_texts"] == 0
    board = run_command("report", out, "--format", "csv").stdout
    assert "price per 1M docs" in board
    assert ",0.7," in board


def test_a_stopped_server_ends_the_run_with_its_reason(
    server: local_server.LocalServer, task: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retbench.encoders.external_encoders.USUAL_TOKENS_PER_SECOND", 1)
    monkeypatch.setitem(BUDGETS, "endpoint", 300)  # bytes of a batch, so that there are several shards
    server.answer = lambda body: (
        (401, {}, b"bad key") if len(server.requests) > 3 else local_server.answer_embeddings(body)
    )
    answer = run_command("run", "--model", "a/b", "--engine", "endpoint:batch_size=1", "--task", task, "--out", out)
    assert answer.exit_code == 3
    assert "401: bad key" in answer.output
    server.answer = local_server.answer_embeddings
    (cell,) = run_cells("run", "--model", "a/b", "--engine", "endpoint", "--task", task, "--out", out)
    assert cell["status"] == "done"


def test_vectors_are_equal_with_one_request_at_a_time(
    server: local_server.LocalServer, task: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retbench.encoders.external_encoders.USUAL_TOKENS_PER_SECOND", 1)
    monkeypatch.setitem(BUDGETS, "endpoint", 300)  # bytes of a batch, so that there are several shards
    bits = []
    for in_flight in (1, 8):
        cache = tmp_path / f"cache-{in_flight}"
        monkeypatch.setenv("RETBENCH_CACHE", str(cache))
        engine = f"endpoint:batch_size=4,max_in_flight={in_flight}"
        run_cells("run", "--model", "a/b", "--engine", engine, "--task", task, "--out", tmp_path / str(in_flight))
        files = sorted(cache.glob("embeddings/*/*/*.safetensors"))
        bits.append({file.relative_to(cache): file.read_bytes() for file in files})
    assert bits[0] == bits[1]
    assert len(bits[0]) > 4


@pytest.mark.parametrize("option", ["api=voyage", "max_in_flight=0", "batch_size=0", "price=cheap"])
def test_wrong_options_of_the_endpoint_are_usage_errors(option: str) -> None:
    with pytest.raises(UsageError):
        parse_engine(f"endpoint:{option}")
