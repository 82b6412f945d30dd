"""LLM-QL's attention mask (Attention Stop), tested with every architecture.

Each position attends only to the positions that the mask allows, so words drawn at random cannot be predicted.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.utils._pytree import tree_map

from retbench.cards import catalog
from retbench.errors import UsageError
from retbench.training.query_likelihood import QueryLikelihoodModel, QueryLikelihoodRow
from tests import tiny_models

WORDS = 60  # rows are drawn from this many words; a loss of ln 60 means that no word can be predicted
SHAPE: dict[str, Any] = {
    "vocab_size": tiny_models.VOCABULARY, "hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**SHAPE, "num_key_value_heads": 2}
GEMMA = {**GROUPED, "head_dim": 16, "sliding_window": 64}
VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
SIGLIP: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip
QWEN_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


def build_text_model(family: str, layers: int = 1, **changes: Any) -> nn.Module:
    """A tiny causal language model with random weights."""
    shape = GEMMA if family.startswith("Gemma") else SHAPE if family == "GPTNeoX" else GROUPED
    config_class = getattr(transformers, f"{family}{'TextConfig' if family == 'Gemma3' else 'Config'}")
    config = config_class(**{**shape, "num_hidden_layers": layers, **changes})
    kernel = "eager" if family == "Gemma2" else "sdpa"  # the same kernels as in `choose_attention_kernel`
    torch.manual_seed(1)
    model: nn.Module = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=kernel)
    return model


def build_vision_model(family: str, layers: int = 1) -> nn.Module:
    """A tiny multimodal model with random weights; its text part has the architecture of that family."""
    if family == "Gemma3":
        vision = transformers.SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
        )
        text = transformers.Gemma3TextConfig(**GEMMA, num_hidden_layers=layers)
        config: Any = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
        model_class: Any = transformers.Gemma3ForConditionalGeneration
    else:
        config = transformers.Qwen2_5_VLConfig(
            text_config={**GROUPED, "num_hidden_layers": layers, "rope_parameters": QWEN_ROPE}, vision_config=VISION
        )
        model_class = transformers.Qwen2_5_VLForConditionalGeneration
    torch.manual_seed(1)
    model: nn.Module = model_class._from_config(config, attn_implementation="sdpa")
    return model


FAMILIES = ("Qwen2", "Qwen3", "Llama", "Mistral", "Phi3", "GPTNeoX", "Gemma2", "Gemma3")
NAMES = (*FAMILIES, "Gemma3 with vision", "Qwen2.5-VL")


def build_model(name: str, layers: int = 1) -> nn.Module:
    return build_text_model(name, layers) if name in FAMILIES else build_vision_model(name.split(maxsplit=1)[0], layers)


def wrap_model(model: nn.Module, dtype: str = "float32", stop: bool = True) -> QueryLikelihoodModel:
    recipe = catalog.find_recipe("llm-ql")
    assert recipe.query_likelihood
    settings = replace(recipe.query_likelihood, attention_stop=stop)
    return QueryLikelihoodModel(model.eval(), tiny_models.build_tokenizer(), settings, dtype, torch.device("cpu"))


def draw_rows(generator: np.random.Generator, lengths: list[int], bottleneck: int) -> list[QueryLikelihoodRow]:
    """Rows of independent random words."""
    return [QueryLikelihoodRow(generator.integers(3, 3 + WORDS, length), bottleneck) for length in lengths]


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_every_position_attends_only_to_what_the_mask_allows(name: str, stop: bool) -> None:
    """A changed token changes the logits of exactly the positions that may see it, in its own row only."""
    language_model = wrap_model(build_model(name, 1), stop=stop)
    rows = draw_rows(np.random.default_rng(3), [11, 14], 4)
    with torch.no_grad():
        before, _ = language_model.compute_logits(rows)
        for row, changed in [(0, place) for place in range(11)] + [(1, place) for place in range(14)]:
            ids = rows[row].ids.copy()
            ids[changed] = 3 + (ids[changed] - 3 + 1) % WORDS
            other = [QueryLikelihoodRow(ids, 4) if n == row else rows[n] for n in range(2)]
            after, _ = language_model.compute_logits(other)
            difference = (after - before).abs().amax(-1)
            seen = (difference[row, : len(ids)] > 1e-7).tolist()
            assert seen == [changed <= place and not (stop and changed < 4 < place) for place in range(len(ids))]
            assert difference[1 - row, : len(rows[1 - row].ids)].max() < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_unpredictable_words_cannot_be_predicted(name: str, dtype: str) -> None:
    """The loss stays at ln 60 or above, because each training step has new random words."""
    losses = train_on_random_words(wrap_model(build_model(name, 1), dtype))
    assert np.mean(losses[-10:]) == pytest.approx(math.log(WORDS), abs=0.12)
    assert min(losses) > math.log(WORDS) - 0.06


@pytest.mark.parametrize("name", ["Qwen3", "Gemma3 with vision"])  # the fastest learner and the slowest
def test_the_same_training_without_a_mask_predicts_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So few steps are enough to see a leak: every position sees its whole row here."""
    language_model = wrap_model(build_model(name, 1))
    run = language_model.model.forward

    def run_without_mask(*_: Any, attention_mask: Any, **options: Any) -> Any:
        return run(attention_mask=tree_map(torch.zeros_like, attention_mask), **options)

    monkeypatch.setattr(language_model.model, "forward", run_without_mask)
    assert min(train_on_random_words(language_model)) < math.log(WORDS) - 0.5


