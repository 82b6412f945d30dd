"""Prompt effects: what another prompt does to the score of a model, and in words whether the model uses its prompt.

`retbench run --prompts` makes one row per prompt. Each is compared with the row of the method's own prompt, query by
query; Holm's correction covers all these differences of a leaderboard.
"""

from dataclasses import dataclass
from typing import Any

from retbench.cards.prompt_set import split_prompt_name
from retbench.reports.leaderboard import Leaderboard, LeaderboardRow
from retbench.reports.ranks import ALPHA, weight_query_scores
from retbench.scoring.significance import (
    ConfidenceInterval,
    adjust_p_values,
    compute_bootstrap_interval,
    compute_detectable_difference,
    compute_paired_p_value,
)

PROMPT_HEADS = ["model", "method", "prompt", "score", "minus its own", "95% interval", "p"]
PROMPT_NOTE = (
    "Prompts: the same model and method with other prompts, minus its own prompt, by a paired randomisation test over "
    "queries with Holm's correction."
)


@dataclass(frozen=True)
class PromptEffect:
    """The score with another prompt, minus the score with the method's own."""

    prompt: str
    row: LeaderboardRow
    score: float
    difference: float
    interval: ConfidenceInterval
    p_value: float  # with Holm's correction over the leaderboard
    detectable: float | None  # the true difference that would be found in 80% of cases, without the correction

    @property
    def is_significant(self) -> bool:
        """Whether the difference is significant."""
        return self.p_value < ALPHA

    @property
    def has_no_prompt(self) -> bool:
        """Whether queries and documents are encoded without any prompt."""
        return not _has_prompt(self.row)


@dataclass(frozen=True)
class PromptedModel:
    """A model and method that was run with several prompts."""

    own: LeaderboardRow
    own_score: float
    effects: tuple[PromptEffect, ...]

    @property
    def spread(self) -> float:
        """The highest score minus the lowest one, over all prompts."""
        scores = [self.own_score, *(effect.score for effect in self.effects)]
        return max(scores) - min(scores)

    def describe(self) -> str:
        """Say whether the model uses its prompt, and how much the wording matters."""
        sentences = [_describe_absence(effect) for effect in self.effects if effect.has_no_prompt][:1]
        worded = [effect for effect in self.effects if not effect.has_no_prompt]
        if worded:
            changed = [effect.prompt for effect in worded if effect.is_significant]
            found = f"significantly different with {', '.join(changed)}" if changed else "none significantly different"
            sentences.append(f"{len(worded)} other wording{'s' if len(worded) > 1 else ''}: {found}")
        sentences.append(f"spread over {len(self.effects) + 1} prompts {100 * self.spread:.2f}")
        return f"{self.own.model} {self.own.label}: {'; '.join(sentences)}."


def list_prompted_models(board: Leaderboard) -> list[PromptedModel]:
    """The models of a leaderboard with their own and with another prompt, both complete."""
    owns = {(row.model, row.label): row for row in board.rows if split_prompt_name(row.label)[1] is None}
    pairs = [
        (own, row, prompt)
        for row in board.rows
        for base, prompt in (split_prompt_name(row.label),)
        if prompt and (own := owns.get((row.model, base))) and _is_complete(board, own) and _is_complete(board, row)
    ]
    columns = [(_list_query_scores(board, row), _list_query_scores(board, own)) for own, row, _ in pairs]
    p_values = adjust_p_values([compute_paired_p_value(other, own) for other, own in columns])
    effects: dict[tuple[str, str], list[PromptEffect]] = {}
    for (own, row, prompt), (other_scores, own_scores), p_value in zip(pairs, columns, p_values, strict=True):
        differences = other_scores - own_scores
        effect = PromptEffect(
            prompt, row, _get_score(board, row), float(differences.mean()), compute_bootstrap_interval(differences),
            p_value, compute_detectable_difference(other_scores, own_scores),
        )  # fmt: skip
        effects.setdefault((own.model, own.label), []).append(effect)
    return [PromptedModel(owns[key], _get_score(board, owns[key]), tuple(found)) for key, found in effects.items()]


def build_prompt_table(board: Leaderboard) -> tuple[list[str], list[list[str]], str]:
    """Heads, rows and the note of the prompts; no rows without `--prompts`."""
    models = list_prompted_models(board)
    rows = []
    for model in models:
        rows.append([model.own.model, model.own.label, "its own", f"{100 * model.own_score:.2f}", "–", "–", "–"])
        rows += [[model.own.model, model.own.label, effect.prompt, *_format_effect(effect)] for effect in model.effects]
    return PROMPT_HEADS, rows, " ".join([PROMPT_NOTE, *(model.describe() for model in models)])


def collect_prompt_facts(board: Leaderboard) -> dict[int, dict[str, Any]]:
    """The effects of other prompts for JSON, by row number; a row with its own prompt has none."""
    return {
        board.rows.index(effect.row): {
            "prompt": effect.prompt,
            "difference": effect.difference,
            "interval": list(effect.interval),
            "p_value": effect.p_value,
        }
        for model in list_prompted_models(board)
        for effect in model.effects
    }


def _describe_absence(effect: PromptEffect) -> str:
    points = f"{100 * abs(effect.difference):.2f}"
    if not effect.is_significant:
        text = f"no significant difference without its prompt ({100 * effect.difference:+.2f}, p {effect.p_value:.3f}"
        return (
            f"{text}; {100 * effect.detectable:.2f} would be found in 80% of cases)"
            if effect.detectable
            else f"{text})"
        )
    if effect.difference < 0:
        return f"it uses its prompt: without it the score is {points} lower (p {effect.p_value:.3f})"
    return f"its prompt does harm: without it the score is {points} higher (p {effect.p_value:.3f})"


def _format_effect(effect: PromptEffect) -> list[str]:
    low, high = effect.interval
    return [
        f"{100 * effect.score:.2f}",
        f"{100 * effect.difference:+.2f}",
        f"{100 * low:+.2f} to {100 * high:+.2f}",
        f"{effect.p_value:.3f}",
    ]


def _is_complete(board: Leaderboard, row: LeaderboardRow) -> bool:
    return all(task in row.runs for task in board.tasks)


def _get_score(board: Leaderboard, row: LeaderboardRow) -> float:
    score = board.compute_score(row, board.ranked_by)
    if score is None:
        raise TypeError(f"{row.model} {row.label} is not complete")
    return score


def _list_query_scores(board: Leaderboard, row: LeaderboardRow) -> Any:
    if board.ranked_by is not None:
        return row.runs[board.ranked_by].values
    return weight_query_scores(row.runs, board.tasks, board.suite)


def _has_prompt(row: LeaderboardRow) -> bool:
    """Whether a method has a prompt: a template with more than the text, or a chat."""
    method: dict[str, Any] = next((run.record.cards["method"] for run in row.runs.values()), {})
    templates = [method.get(role, "{text}") for role in ("query", "document")]
    return any(template != "{text}" for template in templates) or bool(method.get("chat"))
