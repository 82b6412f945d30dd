"""HTTP requests that end: with a total deadline and a limit of bytes, or, for downloads, a deadline of the headers.

urllib follows a redirect with all headers, so a server could have the API key sent to another host. Its timeout counts
from one packet to the next, so a server that sends a byte a second would never end.
"""

import http.client
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.message import Message
from typing import Any

MAX_ANSWER_BYTES = 256 << 20  # about 1,000 vectors of 10,000 numbers
MAX_ERROR_BYTES = 10_000  # of the text that explains a refusal
CHUNK_BYTES = 1 << 20


class AnswerTooLongError(Exception):
    """A server sent more bytes than the limit."""


class StatusError(Exception):
    """A server answered with a status that is not 2xx; redirects are such a status too."""

    def __init__(self, status: int, headers: Message, text: str) -> None:
        super().__init__(status)
        self.status, self.headers, self.text = status, headers, text


def read_answer(request: urllib.request.Request, seconds: float, max_bytes: int = MAX_ANSWER_BYTES) -> bytes:
    """Send a request and read its answer. Raises StatusError, AnswerTooLongError, HTTPException or OSError."""
    with _limit_time(seconds, "not") as deadline:
        return _send(request, deadline, max_bytes)


@contextmanager
def open_download(request: urllib.request.Request, seconds: float) -> Iterator[Any]:
    """Open an answer whose headers must arrive within `seconds`; its bytes are read by the caller.

    Redirects are followed, because the request has no key. Raises HTTPError, HTTPException or OSError.
    """
    with _limit_time(seconds, "no answer") as deadline:
        answer = _build_opener(deadline, urllib.request.HTTPRedirectHandler()).open(request, timeout=seconds)
    with answer:
        yield answer


def _send(request: urllib.request.Request, deadline: "_Deadline", max_bytes: int) -> bytes:
    try:
        with _build_opener(deadline).open(request, timeout=deadline.seconds) as answer:
            return _read_bytes(answer, max_bytes)
    except urllib.error.HTTPError as problem:
        with problem, suppress(http.client.HTTPException, OSError):  # the status counts, even if its text is cut short
            text = problem.read(MAX_ERROR_BYTES).decode(errors="replace")
            raise StatusError(problem.code, problem.headers, text) from None
        raise StatusError(problem.code, problem.headers, "") from None


def _read_bytes(answer: Any, max_bytes: int) -> bytes:
    content = bytearray()
    while chunk := answer.read(CHUNK_BYTES):
        content += chunk
        if len(content) > max_bytes:
            raise AnswerTooLongError(f"the answer has over {max_bytes >> 20} MB")
    if answer.length:  # bytes that were announced and did not come: a read of a limited size says nothing
        raise http.client.IncompleteRead(bytes(content), answer.length)
    return bytes(content)


class _Deadline:
    """Shuts the connections of a request when its time is over; a read that waits then ends."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.is_over = False
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        """Stop the time."""
        self._timer.cancel()

    def _end(self) -> None:
        self.is_over = True
        for connected in self._sockets:
            with suppress(OSError):  # already closed
                socket.socket.shutdown(connected, socket.SHUT_RDWR)

    def track(self, connection_class: type[http.client.HTTPConnection]) -> Any:
        """A connection class whose sockets are shut at the end."""
        sockets = self._sockets

        class TrackedConnection(connection_class):  # type: ignore[misc, valid-type]  # http or https
            def connect(self) -> None:
                super().connect()
                sockets.append(self.sock)

        return TrackedConnection


@contextmanager
def _limit_time(seconds: float, what: str) -> Iterator[_Deadline]:
    """Run a block with a deadline. Raises TimeoutError("{what} within {seconds} seconds") after it."""
    deadline = _Deadline(seconds)
    problem: Exception | None = None
    try:
        yield deadline
    except Exception as raised:
        if not deadline.is_over:
            raise  # else a read failed because the connection was shut, with any kind of error: told as the deadline
        problem = raised
    finally:
        deadline.cancel()
    if deadline.is_over:  # also without an error: what a shut connection has sent can look like a complete answer
        raise TimeoutError(f"{what} within {seconds:g} seconds") from problem


def _build_opener(deadline: _Deadline, *more: urllib.request.BaseHandler) -> urllib.request.OpenerDirector:
    """Open http and https only, through the user's proxy if there is one; redirects only if `more` handles them."""

    class HTTPHandler(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> Any:
            return self.do_open(deadline.track(http.client.HTTPConnection), req)

    class HTTPSHandler(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> Any:
            return self.do_open(deadline.track(http.client.HTTPSConnection), req)

    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(), urllib.request.UnknownHandler(), HTTPHandler(), HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPErrorProcessor(), *more,
    ):  # fmt: skip
        opener.add_handler(handler)
    return opener