def train_on_random_words(language_model: QueryLikelihoodModel) -> list[float]:
    """Train 40 steps; return the losses."""
    trained = [weight for weight in language_model.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.Adam(trained, 1e-2)
    generator, losses = np.random.default_rng(5), []
    for _ in range(40):
        rows = draw_rows(generator, [12] * 16, 4)
        logits, ids = language_model.compute_logits(rows)
        loss = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NAMES)
def test_a_likelihood_does_not_depend_on_the_other_texts_of_its_batch(name: str, dtype: str) -> None:
    language_model = wrap_model(build_model(name, 2), dtype)
    documents = list(tiny_models.SENTENCES[:6])
    queries = ["blood", "which arteries are narrow", "heart disease", "bones", "liver and alcohol", "x"]
    together = language_model.compute_log_likelihoods(documents, queries, 100_000)
    alone = [
        language_model.compute_log_likelihoods([d], [q], 100_000)[0] for d, q in zip(documents, queries, strict=True)
    ]
    assert together.tolist() == pytest.approx(alone, rel=1e-5 if dtype == "float32" else 1e-2)


@pytest.mark.parametrize("family", ["Mistral", "Phi3", "Gemma2", "Gemma3", "Qwen3"])
def test_a_models_own_sliding_window_is_kept(family: str) -> None:
    """Without Attention Stop the logits are the model's own, also beyond its window."""
    use = {"use_sliding_window": True, "max_window_layers": 1} if family == "Qwen3" else {}
    model = build_text_model(family, 2, sliding_window=5, **use)
    language_model = wrap_model(model, stop=False)
    row = draw_rows(np.random.default_rng(3), [30], 4)[0]
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(row.ids)[None], use_cache=False).logits
        assert torch.allclose(language_model.compute_logits([row])[0], expected, atol=1e-5)


class LeakyModel(nn.Module):
    """A model that ignores the mask: every position gets the mean of its row."""

    def __init__(self) -> None:
        super().__init__()
        self.config = transformers.Qwen2Config(**GROUPED, num_hidden_layers=1)
        self.embedding = nn.Embedding(tiny_models.VOCABULARY, 32)
        self.head = nn.Linear(32, tiny_models.VOCABULARY)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        states = self.embedding(input_ids)
        return transformers.modeling_outputs.CausalLMOutput(logits=self.head(states + states.mean(1, keepdim=True)))


def test_a_model_that_ignores_the_mask_is_refused() -> None:
    with pytest.raises(UsageError, match="does not obey"):
        wrap_model(LeakyModel())


def test_layers_without_plain_attention_are_refused() -> None:
    model: Any = build_text_model("Qwen2", 2)
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(UsageError, match="linear_attention"):
        wrap_model(model)
