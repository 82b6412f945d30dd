"""Servers that attack: redirects, endless and slow answers, ill-typed answers, answers that repeat the key."""

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from retbench.cards.engine import Engine
from retbench.engines.chat_client import ChatClient
from retbench.engines.embeddings_client import EmbeddingsClient
from retbench.engines.http_client import EndpointServer
from retbench.errors import ResourceError, UsageError, redact_secrets
from retbench.rerankers.answer_cache import CachedGenerator
from retbench.rerankers.llm_prompts import parse_order
from retbench.system import http_request
from tests import local_server

SECRET = "sk-do-not/tell+me"  # noqa: S105  # a test's own; it has characters that are percent-encoded
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[local_server.LocalServer]:
    with local_server.start_server() as running:
        monkeypatch.setenv("RETBENCH_ENDPOINT", running.address)
        monkeypatch.setenv("RETBENCH_ENDPOINT_KEY", SECRET)
        yield running


def build_client(**options: Any) -> EmbeddingsClient:
    options = {"max_attempts": 2, "timeout": 2, **options}
    return EmbeddingsClient(EndpointServer(Engine("endpoint", **options), sleep=lambda _: None), "some-model")


def build_chat() -> CachedGenerator:
    return CachedGenerator(ChatClient("some-model", EndpointServer(Engine("endpoint", max_attempts=2)), "digest"))


