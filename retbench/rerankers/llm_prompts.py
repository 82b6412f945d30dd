"""Asking a language model about candidates (InsertRank, arXiv 2506.14086): what is shown, and how an answer is read.

The paper's wording is not published; ours keeps the order of a re-implementation: a sentence that announces the scores,
the query, every document with its index and on the next line its score, then the request.
"""

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from retbench.cards.reranker_settings import Pointwise
from retbench.engines.generator import Answer, Generator
from retbench.errors import UsageError
from retbench.rerankers.candidates import Pool
from retbench.rerankers.shares import LEAST, largest

WORD = re.compile(r"\[?\d+\]?(?:\s*(?:>|,|\n)\s*\[?\d+\]?)*\.?")
DIGITS = 9  # no list is as long as a longer number


@dataclass
class Tally:
    """What was asked and answered, over all queries."""

    requests: int = 0
    read: int = 0
    written: int = 0
    prompts_cut: int = 0
    repaired: int = 0
    unanswered: int = 0

    def add(self, answer: Answer) -> None:
        """Count one answer."""
        self.requests += 1
        self.read += answer.read
        self.written += answer.written


@dataclass
class Desk:
    """What both ways of asking share: texts, scores, controls, and prompts that fit."""

    generator: Generator
    settings: Pointwise
    texts: Callable[[int], str]
    label: str  # what the scores are
    tally: Tally = field(default_factory=Tally)
    shown: dict[str, Any] = field(default_factory=dict)

    def laid_out(self, pool: Pool) -> tuple[np.ndarray, list[str], list[str]]:
        """The candidates in the order they are shown, as positions; their texts and their scores, in that order."""
        draw = np.random.default_rng([self.settings.seed, zlib.crc32(pool.query.encode())])
        count = len(pool.rows)
        order = draw.permutation(count) if self.settings.order == "shuffled" else np.arange(count)
        documents = self.generator.cut([self.texts(int(row)) for row in pool.rows[order]], self.settings.cut)
        scores = scaled(pool.scores, self.settings.scores, draw)
        return order, documents, [scores[place] for place in order] if scores else []

    def fitted(self, make: Callable[[Sequence[str]], str], documents: list[str], most: int) -> str:
        """A prompt that fits; where it does not, every document may have the same share, the largest that fits."""
        prompt = make(documents)
        if self.generator.fits(prompt, most):
            return prompt
        self.tally.prompts_cut += 1
        best = largest(
            self.settings.cut,
            lambda share: make(self.generator.cut(documents, share)),
            lambda shorter: self.generator.fits(shorter, most),
        )
        if best is None:
            raise UsageError(
                f"a prompt with {len(documents)} documents of {LEAST} tokens does not fit into the context of "
                f"{self.generator.name}",
                "give a smaller window=, or a model with a longer context",
            )
        return best

    def remember(self, prompt: str, answer: str) -> None:
        """Keep the first prompt and its answer."""
        self.shown = self.shown or {"prompt": prompt, "answer": answer}


def scaled(scores: np.ndarray, how: str, draw: np.random.Generator) -> list[str]:
    """The scores as they are written; none where none are."""
    if how == "none":
        return []
    if how == "shuffled":
        return [f"{score:.3f}" for score in draw.permutation(scores)]
    if how == "raw":
        return [f"{score:.3f}" for score in scores]
    low, high = float(scores.min()), float(scores.max())
    between = (scores - low) / (high - low) if high > low else np.ones(len(scores))
    return [f"{100 * score:.1f}" if how == "percent" else f"{score:.3f}" for score in between]


def with_score(document: str, label: str, scores: Sequence[str], place: int) -> str:
    """A document, and on the next line its score."""
    return f"{document}\n{label}: {scores[place]}" if scores else document


def list_prompt(query: str, documents: Sequence[str], scores: Sequence[str], label: str) -> str:
    """The prompt for the order of a list."""
    announced = (
        f"Each passage is given with its {label}, which a first search gave it for the query.\n\n" if scores else ""
    )
    listed = "\n\n".join(
        f"[{place + 1}] {with_score(document, label, scores, place)}" for place, document in enumerate(documents)
    )
    by = "their content and their scores" if scores else "their content"
    return (
        f"{announced}Query: {query}\n\n{listed}\n\n"
        f"Rank the {len(documents)} passages above by how well they answer the query, by {by}. Answer only with all "
        f"{len(documents)} numbers, the best passage first, in this form: [best] > [second] > ... > [worst]"
    )


def list_form(count: int) -> str:
    """The form of an answer to it, for an engine that holds a model to one; a number may still come twice."""
    number = rf"\[({'|'.join(map(str, range(1, count + 1)))})\]"
    return f"{number}( > {number}){{{count - 1}}}"


def point_prompt(query: str, document: str, score: str | None, label: str) -> str:
    """The prompt for one document."""
    announced = (
        f"The passage is given with its {label}, which a first search gave it for the query.\n\n" if score else ""
    )
    shown = with_score(document, label, [score] if score else [], 0)
    return (
        f"{announced}Query: {query}\n\nPassage: {shown}\n\n"
        "Does the passage answer the query? Answer only with yes or no."
    )


def parsed(answer: str, count: int) -> tuple[list[int], bool]:
    """The order an answer gives, as positions, and whether it is one: every number once and nothing else.

    What is not is repaired by rule: the numbers that stand in it are taken in their order, each once; those that are
    missing follow in the order they were shown. A model's thoughts before its answer are not read.
    """
    said = answer.rpartition("</think>")[2].strip()
    strict = WORD.fullmatch(said.removeprefix("[").removesuffix("]") if _is_json(said) else said) is not None
    numbers = re.findall(r"\[(\d+)\]", said) or re.findall(r"\d+", said)
    found = [int(number[:DIGITS]) - 1 for number in numbers]
    known = list(dict.fromkeys(place for place in found if 0 <= place < count))
    order = known + [place for place in range(count) if place not in known]
    return order, strict and sorted(found) == list(range(count))


def _is_json(said: str) -> bool:
    return re.fullmatch(r"\[\s*\d+(\s*,\s*\d+)*\s*\]", said) is not None
