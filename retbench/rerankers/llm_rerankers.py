"""Listwise and pointwise reranking by a language model, on whatever generator runs it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retbench.cards.reranker_settings import Listwise
from retbench.rerankers.candidates import Pool, falling, windows
from retbench.rerankers.llm_prompts import Desk, list_form, list_prompt, parsed, point_prompt

A_NUMBER = 6  # tokens that `[20] > ` may take


@dataclass(frozen=True)
class Lists:
    """The model writes the order of each window."""

    desk: Desk
    settings: Listwise

    @property
    def depth(self) -> int:
        """How many candidates it takes."""
        return self.settings.depth

    def __call__(self, pool: Pool) -> tuple[np.ndarray, np.ndarray]:
        """Window by window, from the last candidates to the first."""
        order, documents, scores = self.desk.laid_out(pool)
        places = np.arange(len(order))
        for part in windows(len(order), self.settings.window, self.settings.step):
            within = places[part]
            answer = self._ordered(
                pool.query,
                [documents[place] for place in within],
                [scores[place] for place in within] if scores else [],
            )
            places[part] = within[answer]
        return order[places], falling(len(order))

    def prompt(self, pool: Pool) -> str:
        """What would be asked first."""
        _, documents, scores = self.desk.laid_out(pool)
        part = next(windows(len(documents), self.settings.window, self.settings.step))
        return self._asked(pool.query, documents[part], scores[part])[0]

    def _asked(self, query: str, documents: list[str], scores: Sequence[str]) -> tuple[str, int]:
        """A prompt, and how many tokens its answer may have."""
        # behind an endpoint a model may think first, and a limit would cut its answer off
        enough = A_NUMBER * (len(documents) + 1) if self.settings.engine != "endpoint" else 0
        most, label = self.settings.written or enough, self.desk.label
        return self.desk.fitted(lambda shown: list_prompt(query, shown, scores, label), documents, most), most

    def _ordered(self, query: str, documents: list[str], scores: Sequence[str]) -> list[int]:
        desk, count = self.desk, len(documents)
        prompt, most = self._asked(query, documents, scores)
        answer = desk.generator.write(prompt, most, list_form(count) if self.settings.engine == "vllm" else "")
        desk.tally.add(answer)
        desk.remember(prompt, answer.text)
        order, whole = parsed(answer.text, count)
        desk.tally.repaired += not whole
        desk.tally.unanswered += not any(character.isdigit() for character in answer.text)
        return order

    def facts(self) -> dict[str, Any]:
        """Requests, tokens, and the share of answers that had to be repaired."""
        tally = self.desk.tally
        return {**vars(tally), "repair_rate": round(tally.repaired / tally.requests, 4) if tally.requests else None}

    def first(self) -> dict[str, Any]:
        """The first prompt and its answer."""
        return self.desk.shown


@dataclass(frozen=True)
class Points:
    """The model says to each document how much rather yes than no; equal odds keep the order they were shown in."""

    desk: Desk

    @property
    def depth(self) -> int:
        """How many candidates it takes."""
        return self.desk.settings.depth

    def __call__(self, pool: Pool) -> tuple[np.ndarray, np.ndarray]:
        """One prompt a document."""
        desk = self.desk
        order, documents, scores = desk.laid_out(pool)
        prompts = [self._asked(pool.query, one, scores[place : place + 1]) for place, one in enumerate(documents)]
        answers = desk.generator.odds(prompts)
        for prompt, answer in zip(prompts, answers, strict=True):
            desk.tally.add(answer)
            desk.remember(prompt, f"{answer.yes:.4f}")
        odds = np.array([answer.yes for answer in answers])
        found = np.argsort(-odds, kind="stable")
        return order[found], odds[found]

    def prompt(self, pool: Pool) -> str:
        """What would be asked first."""
        _, documents, scores = self.desk.laid_out(pool)
        return self._asked(pool.query, documents[0], scores[:1])

    def _asked(self, query: str, document: str, score: Sequence[str]) -> str:
        told, label = (score[0] if score else None), self.desk.label
        return self.desk.fitted(lambda shown: point_prompt(query, shown[0], told, label), [document], 1)

    def facts(self) -> dict[str, Any]:
        """Requests and tokens."""
        return {key: value for key, value in vars(self.desk.tally).items() if key not in ("repaired", "unanswered")}

    def first(self) -> dict[str, Any]:
        """The first prompt and its odds."""
        return self.desk.shown
