"""How fast requests are sent to a server: how many are in flight at once, and how many start in a minute.

The number in flight grows while the throughput rises, and halves when the server says that it is busy. Only times
depend on it, never the content of a request or the order of its answers.
"""

import threading
import time
from collections.abc import Callable

FIRST_IN_FLIGHT = 4
MIN_GAIN = 1.1  # how much the throughput must rise for the number in flight to grow again


class RequestWindow:
    """The number of requests in flight. A round is as many answers as requests may be in flight."""

    def __init__(self, most: int, read_clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.read_clock = max(1, most), read_clock
        self.size, self.in_flight, self.largest = min(FIRST_IN_FLIGHT, self.most), 0, 0
        self.ceiling, self.epoch = self.most, 0
        self.best_rate, self.round_started, self.round_answers, self.round_amount = 0.0, read_clock(), 0, 0
        self.waiting: list[int] = []  # the turn of each request that waits
        self.changed = threading.Condition()

    def acquire(self, turn: int = 0) -> int:
        """Wait until a request may be sent, those of the lowest turn first.

        Returns the epoch, the number of times the window has shrunk.
        """
        with self.changed:
            self.waiting.append(turn)
            try:
                self.changed.wait_for(lambda: self.in_flight < self.size and turn == min(self.waiting))
            finally:
                self.waiting.remove(turn)
            self.in_flight += 1
            self.changed.notify_all()  # the next turn may have room too
            self.largest = max(self.largest, self.in_flight)
            return self.epoch

    def release(self, amount: int = 0) -> None:
        """A request has ended; `amount` is what it brought, nothing if it failed."""
        with self.changed:
            self.in_flight -= 1
            if amount:
                self.round_answers, self.round_amount = self.round_answers + 1, self.round_amount + amount
                if self.round_answers >= max(self.size, FIRST_IN_FLIGHT):
                    self._end_round()
            self.changed.notify_all()

    def _end_round(self) -> None:
        now = self.read_clock()
        rate = self.round_amount / max(now - self.round_started, 1e-9)
        if rate > MIN_GAIN * self.best_rate:
            self.best_rate = rate
            self.size = min(self.ceiling, 2 * self.size)
        self.round_started, self.round_answers, self.round_amount = now, 0, 0

    def shrink(self, epoch: int) -> None:
        """The server is busy: halve, once for all requests of one epoch, and never come back to that size."""
        with self.changed:
            if epoch != self.epoch:
                return
            self.epoch += 1
            self.ceiling = max(1, self.size - 1)
            self.size, self.best_rate = max(1, self.size // 2), 0.0
            self.round_started, self.round_answers, self.round_amount = self.read_clock(), 0, 0


class RateLimit:
    """The earliest start of the next request, so that a minute has at most so many requests and tokens; 0: no limit."""

    def __init__(self, requests_per_minute: int, tokens_per_minute: int) -> None:
        self.requests_per_minute, self.tokens_per_minute = requests_per_minute, tokens_per_minute
        self.next_start = -1e9
        self.lock = threading.Lock()

    def reserve(self, tokens: int) -> float:
        """Take the next place; return the seconds to wait for it."""
        with self.lock:
            now = time.monotonic()
            start = max(now, self.next_start)
            by_requests = 60 / self.requests_per_minute if self.requests_per_minute else 0.0
            by_tokens = 60 * tokens / self.tokens_per_minute if self.tokens_per_minute else 0.0
            self.next_start = start + max(by_requests, by_tokens)
            return start - now

    def hold(self, seconds: float) -> None:
        """Start no request for so many seconds: the server asked for it."""
        with self.lock:
            self.next_start = max(self.next_start, time.monotonic() + seconds)
