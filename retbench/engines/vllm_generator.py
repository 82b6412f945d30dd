"""vLLM as a generator: greedy text, answers held to a form, and the log-probabilities of yes and no.

Token ids are ours. Several prompts go in at once, and what they share (a query, an instruction) is computed once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, log
from typing import Any

from retbench.engines import vllm_engine
from retbench.engines.device import get_device
from retbench.engines.generator import GeneratedAnswer, GeneratorBase

FIT_CONTEXT_TO_MEMORY = -1  # of the model's context into memory


@dataclass(frozen=True)
class VllmGenerator(GeneratorBase):
    """A folder with a language-model head, run by vLLM in this process."""

    def describe(self) -> dict[str, Any]:
        """Weights and precision."""
        return {"engine": "vllm", "weights": self.weights, "dtype": self.dtype}

    @cached_property
    def engine(self) -> Any:
        """The engine; where memory is too short for the whole context it takes as much of it as fits."""
        eager = (
            get_device().type == "cpu"
        )  # elsewhere it records its steps once, which decoding one token at a time repays
        return vllm_engine.start_engine(
            self.folder, self.dtype, FIT_CONTEXT_TO_MEMORY, runner="generate", enforce_eager=eager
        )

    def fits_context(self, prompt: str, max_tokens: int) -> bool:
        """Whether prompt and answer fit into the context, the model's and that for which there was memory."""
        room = min(self.context_length, int(self.engine.llm_engine.model_config.max_model_len))
        return len(self.tokenize_prompt(prompt)) + max_tokens <= room

    def generate(self, prompt: str, max_tokens: int, pattern: str = "") -> GeneratedAnswer:
        """The likeliest token again and again, among those that the form allows."""
        held = vllm_engine.import_vllm().sampling_params.StructuredOutputsParams(regex=pattern) if pattern else None
        (found,) = self._run_engine([prompt], max_tokens=max_tokens, structured_outputs=held)
        answer = found.outputs[0]
        return GeneratedAnswer(answer.text, 0.0, len(found.prompt_token_ids), len(answer.token_ids))

    def score_yes_no(self, prompts: Sequence[str]) -> list[GeneratedAnswer]:
        """Every spelling of yes against every spelling of no."""
        yes, no = self.find_yes_no_tokens()
        found = self._run_engine(prompts, max_tokens=1, logprob_token_ids=[*yes, *no])
        return [
            GeneratedAnswer("", _compute_log_odds(one.outputs[0].logprobs[0], yes, no), len(one.prompt_token_ids), 0)
            for one in found
        ]

    def _run_engine(self, prompts: Sequence[str], **wanted: Any) -> list[Any]:
        asked = [{"prompt_token_ids": self.tokenize_prompt(prompt)} for prompt in prompts]
        how = vllm_engine.import_vllm().SamplingParams(temperature=0, **wanted)
        found: list[Any] = self.engine.generate(asked, how, use_tqdm=False)
        return found


def _compute_log_odds(likely: Any, yes: Sequence[int], no: Sequence[int]) -> float:
    chances = [sum(exp(likely[token].logprob) for token in tokens) for tokens in (yes, no)]
    return log(chances[0]) - log(chances[1])
