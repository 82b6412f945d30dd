"""Prompts for reranking by a language model (InsertRank, arXiv 2506.14086), and the parser of its answers.

The paper does not publish its prompt. This one has the order of a re-implementation: a sentence that introduces the
scores, the query, every document with its number and, on the next line, its score, then the instruction.
"""

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from retbench.cards.reranker_settings import PointwiseSettings
from retbench.engines.generator import END_OF_REASONING, OPEN_REASONING, GeneratedAnswer, Generator
from retbench.errors import UsageError
from retbench.rerankers.candidates import MIN_DOCUMENT_TOKENS, Candidates, find_largest_share

# Each separator matches in one way only: an answer of many empty lines would else take minutes.
STRICT_ORDER = re.compile(r"\[?\d+\]?(?:(?:\s*[>,]|[^\S\n]*\n)\s*\[?\d+\]?)*\.?")
MAX_DIGITS = 9  # a longer number is out of range in any list


@dataclass
class GenerationUsage:
    """Requests, tokens, cut prompts and repaired answers, over all queries. The field names are keys of the record."""

    requests: int = 0
    read: int = 0
    written: int = 0
    prompts_cut: int = 0
    repaired: int = 0
    unanswered: int = 0
    unfinished_reasoning: int = 0  # of the unanswered: the answer ended before the reasoning did

    def count_answer(self, answer: GeneratedAnswer) -> None:
        """Count one request and its tokens."""
        self.requests += 1
        self.read += answer.prompt_tokens
        self.written += answer.answer_tokens


@dataclass
class PromptBuilder:
    """What listwise and pointwise prompts share: texts, scores, shuffling, the length limit, and the usage counts."""

    generator: Generator
    settings: PointwiseSettings
    load_text: Callable[[int], str]  # a document's text by its row in the corpus
    score_label: str  # the name of the scores in the prompt, such as "BM25 score"
    usage: GenerationUsage = field(default_factory=GenerationUsage)
    first_exchange: dict[str, Any] = field(default_factory=dict)

    def arrange_candidates(self, candidates: Candidates) -> tuple[np.ndarray, list[str], list[str]]:
        """Return the order in which candidates are shown, as positions, and their texts and scores in that order."""
        rng = np.random.default_rng([self.settings.seed, zlib.crc32(candidates.query.encode())])
        count = len(candidates.rows)
        order = rng.permutation(count) if self.settings.order == "shuffled" else np.arange(count)
        documents = self.generator.truncate_texts(
            [self.load_text(int(row)) for row in candidates.rows[order]], self.settings.cut
        )
        scores = format_scores(candidates.scores, self.settings.scores, rng)
        return order, documents, [scores[position] for position in order] if scores else []

    def fit_prompt(
        self, build_prompt: Callable[[Sequence[str]], str], documents: list[str], max_answer_tokens: int
    ) -> str:
        """Build the prompt; if it is too long, cut all documents to the same, largest possible length."""
        prompt = build_prompt(documents)
        if self.generator.fits_context(prompt, max_answer_tokens):
            return prompt
        self.usage.prompts_cut += 1
        fitting = find_largest_share(
            self.settings.cut,
            lambda share: build_prompt(self.generator.truncate_texts(documents, share)),
            lambda shorter: self.generator.fits_context(shorter, max_answer_tokens),
        )
        if fitting is None:
            raise UsageError(
                f"a prompt with {len(documents)} documents of {MIN_DOCUMENT_TOKENS} tokens is longer than the context "
                f"of {self.generator.name}",
                "give a smaller window=, or a model with a longer context",
            )
        return fitting

    def keep_first_exchange(self, prompt: str, answer: str) -> None:
        """Keep the first prompt and its answer for `sample.json`."""
        self.first_exchange = self.first_exchange or {"prompt": prompt, "answer": answer}


