"""HTTP requests to a server with OpenAI's protocol, with retries.

The address is RETBENCH_ENDPOINT (including /v1), the key RETBENCH_ENDPOINT_KEY. Both come only from the environment and
are never written to a file. Transient errors are retried with growing waits: no answer, an incomplete answer, 429, 5xx.
Permanent errors stop the run: a wrong key, a refused request, a web page in place of an answer. So does, after two
seconds, an address where no server has answered yet: it is wrong, or the server is not started.
"""

import http
import http.client
import json
import os
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from retbench.cards.engine import Engine
from retbench.engines.request_flow import RateLimit, RequestWindow
from retbench.errors import MissingError, ResourceError, UsageError, redact_secrets
from retbench.system.http_request import MAX_ERROR_BYTES, AnswerTooLongError, StatusError, read_answer

T = TypeVar("T")

ADDRESS_VARIABLE, KEY_VARIABLE = "RETBENCH_ENDPOINT", "RETBENCH_ENDPOINT_KEY"
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
FIRST_CONTACT_ATTEMPTS = 3  # with their waits 1.5 seconds
TOO_MANY_REQUESTS = 429
BUSY = (TOO_MANY_REQUESTS, 503)
MAX_SHOWN_CHARACTERS = 200  # of the server's error message


class TransientError(Exception):
    """A request failed, but may succeed when sent again. `wait` is the delay in seconds that the server requested."""

    def __init__(self, cause: str, wait: float | None = None, is_busy: bool = False) -> None:
        super().__init__(cause)
        self.wait, self.is_busy = wait, is_busy


class NoServerError(TransientError):
    """No connection was made: nothing listens at the address, or its host is not known."""


class RefusedRequestError(UsageError):
    """The server refused a request for what it contains; `text` is its reason, for who can send something smaller."""

    def __init__(self, cause: str, next_step: str, status: int, text: str) -> None:
        super().__init__(cause, next_step)
        self.status, self.text = status, text


def get_endpoint_address() -> str:
    """The address of the server, from the environment."""
    address = os.environ.get(ADDRESS_VARIABLE)
    if not address:
        raise MissingError(
            "no endpoint address is set", f"set {ADDRESS_VARIABLE}, for example to http://localhost:8000/v1"
        )
    host = _find_host(address)
    if not host or not address.startswith(("http://", "https://")):
        raise UsageError(f"{ADDRESS_VARIABLE} is not a web address", "it must start with http:// or https://")
    if "@" in host:
        raise UsageError(
            f"{ADDRESS_VARIABLE} has a user name or password", f"leave it out, and give the key in {KEY_VARIABLE}"
        )
    if "?" in address or "#" in address:  # the path of a request is put after the address
        raise UsageError(
            f"{ADDRESS_VARIABLE} has a part after ? or #", f"leave it out, and give a key in {KEY_VARIABLE}"
        )
    return address.rstrip("/")


def _find_host(address: str) -> str:
    """The host and port of a web address; empty if there is none."""
    try:
        return urlsplit(address).netloc
    except ValueError:
        return ""


