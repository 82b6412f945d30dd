"""Kept answers: by the content of the request, so that nothing is paid for twice, whatever stopped a run.

$RETBENCH_CACHE/answers/<model>/<2 letters>/<digest>.json
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retbench.cards.decode import from_json
from retbench.cards.user_config import cache_folder, path_part
from retbench.engines.generator import Answer, Generator
from retbench.store.key import digest
from retbench.store.shard_store import write_whole


@dataclass
class Kept:
    """A generator whose answers are kept; `again` counts those that were there already."""

    inner: Generator
    again: int = 0

    @property
    def name(self) -> str:
        """The model's name."""
        return self.inner.name

    def describe(self) -> dict[str, Any]:
        """What decides an answer."""
        return self.inner.describe()

    def cut(self, texts: Sequence[str], most: int) -> list[str]:
        """Each text's beginning, as the model counts."""
        return self.inner.cut(texts, most)

    def fits(self, prompt: str, most: int) -> bool:
        """Whether prompt and answer fit into the context."""
        return self.inner.fits(prompt, most)

    @property
    def folder(self) -> Path:
        """Where this model's answers lie."""
        return cache_folder() / "answers" / path_part(self.inner.name)

    def write(self, prompt: str, most: int, form: str = "") -> Answer:
        """The kept answer, or a new one."""
        held = {"form": form} if form else {}
        file = self._file({"prompt": prompt, "most": most, **held})
        return self._found(file) or self._keep(file, self.inner.write(prompt, most, form))

    def odds(self, prompts: Sequence[str]) -> list[Answer]:
        """The kept odds, and new ones for what is missing."""
        files = [self._file({"prompt": prompt, "odds": True}) for prompt in prompts]
        known = [self._found(file) for file in files]
        missing = [prompt for prompt, found in zip(prompts, known, strict=True) if found is None]
        new = iter(self.inner.odds(missing) if missing else [])
        return [found or self._keep(file, next(new)) for file, found in zip(files, known, strict=True)]

    def _file(self, request: dict[str, Any]) -> Path:
        name = digest({**self.inner.describe(), **request})
        return self.folder / name[:2] / f"{name[2:34]}.json"

    def _found(self, file: Path) -> Answer | None:
        try:
            found = Answer(**from_json(file.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):  # not asked yet, or half written by a full disk
            return None
        self.again += 1
        return found

    def _keep(self, file: Path, answer: Answer) -> Answer:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(answer._asdict()).encode())
        return answer
