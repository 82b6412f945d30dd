"""A client for servers with OpenAI's /v1/chat/completions: sends a prompt, returns the answer and its token counts.

The server applies its own chat template and limits. A limit is sent only if one is given. Yes/no scores need
log-probabilities; a server without them gets an error.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from retbench.engines.generator import GeneratedAnswer
from retbench.engines.http_client import EndpointServer, TransientError, get_endpoint_key
from retbench.errors import UsageError, redact_value
from retbench.system.text_parsers import parse_json

TOP_LOGPROBS = 20  # the number of most likely tokens requested


@dataclass(frozen=True)
class ChatClient:
    """One model of one server."""

    name: str
    server: EndpointServer
    address_digest: str  # digest of the server's address, because two servers may use one name for different models
    reasoning_limit: int = 0  # no limit is sent by default, so a reasoning model is not cut

    def describe(self) -> dict[str, Any]:
        """The server, and its name for the model."""
        return {"engine": "endpoint", "served": self.name, "at": self.address_digest}

    def generate(self, prompt: str, max_tokens: int, pattern: str = "") -> GeneratedAnswer:
        """The answer to one prompt; no limit if `max_tokens` is 0."""
        return self._complete(prompt, {"max_tokens": max_tokens} if max_tokens else {}, _read_text)

    def score_yes_no(self, prompts: Sequence[str]) -> list[GeneratedAnswer]:
        """For each prompt, the log-odds of yes against no, from the most likely first tokens."""
        options = {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
        return [self._complete(prompt, options, _read_log_odds) for prompt in prompts]

    def _complete(
        self, prompt: str, options: dict[str, Any], read_choice: Callable[[dict[str, Any]], tuple[str, float]]
    ) -> GeneratedAnswer:
        messages = [{"role": "user", "content": prompt}]
        body = {"model": self.name, "messages": messages, "temperature": 0, **options}

        def parse(content: bytes) -> GeneratedAnswer:
            try:
                reply = parse_json(content)
                choice, usage = reply["choices"][0], reply.get("usage") or {}
                text, log_odds = read_choice(choice)
                read, written = (int(usage.get(key, 0)) for key in ("prompt_tokens", "completion_tokens"))
                if not math.isfinite(log_odds):
                    raise ValueError("the log-probabilities are not finite")
                return GeneratedAnswer(text, log_odds, read, written, choice.get("finish_reason") == "length")
            except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as problem:
                raise TransientError(f"the server sent an answer without a message ({problem!r:.80})") from None

        return self.server.post("chat/completions", body, parse)

    def truncate_texts(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        """The first words of each text, because the server's tokenizer is not known."""
        return [" ".join(text.split()[:max_tokens]) for text in texts]

    def fits_context(self, prompt: str, max_tokens: int) -> bool:
        """Always True: the context length is not known, and the server refuses prompts that are too long."""
        return True


def _read_text(choice: dict[str, Any]) -> tuple[str, float]:
    """The text of an answer, which some servers send in parts; without the key, should the server repeat it."""
    content = choice["message"].get("content") or ""
    text = content if isinstance(content, str) else "".join(_read_part(part) for part in content)
    text = text.encode("utf-8", "replace").decode()  # half a surrogate pair could not be stored
    key = get_endpoint_key()
    return redact_value(text, key) if key else text, 0.0


def _read_part(part: dict[str, Any]) -> str:
    text = part["text"] if part["type"] == "text" else ""
    if not isinstance(text, str):
        raise TypeError(f"a part is {type(text).__name__}, not text")
    return text


def _read_log_odds(choice: dict[str, Any]) -> tuple[str, float]:
    if not (choice.get("logprobs") or {}).get("content"):
        raise UsageError("the server sends no log-probabilities", "use --rerank listwise, or another server")
    likely = choice["logprobs"]["content"][0]["top_logprobs"]
    unseen = min(float(token["logprob"]) for token in likely)

    def sum_spellings(word: str) -> float:
        values = [float(token["logprob"]) for token in likely if token["token"].strip().lower() == word]
        top = max(values, default=unseen)  # subtracting it avoids underflow: a server may send -9999
        return top + math.log(sum(math.exp(value - top) for value in values or [unseen]))

    return "", sum_spellings("yes") - sum_spellings("no")