def get_endpoint_key() -> str | None:
    """The key of the server, from the environment; without the line end of the file it may come from."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise UsageError(f"{KEY_VARIABLE} has white space or a character outside of ASCII", "copy the key again")
    return key or None


@dataclass
class EndpointServer:
    """A server, with its rate limit and retries. Any thread may send requests."""

    engine: Engine
    sleep: Callable[[float], Any] | None = None  # a test's own; else the wait ends when the run is stopped
    window: RequestWindow = field(init=False)
    rate_limit: RateLimit = field(init=False)
    stopped: threading.Event = field(default_factory=threading.Event, init=False)
    was_reached: bool = field(default=False, init=False)  # so a refused connection is a fault that passes

    def __post_init__(self) -> None:
        self.window = RequestWindow(self.engine.max_in_flight)
        self.rate_limit = RateLimit(self.engine.requests_per_minute, self.engine.tokens_per_minute)

    @property
    def address(self) -> str:
        """The address of the server."""
        return get_endpoint_address()

    def post(
        self,
        path: str,
        body: dict[str, Any],
        parse: Callable[[bytes], T],
        tokens: int = 1,
        address: str | None = None,
        turn: int = 0,
    ) -> T:
        """Send a request of about so many tokens and parse the answer.

        A TransientError of `parse` also sends the request again. `address` replaces that of the environment. Of
        requests that wait, those of the lowest turn are sent first.
        """
        wait, url = FIRST_WAIT, f"{address or self.address}/{path}"
        for attempt in range(1, self.engine.max_attempts + 1):
            if self.stopped.is_set():
                raise ResourceError("the run was stopped", "run the same command to continue")
            try:
                return self._post_in_window(url, body, parse, tokens, turn)
            except TransientError as problem:
                self._require_first_contact(problem, attempt)
                if attempt == self.engine.max_attempts:
                    raise ResourceError(
                        f"the endpoint failed {self.engine.max_attempts} times: {problem}",
                        "run the same command later to continue, or give --engine endpoint:max_attempts=20",
                    ) from problem
                self._wait_after(problem, min(LONGEST_WAIT, problem.wait if problem.wait is not None else wait))
                wait *= 2
        raise UsageError("`max_attempts` must be at least 1", "give --engine endpoint:max_attempts=1 or more")

    def _require_first_contact(self, problem: TransientError, attempt: int) -> None:
        """Raise an error if no server was ever reached; one that was reached may come back."""
        if not isinstance(problem, NoServerError):
            self.was_reached = True
        elif not self.was_reached and attempt >= min(FIRST_CONTACT_ATTEMPTS, self.engine.max_attempts):
            raise MissingError(
                f"no server answers at the address in {ADDRESS_VARIABLE}: {problem}",
                "start the server, or correct the address, and run the same command again",
            ) from problem

    def _sleep(self, seconds: float) -> None:
        (self.sleep or self.stopped.wait)(seconds)

    def _wait_after(self, problem: TransientError, seconds: float) -> None:
        """Wait before the next attempt; where a busy server said how long, no request starts before."""
        if problem.is_busy and problem.wait is not None:
            self.rate_limit.hold(seconds)
        else:
            self._sleep(seconds)

    def _post_in_window(self, url: str, body: dict[str, Any], parse: Callable[[bytes], T], tokens: int, turn: int) -> T:
        epoch, amount = self.window.acquire(turn), 0
        try:
            if (wait := self.rate_limit.reserve(tokens)) > 0:
                self._sleep(wait)
            content = self._post_once(url, body)
            self.was_reached = True
            answer = parse(content)
            amount = tokens
            return answer
        except TransientError as problem:
            if problem.is_busy:
                self.window.shrink(epoch)
            raise
        finally:
            self.window.release(amount)

    def _post_once(self, url: str, body: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        if key := get_endpoint_key():
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310  # only http and https, see get_endpoint_address()
        try:
            content = read_answer(request, self.engine.timeout)
        except StatusError as problem:
            raise _translate_status(problem) from None
        except AnswerTooLongError as problem:
            step = "give --engine endpoint:batch_size=8, or check the address of the server"
            raise ResourceError(f"the endpoint sent too much: {problem}", step) from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as problem:  # timeouts are OSErrors
            reason = getattr(problem, "reason", None)
            cause = redact_secrets(str(reason or f"{problem!r}"))[:MAX_SHOWN_CHARACTERS]
            if isinstance(reason, ConnectionRefusedError | socket.gaierror):
                raise NoServerError(f"no connection ({cause})") from None
            raise TransientError(f"no complete answer ({cause})") from None
        if title := _find_web_page_title(content[:MAX_ERROR_BYTES].decode(errors="replace")):
            raise _build_web_page_error(title)
        return content


def _find_web_page_title(text: str) -> str | None:
    """The title of a web page; None if the text is no web page."""
    if not text.lstrip()[:100].lower().startswith(("<!doctype html", "<html")):
        return None
    title = re.search(r"<title[^>]*>([^<]*)", text, re.IGNORECASE)
    return redact_secrets(" ".join(title[1].split()))[:MAX_SHOWN_CHARACTERS] if title else "without a title"


def _build_web_page_error(title: str) -> UsageError:
    return UsageError(
        f"the endpoint answered with a web page ({title!r}), not with JSON",
        f"set {ADDRESS_VARIABLE} to the address of an API, which ends in /v1; a proxy or a login may be in between",
    )


def _translate_status(problem: StatusError) -> Exception:
    """Turn a status into an error of this package. Secrets are removed from the server's message."""
    message = redact_secrets(problem.text)[:MAX_SHOWN_CHARACTERS]
    cause = f"the endpoint answered {problem.status}: {' '.join(message.split())}"
    if problem.status == TOO_MANY_REQUESTS or problem.status >= 500:
        retry_after = problem.headers.get("Retry-After", "")
        wait = float(retry_after) if re.fullmatch("[0-9]{1,6}", retry_after) else None
        return TransientError(cause, wait, is_busy=problem.status in BUSY)
    if problem.status in (401, 403):
        return MissingError(cause, f"set {KEY_VARIABLE} to a key of this server")
    if 300 <= problem.status < 400:
        return _build_redirect_error(problem)
    if title := _find_web_page_title(problem.text):
        return _build_web_page_error(title)
    if problem.status == http.HTTPStatus.NOT_FOUND and not get_endpoint_address().endswith("/v1"):
        step = f"set {ADDRESS_VARIABLE} to the address of the server's API, which ends in /v1"
    else:
        step = "check --engine endpoint:model=NAME, and whether a text is too long for the model"
    return RefusedRequestError(cause, step, problem.status, redact_secrets(problem.text))


def _build_redirect_error(problem: StatusError) -> UsageError:
    host = redact_secrets(_find_host(problem.headers.get("Location", ""))) or "another address"
    return UsageError(
        f"the endpoint answered {problem.status}: it redirects to {host}, and the key is not sent elsewhere",
        f"set {ADDRESS_VARIABLE} to the final address, if you trust it",
    )