def serve_raw(send: Callable[[socket.socket], None], monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    """Listen, and answer every connection with `send`. Closing the returned socket ends the server."""
    listener = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setenv("RETBENCH_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}/v1")

    def answer() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, suppress(OSError):
                    connection.recv(1 << 16)
                    send(connection)

    threading.Thread(target=answer, daemon=True).start()
    return listener


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_key_does_not_follow_a_redirect(server: local_server.LocalServer, status: int) -> None:
    with local_server.start_server() as other:
        address = f"{other.address.replace('127.0.0.1', 'localhost')}/embeddings"
        server.faults = [local_server.answer_with_error(status, Location=address)]
        with pytest.raises(UsageError, match=rf"answered {status}: it redirects to localhost:\d+") as caught:
            build_client().embed_texts(["x"])
        assert "RETBENCH_ENDPOINT" in caught.value.next_step
        assert (len(server.requests), other.requests) == (1, [])


def test_a_redirect_to_a_file_is_not_followed(server: local_server.LocalServer) -> None:
    server.faults = [local_server.answer_with_error(302, Location="file:///etc/passwd")]
    with pytest.raises(UsageError, match="it redirects to another address"):
        build_client().embed_texts(["x"])


# Time and bytes


def drip(connection: socket.socket) -> None:
    """Announce a megabyte and send a byte every tenth of a second."""
    connection.sendall(OK + b"Content-Length: 1000000\r\n\r\n")
    while True:
        connection.sendall(b"x")
        time.sleep(0.1)


def drip_headers(connection: socket.socket) -> None:
    while True:
        connection.sendall(OK if not time.sleep(0.1) else b"")


def drip_until_the_end(connection: socket.socket) -> None:
    """Send a beginning without a length, so that a closed connection would be a complete answer."""
    connection.sendall(OK + b"\r\n" + b'{"data": [')
    while True:
        connection.sendall(b" ")
        time.sleep(0.1)


def send_endless_error(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 500 No\r\n\r\n")
    while True:
        connection.sendall(b"x" * 100)
        time.sleep(0.1)


@pytest.mark.parametrize("send", [drip, drip_headers, drip_until_the_end])
def test_a_slow_server_has_a_total_deadline(
    send: Callable[[socket.socket], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_raw(send, monkeypatch), pytest.raises(ResourceError, match=r"not within 0\.3 seconds"):
        build_client(timeout=0.3, max_attempts=1).embed_texts(["x"])


def test_an_endless_error_text_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_raw(send_endless_error, monkeypatch), pytest.raises(ResourceError, match=r"not within 0\.3 seconds"):
        build_client(timeout=0.3, max_attempts=1).embed_texts(["x"])


def test_an_endless_answer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_request.read_answer, "__defaults__", (3 << 20,))

    def flood(connection: socket.socket) -> None:
        connection.sendall(OK + b"\r\n")
        while True:
            connection.sendall(b"x" * 100_000)

    with serve_raw(flood, monkeypatch), pytest.raises(ResourceError, match="sent too much: the answer has over 3 MB"):
        build_client(timeout=20).embed_texts(["x"])


def test_a_cut_error_text_is_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [
        b"HTTP/1.1 500 No\r\nContent-Length: 900\r\n\r\nshort",
        b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\nzz",
    ]

    def send(connection: socket.socket) -> None:
        connection.sendall(answers.pop(0))

    with serve_raw(send, monkeypatch), pytest.raises(ResourceError, match="failed 2 times: the endpoint answered 500"):
        build_client().embed_texts(["x"])
    assert answers == []


# Ill-typed answers


@pytest.mark.parametrize(
    "embedding",
    [1.5, [[1.0]], None, "text", {}, [], [10**400], [None, "x"], [{}], True, [[1.0], [2.0, 3.0]]],
    ids=repr,
)
def test_an_ill_typed_vector_is_an_error(server: local_server.LocalServer, embedding: Any) -> None:
    content = json.dumps({"data": [{"index": 0, "embedding": embedding}]}).encode()
    server.answer = lambda body: (200, {}, content)
    with pytest.raises(ResourceError, match="did not send 1 vectors"):
        build_client(max_attempts=1).embed_texts(["x"])


BAD_MESSAGES = (
    {"content": 3}, {"content": {"a": 1}}, {"content": [1]}, {"content": [{"type": "text", "text": 3}]},
    {"content": [{"text": "x"}]}, {"content": True}, [], "x", None, {"content": [[]]},
)  # fmt: skip


@pytest.mark.parametrize("message", BAD_MESSAGES, ids=repr)
def test_a_bad_chat_answer_is_retried_and_not_kept(
    server: local_server.LocalServer, message: Any, own_cache: Path
) -> None:
    bad = json.dumps({"choices": [{"message": message}], "usage": {}}).encode()
    server.faults = [lambda body: (200, {}, bad)]
    server.answer = local_server.answer_chat(lambda body: "[2] > [1]")
    assert build_chat().generate("order", 10).text == "[2] > [1]"
    assert len(server.requests) == 2
    assert len(list((own_cache / "answers").rglob("*.json"))) == 1


@pytest.mark.parametrize("usage", [{"prompt_tokens": "many"}, {"prompt_tokens": 1e400}, 3, [1], {"prompt_tokens": []}])
def test_bad_token_counts_are_retried(server: local_server.LocalServer, usage: Any) -> None:
    bad = json.dumps({"choices": [{"message": {"content": "x"}}], "usage": usage}).encode()
    server.faults = [lambda body: (200, {}, bad)]
    server.answer = local_server.answer_chat(lambda body: "good")
    assert build_chat().generate("order", 10).text == "good"


def test_an_answer_in_parts_is_read(server: local_server.LocalServer) -> None:
    parts = [{"type": "text", "text": "[1]"}, {"type": "image", "url": "x"}, {"type": "text", "text": " > [2]"}]
    content = json.dumps({"choices": [{"message": {"content": parts}}]}).encode()
    server.answer = lambda body: (200, {}, content)
    assert build_chat().generate("order", 10).text == "[1] > [2]"


def test_half_a_surrogate_pair_in_an_answer_can_be_stored(server: local_server.LocalServer) -> None:
    server.answer = lambda body: (200, {}, b'{"choices": [{"message": {"content": "[1] \\ud83d"}}]}')
    assert build_chat().generate("order", 10).text.encode() == b"[1] ?"


def test_a_long_answer_is_parsed_in_linear_time() -> None:
    order, is_valid = parse_order("[2]" + "\n" * 2_000_000 + "and so on", 2)  # took over a minute from 60,000 lines on
    assert (order, is_valid) == ([1, 0], False)


# Keys


@pytest.mark.parametrize("end", ["\n", "\r\n", " ", "\r"])
def test_a_key_with_a_line_end_is_sent_without_it(
    server: local_server.LocalServer, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setenv("RETBENCH_ENDPOINT_KEY", SECRET + end)
    build_client().embed_texts(["x"])
    assert server.keys == [f"Bearer {SECRET}"]


@pytest.mark.parametrize("key", ["do-not\ntell", "do-not\rtell", "do-not tell", "do-not-téll"])
def test_a_key_that_cannot_be_sent_is_an_error_without_it(
    server: local_server.LocalServer, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("RETBENCH_ENDPOINT_KEY", key)
    with pytest.raises(UsageError) as caught:
        build_client().embed_texts(["x"])
    assert "RETBENCH_ENDPOINT_KEY has white space" in caught.value.cause
    assert "tell" not in str(caught.value)
    assert server.requests == []


@pytest.mark.parametrize("address", ["http://user:do-not-tell@localhost:8000/v1", "https://do-not-tell@host/v1"])
def test_a_password_in_the_address_is_refused_without_printing_it(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("RETBENCH_ENDPOINT", address)
    with pytest.raises(UsageError, match="has a user name or password") as caught:
        build_client().embed_texts(["x"])
    assert "do-not-tell" not in str(caught.value) + caught.value.next_step
    assert redact_secrets(f"no route to {address}").count("do-not-tell") == 0


@pytest.mark.parametrize("end", ["/v1?api_key=do-not-tell", "/v1/?api_key=do-not-tell#x", "/v1#do-not-tell"])
def test_a_key_in_the_address_is_refused_without_printing_it(
    server: local_server.LocalServer, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setenv("RETBENCH_ENDPOINT", server.address.removesuffix("/v1") + end)
    with pytest.raises(UsageError, match=r"has a part after \? or #") as caught:
        build_client().embed_texts(["x"])
    assert "do-not-tell" not in str(caught.value) + caught.value.next_step
    assert server.requests == []


def test_an_address_that_cannot_be_parsed_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("http://[", "http://", "http:///v1"):
        monkeypatch.setenv("RETBENCH_ENDPOINT", address)
        with pytest.raises(UsageError, match="not a web address"):
            build_client().embed_texts(["x"])


def test_encoded_keys_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETBENCH_ENDPOINT_KEY", SECRET)
    encoded = base64.b64encode(SECRET.encode()).decode()
    for form in (SECRET, quote(SECRET, safe=""), encoded, encoded.rstrip("="), json.dumps(SECRET)):
        assert redact_secrets(f"<{form}>") in ("<***>", '<"***">', "<***=>", "<***==>"), form


def test_a_short_key_is_redacted_where_it_is_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETBENCH_ENDPOINT_KEY", "abc")
    monkeypatch.setenv("OTHER_TOKEN", "true")
    assert redact_secrets("bad key abc, alphabet abcdef true") == "bad key ***, alphabet abcdef true"


def test_a_key_in_a_successful_answer_is_not_kept(server: local_server.LocalServer, own_cache: Path) -> None:
    server.answer = local_server.answer_chat(lambda body: f"[2] > [1] {SECRET}")
    assert build_chat().generate("order", 10).text == "[2] > [1] ***"
    written = [file.read_text() for file in own_cache.rglob("*.json")]
    assert written
    assert not [text for text in written if SECRET in text]
