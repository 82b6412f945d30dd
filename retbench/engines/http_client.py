"""A server with OpenAI's protocol, over a network that fails now and then: one request, sent until it is answered.

The address is RETBENCH_ENDPOINT (up to and with /v1), the key RETBENCH_ENDPOINT_KEY; both come from the environment
alone, and neither is ever written down. What may pass is tried again, later each time: no answer, half an answer, 429,
5xx. What will not pass stops the run at once: a wrong key, a refused request.
"""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from retbench.cards.engine import Engine
from retbench.errors import MissingError, ResourceError, UsageError, redact_secrets

T = TypeVar("T")

ADDRESS_VARIABLE, KEY_VARIABLE = "RETBENCH_ENDPOINT", "RETBENCH_ENDPOINT_KEY"
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
TOO_MANY_REQUESTS = 429
MAX_SHOWN_CHARACTERS = 200  # characters of a server's own words


class TransientError(Exception):
    """This try failed; the next may not. `wait` is what the server asked for, in seconds."""

    def __init__(self, cause: str, wait: float | None = None) -> None:
        super().__init__(cause)
        self.wait = wait


def get_endpoint_address() -> str:
    """Where the server is."""
    found = os.environ.get(ADDRESS_VARIABLE)
    if not found:
        raise MissingError("no server is named", f"set {ADDRESS_VARIABLE}, for example to http://localhost:8000/v1")
    if not found.startswith(("http://", "https://")):
        raise UsageError(f"{ADDRESS_VARIABLE} is not a web address", "begin it with http:// or https://")
    return found.rstrip("/")


@dataclass
class EndpointServer:
    """The way to a server, and the patience for it."""

    engine: Engine
    sleep: Callable[[float], None] = time.sleep
    last_sent: float = field(default=-1e9, init=False)

    def post(self, path: str, body: dict[str, Any], parse: Callable[[bytes], T]) -> T:
        """What `read` makes of the answer; when it raises PassingError the request is sent again."""
        wait = FIRST_WAIT
        for left in reversed(range(self.engine.tries)):
            try:
                return parse(self._post_once(path, body))
            except TransientError as problem:
                if not left:
                    raise ResourceError(
                        f"the endpoint failed {self.engine.tries} times: {problem}",
                        "try later: the same command goes on where this stopped; or --engine endpoint:tries=20",
                    ) from problem
                self.sleep(min(LONGEST_WAIT, problem.wait if problem.wait is not None else wait))
                wait *= 2
        raise UsageError("an endpoint is tried at least once", "give --engine endpoint:tries=1 or more")

    def _post_once(self, path: str, body: dict[str, Any]) -> bytes:
        self._wait_for_rate_limit()
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{get_endpoint_address()}/{path}", json.dumps(body).encode(), headers)  # noqa: S310  # address() lets only http and https through
        try:
            with urllib.request.urlopen(request, timeout=self.engine.timeout) as answer:  # noqa: S310  # as above
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as problem:
            raise _translate_http_error(problem) from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as problem:  # timeouts are OSErrors
            raise TransientError(f"no whole answer ({getattr(problem, 'reason', None) or problem!r})") from None

    def _wait_for_rate_limit(self) -> None:
        if self.engine.per_minute:
            wait = self.last_sent + 60 / self.engine.per_minute - time.monotonic()
            if wait > 0:
                self.sleep(wait)
        self.last_sent = time.monotonic()


def _translate_http_error(problem: urllib.error.HTTPError) -> Exception:
    """An HTTP status as what it means for the run; the key may be in a server's words and must not get out."""
    words = redact_secrets(problem.read().decode(errors="replace"))[:MAX_SHOWN_CHARACTERS]
    told = f"the endpoint says {problem.code}: {' '.join(words.split())}"
    if problem.code == TOO_MANY_REQUESTS or problem.code >= 500:
        asked = problem.headers.get("Retry-After", "")
        return TransientError(told, float(asked) if asked.isdecimal() else None)
    if problem.code in (401, 403):
        return MissingError(told, f"set {KEY_VARIABLE} to a key of this server")
    return UsageError(told, "see --engine endpoint:model=NAME, and whether a text is longer than the model takes")
