"""The request of an evaluation, checked before any work begins."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from retbench.cards import catalog
from retbench.cards.compute_target import parse_compute_target
from retbench.cards.prompt_set import OtherPrompt
from retbench.errors import UsageError, redact_secrets
from retbench.pipelines.models.overrides import Overrides
from retbench.pipelines.models.value_lists import expand_value_lists
from retbench.records.phase_timer import NoProgress, ProgressListener
from retbench.system.user_config import get_results_folder


@dataclass(frozen=True)
class EvaluationRequest:
    """Models, tasks and options of one evaluation, as the user named them."""

    models: tuple[str, ...]
    tasks: tuple[str, ...]
    methods: tuple[str, ...] = ()
    weights: str | None = None
    sample: int | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    rerank: tuple[str, ...] = ()
    out: Path = field(default_factory=get_results_folder)
    progress: ProgressListener = field(default_factory=NoProgress)
    log_status: Callable[[str], None] = lambda _: None
    command: str = "retbench.evaluate(...)"
    engine: str = "transformers"
    devices: str = "1"
    prompts: str | None = None  # a prompt set, by name or file
    prompt: OtherPrompt | None = None  # of this variant; None is the method's own

    def __post_init__(self) -> None:
        parse_compute_target(self.devices)
        for values in expand_value_lists(self.overrides):
            Overrides.parse(values)  # raises for a wrong key or value
        if self.prompts is not None:
            catalog.find_prompt_set(self.prompts)  # raises for a wrong name or file
        if self.sample is not None and self.sample < 1:
            raise UsageError("--sample must be at least 1", "give the number of test queries to draw")

    def expand_variants(self) -> "list[EvaluationRequest]":
        """A request for each combination of the lists in `--set` and the prompts; only this one without any."""
        prompts = catalog.find_prompt_set(self.prompts).prompts if self.prompts else ()
        return [
            replace(self, overrides=values, prompt=prompt)
            for prompt in (None, *prompts)
            for values in expand_value_lists(self.overrides)
        ]

    @cached_property
    def parsed_overrides(self) -> Overrides:
        """The values of `--set` of one variant, parsed once."""
        return Overrides.parse(self.overrides)


def format_command_line() -> str:
    """Return the command as typed, because records are shared without secrets and only the last part of paths."""
    words = ["retbench", *map(redact_secrets, sys.argv[1:])]
    return " ".join(re.sub(r"(^|=)(/[^,]+)", lambda match: match[1] + Path(match[2]).name, word) for word in words)