def format_scores(scores: np.ndarray, form: str, rng: np.random.Generator) -> list[str]:
    """Format scores for the prompt; an empty list if the form is `none`."""
    if form == "none":
        return []
    if form == "shuffled":
        return [f"{score:.3f}" for score in rng.permutation(scores)]
    if form == "raw":
        return [f"{score:.3f}" for score in scores]
    low, high = float(scores.min()), float(scores.max())
    scaled = (scores - low) / (high - low) if high > low else np.ones(len(scores))
    return [f"{100 * score:.1f}" if form == "percent" else f"{score:.3f}" for score in scaled]


def append_score(document: str, label: str, scores: Sequence[str], position: int) -> str:
    """Return the document and, on the next line, its score; only the document if there are no scores."""
    return f"{document}\n{label}: {scores[position]}" if scores else document


def build_listwise_prompt(query: str, documents: Sequence[str], scores: Sequence[str], label: str) -> str:
    """Build the prompt that asks for the order of a list."""
    introduction = (
        f"Each passage is given with its {label}, which a first search gave it for the query.\n\n" if scores else ""
    )
    listed = "\n\n".join(
        f"[{position + 1}] {append_score(document, label, scores, position)}"
        for position, document in enumerate(documents)
    )
    criteria = "their content and their scores" if scores else "their content"
    return (
        f"{introduction}Query: {query}\n\n{listed}\n\n"
        f"Rank the {len(documents)} passages above by how well they answer the query, by {criteria}. "
        f"Answer only with all {len(documents)} numbers, the best passage first, "
        "in this form: [best] > [second] > ... > [worst]"
    )


def build_order_pattern(count: int) -> str:
    """Build the regular expression of an answer, for engines with guided decoding. It allows repeated numbers."""
    number = rf"\[({'|'.join(map(str, range(1, count + 1)))})\]"
    return f"{number}( > {number}){{{count - 1}}}"


def build_pointwise_prompt(query: str, document: str, score: str | None, label: str) -> str:
    """Build the yes-or-no prompt for one document."""
    introduction = (
        f"The passage is given with its {label}, which a first search gave it for the query.\n\n" if score else ""
    )
    passage = append_score(document, label, [score] if score else [], 0)
    return (
        f"{introduction}Query: {query}\n\nPassage: {passage}\n\n"
        "Does the passage answer the query? Answer only with yes or no."
    )


def extract_final_answer(text: str, cut: bool) -> str | None:
    """Return the text after the reasoning, or None if the reasoning does not end.

    Numbers in unfinished reasoning are no order. If an answer was `cut`, reasoning may be open without its mark: some
    servers remove it. Then only the beginning of a list counts as an answer.
    """
    _, end, answer = text.rpartition(END_OF_REASONING)
    if OPEN_REASONING in answer or (cut and not end and not _is_beginning_of_list(answer)):
        return None
    return answer.strip()


def _is_beginning_of_list(text: str) -> bool:
    return STRICT_ORDER.fullmatch(text.strip().rstrip(" >,[")) is not None


def parse_order(text: str, count: int) -> tuple[list[int], bool]:
    """Return the order in a final answer, as positions, and whether it was valid: every number once, nothing else.

    An invalid answer is repaired: its valid numbers keep their order, without repetitions; the missing ones follow in
    the order in which they were shown.
    """
    plain = text.removeprefix("[").removesuffix("]") if _is_json_list(text) else text
    is_strict = STRICT_ORDER.fullmatch(plain) is not None
    numbers = re.findall(r"\[(\d+)\]", text) or re.findall(r"\d+", text)
    positions = [int(number[:MAX_DIGITS]) - 1 for number in numbers]
    valid = list(dict.fromkeys(position for position in positions if 0 <= position < count))
    order = valid + [position for position in range(count) if position not in valid]
    return order, is_strict and sorted(positions) == list(range(count))


def _is_json_list(text: str) -> bool:
    return re.fullmatch(r"\[\s*\d+(\s*,\s*\d+)*\s*\]", text) is not None
