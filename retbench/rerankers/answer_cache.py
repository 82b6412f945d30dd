"""A cache of language-model answers by the content of the request: an interrupted run never pays for an answer twice.

Files: $RETBENCH_CACHE/answers/<model>/<2 letters>/<digest>.json
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retbench.engines.generator import GeneratedAnswer, Generator
from retbench.store.digest import compute_digest
from retbench.system.checked_json import encode_checked_json, parse_checked_json
from retbench.system.durable_files import write_file_atomically
from retbench.system.user_config import encode_path_part, get_cache_folder

STORED_KEYS = ("text", "yes", "read", "written", "cut")  # the fields of GeneratedAnswer, in order


@dataclass
class CachedGenerator:
    """A generator with a cache of its answers; `cache_hits` counts the answers read from the cache."""

    inner: Generator
    cache_hits: int = 0

    @property
    def name(self) -> str:
        """The model's name."""
        return self.inner.name

    @property
    def reasoning_limit(self) -> int:
        """The answer tokens of a reasoning model; 0 for any other."""
        return self.inner.reasoning_limit

    def describe(self) -> dict[str, Any]:
        """Return the settings of the model that decide an answer."""
        return self.inner.describe()

    def truncate_texts(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        """Cut each text to its first tokens."""
        return self.inner.truncate_texts(texts, max_tokens)

    def fits_context(self, prompt: str, max_tokens: int) -> bool:
        """Return whether prompt and answer fit into the context."""
        return self.inner.fits_context(prompt, max_tokens)

    @property
    def folder(self) -> Path:
        """The folder of this model's answers."""
        return get_cache_folder() / "answers" / encode_path_part(self.inner.name)

    def generate(self, prompt: str, max_tokens: int, pattern: str = "") -> GeneratedAnswer:
        """Return the cached answer, or generate and store it."""
        request = {"form": pattern} if pattern else {}
        file = self._answer_file({"prompt": prompt, "most": max_tokens, **request})
        return self._load_answer(file) or self._store_answer(file, self.inner.generate(prompt, max_tokens, pattern))

    def score_yes_no(self, prompts: Sequence[str]) -> list[GeneratedAnswer]:
        """Return the cached log-odds of each prompt, and compute and store the missing ones."""
        files = [self._answer_file({"prompt": prompt, "odds": True}) for prompt in prompts]
        cached = [self._load_answer(file) for file in files]
        missing = [prompt for prompt, answer in zip(prompts, cached, strict=True) if answer is None]
        new = iter(self.inner.score_yes_no(missing) if missing else [])
        return [answer or self._store_answer(file, next(new)) for file, answer in zip(files, cached, strict=True)]

    def _answer_file(self, request: dict[str, Any]) -> Path:
        key = compute_digest({**self.inner.describe(), **request})
        return self.folder / key[:2] / f"{key[2:34]}.json"

    def _load_answer(self, file: Path) -> GeneratedAnswer | None:
        try:
            stored = {"cut": False, **parse_checked_json(file.read_bytes())}  # an earlier version did not say
            answer = GeneratedAnswer(*(stored[key] for key in STORED_KEYS))
        except (FileNotFoundError, ValueError, KeyError):  # not asked yet, or damaged on disk
            return None
        if not (isinstance(answer.text, str) and isinstance(answer.log_odds, float)):
            return None  # kept by an earlier version, which did not check what a server sent
        self.cache_hits += 1
        return answer

    def _store_answer(self, file: Path, answer: GeneratedAnswer) -> GeneratedAnswer:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file_atomically(file, encode_checked_json(dict(zip(STORED_KEYS, answer, strict=True))))
        return answer
