"""The endpoint engine against a local server that also misbehaves; the key is only in the request."""

import json
import socket
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retbench.cards import catalog
from retbench.cards.engine import Engine, parse_engine
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.external_encoders import EndpointEncoder
from retbench.engines import http_client
from retbench.engines.embeddings_client import EmbeddingsClient
from retbench.engines.http_client import EndpointServer
from retbench.errors import DataError, MissingError, ResourceError, UsageError
from tests import local_server
from tests.test_run import run_cells, run_command

SECRET = "sk-do-not-tell"  # noqa: S105  # a test's own
TEXTS = ["water boils", "tea leaves", "a bicycle", "", "naïve 世界"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[local_server.LocalServer]:
    with local_server.start_server() as running:
        monkeypatch.setenv("RETBENCH_ENDPOINT", running.address)
        monkeypatch.setenv("RETBENCH_ENDPOINT_KEY", SECRET)
        yield running


@pytest.fixture
def waits() -> list[float]:
    return []


def build_client(waits: list[float], **options: Any) -> EmbeddingsClient:
    return EmbeddingsClient(EndpointServer(Engine("endpoint", **options), sleep=waits.append), "some-model")


def test_vectors_come_back_in_the_order_of_the_texts(server: local_server.LocalServer, waits: list[float]) -> None:
    vectors = build_client(waits, batch_size=2).embed_texts(TEXTS)
    assert np.allclose(vectors, [local_server.embed_text(text) for text in TEXTS])
    assert sorted(len(body["input"]) for body in server.requests) == [1, 2, 2]
    assert set(server.keys) == {f"Bearer {SECRET}"}
    assert waits == []


@pytest.mark.parametrize(
    ("fault", "wait"),
    [
        (local_server.answer_with_error(429, Retry_After="7"), 7.0),
        (local_server.answer_with_error(429), 0.5),
        (local_server.answer_with_error(500), 0.5),
        (local_server.answer_with_error(503, Retry_After="soon"), 0.5),
        (local_server.answer_half, 0.5),
        (local_server.answer_too_few, 0.5),
        (lambda body: (200, {}, b"not json"), 0.5),
        (lambda body: (200, {}, b"[]"), 0.5),
    ],
)
def test_temporary_errors_are_retried(
    server: local_server.LocalServer, waits: list[float], fault: Any, wait: float
) -> None:
    server.faults = [fault]
    assert np.allclose(build_client(waits).embed_texts(TEXTS), [local_server.embed_text(text) for text in TEXTS])
    assert waits == [pytest.approx(wait, abs=0.2)]
    assert len(server.requests) == 2


def test_a_timeout_is_retried(server: local_server.LocalServer, waits: list[float]) -> None:
    server.faults = [local_server.answer_slowly]
    assert build_client(waits, timeout=1).embed_texts(["x"]).shape == (1, local_server.WIDTH)
    assert waits == [0.5]


def test_waiting_time_doubles_up_to_the_last_attempt(server: local_server.LocalServer, waits: list[float]) -> None:
    server.faults = [local_server.answer_with_error(500, f"broken, {SECRET}")] * 4
    with pytest.raises(ResourceError, match="failed 4 times: the endpoint answered 500: broken") as caught:
        build_client(waits, max_attempts=4).embed_texts(TEXTS)
    assert waits == [0.5, 1.0, 2.0]
    assert SECRET not in str(caught.value.cause)


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (local_server.answer_with_error(401, f"bad key {SECRET}"), MissingError, r"answered 401: bad key \*\*\*"),
        (local_server.answer_with_error(403), MissingError, "403"),
        (local_server.answer_with_error(400, "no such model"), UsageError, "400: no such model"),
        (local_server.answer_with_error(404), UsageError, "404"),
    ],
)
def test_permanent_errors_are_not_retried(
    server: local_server.LocalServer, waits: list[float], fault: Any, error: type[Exception], message: str
) -> None:
    server.faults = [fault]
    with pytest.raises(error, match=message):
        build_client(waits).embed_texts(TEXTS)
    assert len(server.requests) == 1


LOGIN_PAGE = b"\n<!doctype html><html><head><title>Sign in\n to Corp</title></head><body>password</body></html>"


