"""Listwise and pointwise reranking by a language model, with any generator (transformers, vLLM, a server)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retbench.cards.reranker_settings import ListwiseSettings
from retbench.rerankers.candidates import Candidates, iterate_windows, make_descending_scores
from retbench.rerankers.llm_prompts import (
    PromptBuilder,
    build_listwise_prompt,
    build_order_pattern,
    build_pointwise_prompt,
    extract_final_answer,
    parse_order,
)

TOKENS_PER_NUMBER = 6  # upper bound for `[20] > `
LISTWISE_COUNTS = ("repaired", "unanswered", "unfinished_reasoning")


@dataclass(frozen=True)
class ListwiseLLMReranker:
    """The model generates the order of each window."""

    prompt_builder: PromptBuilder
    settings: ListwiseSettings

    @property
    def depth(self) -> int:
        """The number of candidates per query."""
        return self.settings.depth

    def rerank(self, candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
        """Rerank window by window, from the last candidates to the first."""
        order, documents, scores = self.prompt_builder.arrange_candidates(candidates)
        positions = np.arange(len(order))
        for window in iterate_windows(len(order), self.settings.window, self.settings.step):
            window_positions = positions[window]
            new_order = self._generate_order(
                candidates.query,
                [documents[position] for position in window_positions],
                [scores[position] for position in window_positions] if scores else [],
            )
            positions[window] = window_positions[new_order]
        return order[positions], make_descending_scores(len(order))

    def build_first_prompt(self, candidates: Candidates) -> str:
        """Build the prompt of the first window."""
        _, documents, scores = self.prompt_builder.arrange_candidates(candidates)
        window = next(iterate_windows(len(documents), self.settings.window, self.settings.step))
        return self._build_prompt(candidates.query, documents[window], scores[window])[0]

    def _build_prompt(self, query: str, documents: list[str], scores: Sequence[str]) -> tuple[str, int]:
        """Return the prompt and the maximum number of answer tokens (0: no limit)."""
        max_answer_tokens = self.settings.written or self._choose_answer_limit(len(documents))
        label = self.prompt_builder.score_label

        def build_prompt(cut_documents: Sequence[str]) -> str:
            return build_listwise_prompt(query, cut_documents, scores, label)

        return self.prompt_builder.fit_prompt(build_prompt, documents, max_answer_tokens), max_answer_tokens

    def _choose_answer_limit(self, documents: int) -> int:
        """Return enough for a list; a reasoning model gets room to reason, a model behind an endpoint has no limit."""
        if self.settings.engine == "endpoint":
            return 0
        return self.prompt_builder.generator.reasoning_limit or TOKENS_PER_NUMBER * (documents + 1)

    def _generate_order(self, query: str, documents: list[str], scores: Sequence[str]) -> list[int]:
        prompt_builder, count = self.prompt_builder, len(documents)
        prompt, max_answer_tokens = self._build_prompt(query, documents, scores)
        reasons = bool(prompt_builder.generator.reasoning_limit)
        pattern = build_order_pattern(count) if self.settings.engine == "vllm" and not reasons else ""
        answer, usage = prompt_builder.generator.generate(prompt, max_answer_tokens, pattern), prompt_builder.usage
        usage.count_answer(answer)
        prompt_builder.keep_first_exchange(prompt, answer.text)
        may_be_reasoning = answer.cut and (reasons or self.settings.engine == "endpoint")
        final_answer = extract_final_answer(answer.text, may_be_reasoning)
        order, is_strict = parse_order(final_answer or "", count)
        usage.repaired += not is_strict
        usage.unanswered += not any(character.isdigit() for character in final_answer or "")
        usage.unfinished_reasoning += final_answer is None
        return order

    def collect_statistics(self) -> dict[str, Any]:
        """Return requests, tokens, and the share of repaired answers."""
        usage = self.prompt_builder.usage
        return {**vars(usage), "repair_rate": round(usage.repaired / usage.requests, 4) if usage.requests else None}

    def sample(self) -> dict[str, Any]:
        """Return the first prompt and its answer."""
        return self.prompt_builder.first_exchange


@dataclass(frozen=True)
class PointwiseLLMReranker:
    """The model gives each document the log-odds of yes against no; ties keep the order in which they were shown."""

    prompt_builder: PromptBuilder

    @property
    def depth(self) -> int:
        """The number of candidates per query."""
        return self.prompt_builder.settings.depth

    def rerank(self, candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
        """Ask one prompt per document and sort by the log-odds."""
        prompt_builder = self.prompt_builder
        order, documents, scores = prompt_builder.arrange_candidates(candidates)
        prompts = [
            self._build_prompt(candidates.query, document, scores[position : position + 1])
            for position, document in enumerate(documents)
        ]
        answers = prompt_builder.generator.score_yes_no(prompts)
        for prompt, answer in zip(prompts, answers, strict=True):
            prompt_builder.usage.count_answer(answer)
            prompt_builder.keep_first_exchange(prompt, f"{answer.log_odds:.4f}")
        log_odds = np.array([answer.log_odds for answer in answers])
        by_odds = np.argsort(-log_odds, kind="stable")
        return order[by_odds], log_odds[by_odds]

    def build_first_prompt(self, candidates: Candidates) -> str:
        """Build the prompt of the first document."""
        _, documents, scores = self.prompt_builder.arrange_candidates(candidates)
        return self._build_prompt(candidates.query, documents[0], scores[:1])

    def _build_prompt(self, query: str, document: str, score: Sequence[str]) -> str:
        written_score, label = (score[0] if score else None), self.prompt_builder.score_label

        def build_prompt(cut_documents: Sequence[str]) -> str:
            return build_pointwise_prompt(query, cut_documents[0], written_score, label)

        return self.prompt_builder.fit_prompt(build_prompt, [document], 1)

    def collect_statistics(self) -> dict[str, Any]:
        """Return requests and tokens. Repairs exist only for listwise answers."""
        usage = vars(self.prompt_builder.usage)
        return {key: value for key, value in usage.items() if key not in LISTWISE_COUNTS}

    def sample(self) -> dict[str, Any]:
        """Return the first prompt and its log-odds."""
        return self.prompt_builder.first_exchange
