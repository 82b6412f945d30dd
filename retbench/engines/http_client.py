"""HTTP requests to a server with OpenAI's protocol, with retries.

The address is RETBENCH_ENDPOINT (including /v1), the key RETBENCH_ENDPOINT_KEY. Both come only from the environment and
are never written to a file. Transient errors are retried with growing waits: no answer, an incomplete answer, 429, 5xx.
Permanent errors stop the run: a wrong key, a refused request.
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
MAX_SHOWN_CHARACTERS = 200  # of the server's error message


class TransientError(Exception):
    """A request failed, but may succeed when sent again. `wait` is the delay in seconds that the server requested."""

    def __init__(self, cause: str, wait: float | None = None) -> None:
        super().__init__(cause)
        self.wait = wait


def get_endpoint_address() -> str:
    """The address of the server, from the environment."""
    address = os.environ.get(ADDRESS_VARIABLE)
    if not address:
        raise MissingError(
            "no endpoint address is set", f"set {ADDRESS_VARIABLE}, for example to http://localhost:8000/v1"
        )
    if not address.startswith(("http://", "https://")):
        raise UsageError(f"{ADDRESS_VARIABLE} is not a web address", "it must start with http:// or https://")
    return address.rstrip("/")


@dataclass
class EndpointServer:
    """A server, with its rate limit and retries."""

    engine: Engine
    sleep: Callable[[float], None] = time.sleep
    last_sent: float = field(default=-1e9, init=False)

    def post(self, path: str, body: dict[str, Any], parse: Callable[[bytes], T]) -> T:
        """Send a request and parse the answer. A TransientError of `parse` also sends the request again."""
        wait = FIRST_WAIT
        for remaining in reversed(range(self.engine.max_attempts)):
            try:
                return parse(self._post_once(path, body))
            except TransientError as problem:
                if not remaining:
                    raise ResourceError(
                        f"the endpoint failed {self.engine.max_attempts} times: {problem}",
                        "run the same command later to continue, or give --engine endpoint:max_attempts=20",
                    ) from problem
                self.sleep(min(LONGEST_WAIT, problem.wait if problem.wait is not None else wait))
                wait *= 2
        raise UsageError("`max_attempts` must be at least 1", "give --engine endpoint:max_attempts=1 or more")

    def _post_once(self, path: str, body: dict[str, Any]) -> bytes:
        self._wait_for_rate_limit()
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{get_endpoint_address()}/{path}", json.dumps(body).encode(), headers)  # noqa: S310  # only http and https, see get_endpoint_address()
        try:
            with urllib.request.urlopen(request, timeout=self.engine.timeout) as answer:  # noqa: S310  # as above
                content: bytes = answer.read()
                return content
        except urllib.error.HTTPError as problem:
            raise _translate_http_error(problem) from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as problem:  # timeouts are OSErrors
            raise TransientError(f"no complete answer ({getattr(problem, 'reason', None) or problem!r})") from None

    def _wait_for_rate_limit(self) -> None:
        if self.engine.requests_per_minute:
            wait = self.last_sent + 60 / self.engine.requests_per_minute - time.monotonic()
            if wait > 0:
                self.sleep(wait)
        self.last_sent = time.monotonic()


def _translate_http_error(problem: urllib.error.HTTPError) -> Exception:
    """Turn an HTTP error into an error of this package. Secrets are removed from the server's message."""
    message = redact_secrets(problem.read().decode(errors="replace"))[:MAX_SHOWN_CHARACTERS]
    cause = f"the endpoint answered {problem.code}: {' '.join(message.split())}"
    if problem.code == TOO_MANY_REQUESTS or problem.code >= 500:
        retry_after = problem.headers.get("Retry-After", "")
        return TransientError(cause, float(retry_after) if retry_after.isdecimal() else None)
    if problem.code in (401, 403):
        return MissingError(cause, f"set {KEY_VARIABLE} to a key of this server")
    return UsageError(cause, "check --engine endpoint:model=NAME, and whether a text is too long for the model")