@pytest.mark.parametrize("status", [200, 404])
def test_a_web_page_is_named_at_once(server: local_server.LocalServer, waits: list[float], status: int) -> None:
    server.faults = [lambda body: (status, {"Content-Type": "text/html"}, LOGIN_PAGE)]
    with pytest.raises(UsageError, match=r"web page \('Sign in to Corp'\)") as caught:
        build_client(waits).embed_texts(TEXTS)
    assert "login" in caught.value.next_step
    assert (len(server.requests), waits) == (1, [])


def test_a_web_page_of_an_overloaded_server_is_transient(server: local_server.LocalServer, waits: list[float]) -> None:
    server.faults = [lambda body: (502, {}, b"<html><title>Bad Gateway</title></html>")]
    assert len(build_client(waits).embed_texts(TEXTS)) == len(TEXTS)
    assert waits == [0.5]


def test_an_address_without_a_version_is_named_at_once(
    server: local_server.LocalServer, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETBENCH_ENDPOINT", server.address.removesuffix("/v1"))
    server.faults = [local_server.answer_with_error(404, '{"detail": "Not Found"}')]
    with pytest.raises(UsageError, match="answered 404") as caught:
        build_client(waits).embed_texts(TEXTS)
    assert caught.value.next_step == "set RETBENCH_ENDPOINT to the address of the server's API, which ends in /v1"
    assert waits == []


def test_a_model_of_a_server_needs_no_card_and_no_slash(
    server: local_server.LocalServer, task: Path, out: Path
) -> None:
    line = ("run", "--model", "Text-Embedding-3-small", "--engine", "endpoint", "--task", task, "--out", out)
    (cell,) = run_cells(*line)
    assert (cell["model"], cell["status"]) == ("Text-Embedding-3-small", "done")
    assert {body["model"] for body in server.requests} == {"Text-Embedding-3-small"}
    answer = run_command("run", "--model", "Text-Embedding-3-small", "--task", task, "--out", out)
    assert answer.exit_code == 2
    assert "there is no model called" in answer.output


def test_a_changed_vector_width_is_an_error(server: local_server.LocalServer, waits: list[float]) -> None:
    endpoint = build_client(waits)
    endpoint.embed_texts(["x"])
    server.faults = [local_server.answer_narrow]
    with pytest.raises(DataError, match="width 12, not 24"):
        endpoint.embed_texts(["x"])
    server.faults = [local_server.answer_narrow]
    with pytest.raises(DataError, match="width 12, not 8"):
        build_client(waits, dimensions=8).embed_texts(["x"])


def test_the_rate_limit_is_respected(server: local_server.LocalServer, waits: list[float]) -> None:
    build_client(waits, requests_per_minute=60, batch_size=1).embed_texts(["x", "y", "z"])
    assert sorted(waits) == [pytest.approx(1, abs=0.5), pytest.approx(2, abs=0.5)]  # each waits for its own place


def test_an_unreachable_server_is_an_error(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    monkeypatch.setenv("RETBENCH_ENDPOINT", "file:///etc/passwd")
    with pytest.raises(UsageError, match="not a web address"):
        build_client(waits).embed_texts(["x"])
    monkeypatch.delenv("RETBENCH_ENDPOINT")
    with pytest.raises(MissingError, match="no endpoint address is set"):
        build_client(waits).embed_texts(["x"])


def refuse_unknown_host(*_: Any) -> bytes:
    raise urllib.error.URLError(socket.gaierror(-2, "Name or service not known"))


@pytest.mark.parametrize("is_host_known", [True, False])
def test_an_address_without_a_server_is_told_within_two_seconds(
    is_host_known: bool, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    monkeypatch.setenv("RETBENCH_ENDPOINT", "http://127.0.0.1:1/v1")
    if not is_host_known:  # the tests may not ask for a name
        monkeypatch.setattr(http_client, "read_answer", refuse_unknown_host)
    with pytest.raises(MissingError, match="no server answers at the address in RETBENCH_ENDPOINT: no connection"):
        build_client(waits, max_attempts=20).embed_texts(["x"])
    assert waits == [0.5, 1.0]


def test_a_server_that_goes_away_is_waited_for(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    with local_server.start_server() as server:
        monkeypatch.setenv("RETBENCH_ENDPOINT", server.address)
        client = build_client(waits, max_attempts=5)
        client.embed_texts(["x"])
    with pytest.raises(ResourceError, match="failed 5 times: no connection"):
        client.embed_texts(["y"])
    assert waits == [0.5, 1.0, 2.0, 4.0]


def test_texts_are_truncated_between_characters() -> None:
    spec = EncoderSpec("w", catalog.find_method("as-published"), "", 1, 1, "float32", "endpoint")
    tokens = EndpointEncoder(spec, EmbeddingsClient(EndpointServer(Engine("endpoint")), "m")).tokenize(
        ["abcdef", "ab世", ""], "query"
    )
    assert [bytes(row.astype(np.uint8)).decode() for row in tokens] == ["abcd", "ab", " "]
    assert (tokens.truncated, tokens.empty) == (2, 1)


def test_a_run_with_the_endpoint_engine(
    server: local_server.LocalServer, task: Path, out: Path, own_cache: Path
) -> None:
    line = (
        "run",
        "--model",
        "openai/text-embedding",
        "--engine",
        "endpoint:batch_size=8",
        "--task",
        task,
        "--out",
        out,
    )
    (cell,) = run_cells(*line)
    assert (cell["status"], cell["method"], cell["engine"]) == ("done", "as-published", "endpoint")
    assert {body["model"] for body in server.requests} == {"openai/text-embedding"}
    assert max(len(body["input"]) for body in server.requests) == 8
    before = len(server.requests)
    (cached_cell,) = run_cells(*line)
    (other_cell,) = run_cells(
        *line, "--engine", "endpoint:model=another,dimensions=8", "--method", "as-published:query=q: {text}"
    )
    assert cached_cell["cached"]
    assert not other_cell["cached"]
    assert other_cell["settings_id"] != cell["settings_id"]
    assert server.requests[before]["dimensions"] == 8
    written = [file for folder in (out, own_cache) for file in folder.rglob("*") if file.is_file()]
    assert len(written) > 10
    for file in written:
        content = file.read_bytes()
        assert SECRET.encode() not in content, file
        assert server.address.encode() not in content, file


def test_a_dry_run_sends_no_request(server: local_server.LocalServer, task: Path, out: Path) -> None:
    answer = run_command("run", "--model", "a/b", "--engine", "endpoint", "--task", task, "--out", out, "--dry-run")
    assert answer.exit_code == 0, answer.output
    assert "how to brew a hot drink" in answer.output
    assert server.requests == []


@pytest.mark.parametrize("method", ["mean", "promptreps", "as-published:layer=1"])
def test_a_method_the_endpoint_does_not_support_is_skipped(
    server: local_server.LocalServer, task: Path, out: Path, method: str
) -> None:
    line = ("run", "--model", "a/b", "--engine", "endpoint", "--task", task, "--out", out, "--method", method, "--json")
    (cell,) = json.loads(run_command(*line).stdout)
    assert cell["status"] == "skipped"
    assert "which the engine endpoint does not support" in cell["error"]


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ("endpiont", "no engine called"),
        ("endpoint:tries=3", "renamed to 'max_attempts'"),
        ("endpoint:max_attemps=3", "no option 'max_attemps'"),
        ("vllm:max_attempts=3", "the engine vllm has no option 'max_attempts'"),
        ("endpoint:tensor_parallel_size=2", "the engine endpoint has no option"),
        ("transformers:timeout=3", "the engine transformers has no option"),
    ],
)
def test_a_wrong_engine_is_a_usage_error(engine: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_engine(engine)


def test_retries_and_timeouts_are_not_in_the_settings_id() -> None:
    assert parse_engine("endpoint:max_attempts=9,model=m,timeout=3").settings_name == "endpoint:model=m"
    assert json.dumps(parse_engine("transformers").settings_name) == '"transformers"'


def test_options_of_vllm_have_its_own_names() -> None:
    engine = parse_engine("vllm:tensor_parallel_size=2,gpu_memory_utilization=0.8,enforce_eager=true")
    assert engine.vllm_options == {
        "tensor_parallel_size": 2, "gpu_memory_utilization": 0.8, "enforce_eager": True,
    }  # fmt: skip
    assert engine.settings_name == "vllm:enforce_eager=True,tensor_parallel_size=2"  # memory changes no vector
    assert parse_engine("vllm").vllm_options == {}
