"""vLLM as a generator: greedy decoding, answers constrained by a pattern, and log-probabilities of yes and no.

It gets our token ids. Several prompts are sent together; a common prefix (query, instruction) is computed once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import exp, log
from typing import Any

from retbench.engines import vllm_engine
from retbench.engines.generator import GeneratedAnswer, GeneratorBase

FIT_CONTEXT_TO_MEMORY = -1  # the context length that fits into memory


@dataclass(frozen=True)
class VllmGenerator(GeneratorBase):
    """A generator that runs in vLLM, in this process."""

    def describe(self) -> dict[str, Any]:
        """Engine, weights and dtype."""
        return self.describe_model("vllm")

    @cached_property
    def engine(self) -> Any:
        """The vLLM engine. If memory is too small for the whole context, it uses a shorter context."""
        return vllm_engine.start_engine(self.folder, self.dtype, FIT_CONTEXT_TO_MEMORY, runner="generate")

    def fits_context(self, prompt: str, max_tokens: int) -> bool:
        """Whether prompt and answer fit into the context length of the model and of the engine."""
        limit = min(self.context_length, int(self.engine.llm_engine.model_config.max_model_len))
        return len(self.tokenize_prompt(prompt)) + max_tokens <= limit

    def generate(self, prompt: str, max_tokens: int, pattern: str = "") -> GeneratedAnswer:
        """Greedy decoding, limited to tokens that the pattern allows."""
        constraint = (
            vllm_engine.import_vllm().sampling_params.StructuredOutputsParams(regex=pattern) if pattern else None
        )
        ids = self.tokenize_prompt(prompt)
        (output,) = self._run_engine([ids], max_tokens=max_tokens, structured_outputs=constraint)
        answer = output.outputs[0]
        return self.build_answer(answer.text, len(ids), len(answer.token_ids), max_tokens)

    def score_yes_no(self, prompts: Sequence[str]) -> list[GeneratedAnswer]:
        """For each prompt, all spellings of yes against all spellings of no."""
        yes, no = self.find_yes_no_tokens()
        rows = [self.tokenize_prompt(prompt, close_reasoning=True) for prompt in prompts]
        outputs = self._run_engine(rows, max_tokens=1, logprob_token_ids=[*yes, *no])
        return [
            GeneratedAnswer(
                "", _compute_log_odds(output.outputs[0].logprobs[0], yes, no), len(output.prompt_token_ids), 0
            )
            for output in outputs
        ]

    def _run_engine(self, rows: Sequence[list[int]], **options: Any) -> list[Any]:
        requests = [{"prompt_token_ids": ids} for ids in rows]
        sampling = vllm_engine.import_vllm().SamplingParams(temperature=0, **options)
        outputs: list[Any] = self.engine.generate(requests, sampling, use_tqdm=False)
        return outputs


def _compute_log_odds(likely: Any, yes: Sequence[int], no: Sequence[int]) -> float:
    probabilities = [sum(exp(likely[token].logprob) for token in tokens) for tokens in (yes, no)]
    return log(probabilities[0]) - log(probabilities[1])
