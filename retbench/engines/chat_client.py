"""Any server with OpenAI's /v1/chat/completions: a prompt in, an answer out, and what it took in tokens.

The server's own template, its own limits: what a model thinks before it answers is its own business, and without a
limit asked for none is sent. Without log-probabilities there are no odds, and that is said.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from retbench.cards.text_parsers import parse_json
from retbench.engines.generator import GeneratedAnswer
from retbench.engines.http_client import EndpointServer, TransientError
from retbench.errors import UsageError

TOP_LOGPROBS = 20  # the most likely tokens a server is asked to name


@dataclass(frozen=True)
class ChatClient:
    """One model behind one server."""

    name: str
    server: EndpointServer
    address_digest: str  # a digest of the server's address: another server's model of that name is another model

    def describe(self) -> dict[str, Any]:
        """Which server, and the name it knows the model by."""
        return {"engine": "endpoint", "served": self.name, "at": self.address_digest}

    def generate(self, prompt: str, max_tokens: int, pattern: str = "") -> GeneratedAnswer:
        """The answer to one prompt; no limit where `most` is 0."""
        return self._complete(prompt, {"max_tokens": max_tokens} if max_tokens else {}, _read_text)

    def score_yes_no(self, prompts: Sequence[str]) -> list[GeneratedAnswer]:
        """For every prompt, the likeliest tokens that say yes against those that say no."""
        wanted = {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return [self._complete(prompt, wanted, _read_log_odds) for prompt in prompts]

    def _complete(
        self, prompt: str, wanted: dict[str, Any], take: Callable[[dict[str, Any]], tuple[str, float]]
    ) -> GeneratedAnswer:
        turns = [{"role": "user", "content": prompt}]
        body = {"model": self.name, "messages": turns, "temperature": 0, **wanted}

        def read(content: bytes) -> GeneratedAnswer:
            try:
                found = parse_json(content)
                text, odds = take(found["choices"][0])
                usage = found.get("usage") or {}
                return GeneratedAnswer(
                    text, odds, int(usage.get("prompt_tokens", 0)), int(usage.get("completion_tokens", 0))
                )
            except (ValueError, KeyError, IndexError, TypeError, AttributeError) as problem:
                raise TransientError(f"an answer without a message ({problem!r:.80})") from None

        return self.server.post("chat/completions", body, read)

    def truncate_texts(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        """Each text's first words: whose tokens they would be, only the server knows."""
        return [" ".join(text.split()[:max_tokens]) for text in texts]

    def fits_context(self, prompt: str, max_tokens: int) -> bool:
        """Only the server knows; it refuses what does not fit."""
        return True


def _read_text(choice: dict[str, Any]) -> tuple[str, float]:
    return choice["message"].get("content") or "", 0.0


def _read_log_odds(choice: dict[str, Any]) -> tuple[str, float]:
    if not (choice.get("logprobs") or {}).get("content"):
        raise UsageError("the server gives no log-probabilities", "use listwise, or another server")
    likely = choice["logprobs"]["content"][0]["top_logprobs"]
    unseen = min(float(token["logprob"]) for token in likely)

    def spelled(word: str) -> float:
        values = [float(token["logprob"]) for token in likely if token["token"].strip().lower() == word]
        top = max(values, default=unseen)  # a server may say -9999, whose power is nothing
        return top + math.log(sum(math.exp(value - top) for value in values or [unseen]))

    return "", spelled("yes") - spelled("no")
