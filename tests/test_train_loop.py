"""Training: the loss, its gradient in passes and in processes, data order, learning rates, checkpoints."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retbench.cards import catalog
from retbench.cards.method import Method
from retbench.cards.recipe import BatchSettings, ContrastiveSettings, LoraSettings, OptimizerSettings, Recipe
from retbench.cards.task import LengthLimits
from retbench.encoders.prompt_tokenizer import PromptTokenizer, TokenizedTexts
from retbench.engines.tokenizers import load_tokenizer
from retbench.errors import DataError
from retbench.retrievers.ranking import Ranking
from retbench.training import checkpoint, distributed, in_training_search, train_loop
from retbench.training import lora as lora_module
from retbench.training.contrastive_batches import BatchSampler, ContrastiveBatch, LabelledBatchSource
from retbench.training.gradient_caching import backward_batch
from retbench.training.in_training_search import rank_passages
from retbench.training.losses import contrastive_loss
from retbench.training.train_forward import TrainableEncoder, split_into_passes
from retbench.training.train_loop import TrainLoop, TrainSchedule, compute_learning_rate, describe_zero_rates
from retbench.training.training_set import TrainingQuery, TrainingSet, read_training_file
from tests import tiny_models

METHOD = Method("m", "t", "ours", "s", "mean", query="Query: {text}", eos=True)
RECIPE = Recipe(
    "r", "t", "ours", "s", "contrastive", METHOD, lengths=LengthLimits(16, 24),
    contrastive=ContrastiveSettings(temperature=0.1, hard_negatives=2), batch=BatchSettings(4, 8, max_tokens=60),
    lora=LoraSettings(4, 8, 0.0), optimizer=OptimizerSettings(learning_rate=1e-2), save_steps=2,
)  # fmt: skip


def build_pairs(count: int = 16) -> TrainingSet:
    half = len(tiny_models.SENTENCES) // 2
    queries = [
        TrainingQuery(tiny_models.SENTENCES[n], (half + n,), ((half + n + 1) % 32, (half + n + 3) % 32))
        for n in range(count)
    ]
    return TrainingSet("sentences", queries, tiny_models.SENTENCES, "f")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build_model(tmp_path_factory.mktemp("models") / "tiny")


def build_encoder(folder: Path, recipe: Recipe = RECIPE) -> TrainableEncoder:
    model = lora_module.prepare_for_training(lora_module.load_model(folder, recipe), recipe)
    with torch.no_grad():  # LoRA starts with zero matrices, whose gradients would be zero
        for number, weight in enumerate(lora_module.get_trainable_weights(model).values()):
            weight.normal_(std=0.1, generator=torch.Generator().manual_seed(number))
    return TrainableEncoder(
        model, PromptTokenizer(load_tokenizer(folder), recipe.method), recipe, True, torch.device("cpu")
    )


def collect_gradients(encoder: TrainableEncoder) -> dict[str, torch.Tensor]:
    return {
        n: w.grad.clone() for n, w in lora_module.get_trainable_weights(encoder.model).items() if w.grad is not None
    }


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("weights", ["lora", "full"])
def test_gradient_caching_does_not_change_the_gradient(folder: Path, dropout: float, weights: str) -> None:
    lora = LoraSettings(4, 8, dropout) if weights == "lora" else None
    contrast = ContrastiveSettings(0.1, 2, symmetric=True, matryoshka_dimensions=(16, 32))
    recipe = replace(RECIPE, lora=lora, contrastive=contrast)
    group = LabelledBatchSource(build_pairs(), recipe.contrastive, 1).build_batch(np.arange(6), 0)
    actual = []
    for caching in (False, True):
        encoder = build_encoder(
            folder, replace(recipe, batch=BatchSettings(4, 8, max_tokens=60, gradient_caching=caching))
        )
        assert len(list(split_into_passes(encoder.tokenize(group.queries, group.passages).lengths, 60))) > 3
        value, _ = backward_batch(encoder, group, 0.5, (1, 2))
        actual.append((value, collect_gradients(encoder)))
    (plain_loss, plain_gradient), (cached, cached_gradient) = actual
    assert cached == pytest.approx(plain_loss, abs=1e-6)
    assert plain_gradient.keys() == cached_gradient.keys()
    assert max(float(g.abs().max()) for g in plain_gradient.values()) > 1e-3
    for name in plain_gradient:
        torch.testing.assert_close(plain_gradient[name], cached_gradient[name], atol=1e-5, rtol=1e-5)


def test_splitting_into_passes_gives_the_gradient_of_one_batch(folder: Path) -> None:
    group = LabelledBatchSource(build_pairs(), RECIPE.contrastive, 1).build_batch(np.arange(6), 0)
    actual = []
    for tokens in (60, 100_000):
        encoder = build_encoder(folder, replace(RECIPE, batch=BatchSettings(4, 8, tokens)))
        actual.append((backward_batch(encoder, group, 1.0, (0,))[0], collect_gradients(encoder)))
    assert actual[0][0] == pytest.approx(actual[1][0], abs=1e-6)
    for name in actual[0][1]:
        torch.testing.assert_close(actual[0][1][name], actual[1][1][name], atol=1e-5, rtol=1e-4)


def build_batch(relevant: Any, owner: Any, teacher: Any = None) -> ContrastiveBatch:
    return ContrastiveBatch([], [], np.array(owner), np.array(relevant, dtype=bool), teacher)


def test_the_contrastive_loss_computed_by_hand() -> None:
    queries = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    passages = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    group = build_batch([[1, 0, 0], [0, 1, 1]], [0, 1, 0])
    r = math.sqrt(0.5)
    first = -math.log(math.exp(2) / (math.exp(2) + 1 + math.exp(2 * r)))
    strict = ContrastiveSettings(temperature=0.5, mask_known_positives=False)
    assert float(contrastive_loss(queries, passages, group, strict)) == pytest.approx(
        first, abs=1e-6
    )  # the loss of query 2 is the same
    spared = -math.log(math.exp(2) / (math.exp(2) + 1))  # passage 2 is a known positive of query 1
    kind = ContrastiveSettings(temperature=0.5)
    assert float(contrastive_loss(queries, passages, group, kind)) == pytest.approx((first + spared) / 2, abs=1e-6)
    both = ContrastiveSettings(temperature=0.5, symmetric=True)
    assert float(contrastive_loss(queries, passages, group, both)) == pytest.approx(
        ((first + spared) / 2 + spared) / 2, abs=1e-6
    )


def test_distillation_compares_only_the_passages_of_a_query() -> None:
    queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    passages = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    relevant = [[1, 0, 0, 0], [0, 1, 0, 0]]
    agree = build_batch(relevant, [0, 1, 0, 1], np.array([2.0, 2.0, 0.0, 0.0]))
    all_of_it = ContrastiveSettings(temperature=0.5, distillation_weight=1.0)
    assert float(contrastive_loss(queries, passages, agree, all_of_it)) == pytest.approx(0, abs=1e-6)
    differ = build_batch(relevant, [0, 1, 0, 1], np.array([0.0, 0.0, 0.0, 0.0]))
    soft = math.exp(2) / (math.exp(2) + 1)
    by_hand = 0.5 * math.log(0.5 / soft) + 0.5 * math.log(0.5 / (1 - soft))
    assert float(contrastive_loss(queries, passages, differ, all_of_it)) == pytest.approx(by_hand, abs=1e-6)


def test_every_query_is_used_once_per_epoch_in_a_seeded_order() -> None:
    order = BatchSampler(20, BatchSettings(2, 4), seed=5)
    assert order.steps_per_epoch == 5
    epochs = [[row for step in range(5) for rows in order.sample_rows(5 * e + step)[1] for row in rows] for e in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(20))
    assert epochs[0] != epochs[1]
    assert [g.tolist() for g in order.sample_rows(3)[1]] == [
        g.tolist() for g in BatchSampler(20, BatchSettings(2, 4), 5).sample_rows(3)[1]
    ]
    assert BatchSampler(3, BatchSettings(4, 4), 5).sample_rows(0)[0] == 0  # fewer queries than one contrastive batch
    assert [len(rows) for rows in BatchSampler(3, BatchSettings(2, 4), 5).sample_rows(0)[1]] == [
        2
    ]  # a last batch of one query is dropped


def test_a_batch_has_positives_first_then_hard_negatives() -> None:
    group = LabelledBatchSource(build_pairs(), ContrastiveSettings(hard_negatives=3), 1).build_batch(
        np.array([4, 7]), 2
    )
    assert group.queries == [tiny_models.SENTENCES[4], tiny_models.SENTENCES[7]]
    assert group.passages[:2] == [tiny_models.SENTENCES[20], tiny_models.SENTENCES[23]]
    assert group.owner.tolist() == [0, 1, 0, 0, 0, 1, 1, 1]
    assert set(group.passages[2:5]) <= {tiny_models.SENTENCES[21], tiny_models.SENTENCES[23]}
    assert group.relevant[1].tolist() == [p == tiny_models.SENTENCES[23] for p in group.passages]


def test_the_warm_up_is_logarithmic() -> None:
    study = OptimizerSettings(learning_rate=1e-4, warmup_type="logarithmic", warmup_steps=100)
    assert compute_learning_rate(study, 0, 3836) == 0
    assert compute_learning_rate(study, 9, 3836) == pytest.approx(1e-4 * math.log(10) / math.log(100))
    assert compute_learning_rate(study, 100, 3836) == pytest.approx(1e-4)
    assert compute_learning_rate(study, 1968, 3836) == pytest.approx(1e-4 * (3836 - 1968) / 3736)
    linear = OptimizerSettings(learning_rate=1.0, warmup_ratio=0.1, lr_scheduler_type="cosine")
    assert [compute_learning_rate(linear, step, 100) for step in (5, 10, 55)] == pytest.approx([0.5, 1.0, 0.5])


def test_a_training_of_only_the_first_step_of_a_warm_up_is_pointed_out() -> None:
    """It ended with success, and the model was as before."""
    settings = OptimizerSettings(learning_rate=1.0, warmup_ratio=0.1)
    assert "learning rate is 0" in str(describe_zero_rates(settings, 1))
    assert describe_zero_rates(settings, 2) is None
    assert describe_zero_rates(OptimizerSettings(learning_rate=1.0, warmup_ratio=0.0), 1) is None


def compute_deepspeed_rate(step: int, rate: float, warmup: int, total: int) -> float:
    """DeepSpeed's WarmupDecayLR with its default warm-up (`_get_gamma` of its lr_schedules.py), from a rate of zero."""
    warmup = max(2, warmup)
    if step < warmup:
        return rate * math.log(step + 1) / math.log(warmup)
    return rate * max(0.0, (total - step) / max(1.0, total - warmup))


def list_logarithmic_schedules() -> list[tuple[OptimizerSettings, int]]:
    """The schedules of the papers that train with DeepSpeed, with their steps on MS MARCO; and the shortest warm-up."""
    llm_ql = catalog.find_recipe("llm-ql")
    assert llm_ql.query_likelihood
    shortest = OptimizerSettings(warmup_type="logarithmic", warmup_steps=1)
    study = [catalog.find_recipe(name).optimizer for name in ("specialized-llms", "specialized-llms-vl")]
    return [(llm_ql.query_likelihood.optimizer, 1918), (shortest, 7), *((s, 3836) for s in (*study, llm_ql.optimizer))]


@pytest.mark.parametrize(("settings", "steps"), list_logarithmic_schedules())
def test_the_rates_are_those_of_deepspeed(settings: OptimizerSettings, steps: int) -> None:
    warmup = settings.warmup_steps or math.ceil(settings.warmup_ratio * steps)
    ours = [compute_learning_rate(settings, step, steps) for step in range(steps)]
    assert ours == pytest.approx(
        [compute_deepspeed_rate(step, settings.learning_rate, warmup, steps) for step in range(steps)]
    )


def test_stage_1_of_llm_ql_reaches_half_of_its_rate_after_a_few_steps() -> None:
    stage_1 = catalog.find_recipe("llm-ql").query_likelihood
    assert stage_1
    assert compute_learning_rate(stage_1.optimizer, 10, 1918) == pytest.approx(0.456e-5, rel=0.01)  # linear: 0.052e-5


LOGGED_RATES = {  # step: rate, in the training logs of the comparative study of specialized LLMs (all eight models)
    10: 4.9999999999999996e-05, 20: 6.505149978319905e-05, 30: 7.385606273598311e-05, 50: 8.494850021680092e-05,
    90: 9.771212547196623e-05, 100: 9.999999999999999e-05, 110: 9.97591006423983e-05, 120: 9.94914346895075e-05,
    300: 9.467344753747323e-05,
}  # fmt: skip


def test_the_rates_are_those_in_the_studys_logs() -> None:
    """A log names the rate that is set after a step, which `metrics.jsonl` gives for that step."""
    settings = catalog.find_recipe("specialized-llms").optimizer
    ours = {step: compute_learning_rate(settings, step - 1, 3836) for step in LOGGED_RATES}
    assert ours == pytest.approx(LOGGED_RATES, rel=1e-9)


def write_jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_jsonl_file_is_a_training_set(tmp_path: Path) -> None:
    tevatron = {"query": "c", "positive_passages": [{"title": "T", "text": "d"}], "negative_passages": []}
    ours = {"query": "a", "positives": ["x"], "negatives": ["y", "x2"], "scores": [1, 0, 0.5]}
    training_set = read_training_file(write_jsonl(tmp_path / "own.jsonl", ours, tevatron))
    assert (training_set.name, list(training_set.passages)) == ("own", ["x", "y", "x2", "T d"])
    assert training_set.queries == [TrainingQuery("a", (0,), (1, 2), (1.0, 0.0, 0.5)), TrainingQuery("c", (3,))]


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ('{"query": "a"', "2: not JSON"),
        ('["a"]', "2: not an object"),
        ({"query": "a", "negatives": ["x"]}, "2: the query has no positive"),
        ({"query": " ", "positives": ["x"]}, "2: the query is empty"),
        ({"query": "a", "positives": [" "]}, "2: a positive passage is empty"),
        ({"query": "a", "positives": "x"}, "2: positives is not a list"),
        ({"query": "a", "positives": ["x"], "scores": [1, 2]}, "2: 2 scores for 1 passages"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, cause: str) -> None:
    with pytest.raises(DataError, match=cause):
        read_training_file(write_jsonl(tmp_path / "own.jsonl", {"query": "a", "positives": ["x"]}, line))


def test_contrastive_training_needs_two_passages() -> None:
    with pytest.raises(DataError, match="needs at least two"):
        LabelledBatchSource(build_pairs(1), ContrastiveSettings(), 1)


@pytest.mark.parametrize("name", [recipe.name for recipe in catalog.load_recipes()])
def test_shipped_recipes_load(name: str) -> None:
    recipe = catalog.find_recipe(name)
    assert recipe.method.get_template("query").count("{text}") == 1
    assert recipe.method.get_template("document").count("{text}") == 1


def test_the_two_tevatron_recipes_differ_in_a_space_and_the_warm_up() -> None:
    study, repllama = catalog.find_recipe("specialized-llms"), catalog.find_recipe("repllama")
    assert (study.method.query, study.method.document) == ("Query:{text}", "Passage:{text}")
    assert (repllama.method.query, repllama.method.document) == ("Query: {text}", "Passage: {text}")
    assert (study.optimizer.warmup_type, repllama.optimizer.warmup_type) == ("logarithmic", "linear")
    assert (study.batch, study.lengths, study.lora, study.contrastive) == (
        repllama.batch, repllama.lengths, repllama.lora, repllama.contrastive,
    )  # fmt: skip


def test_a_misspelt_recipe_field_suggests_the_closest(tmp_path: Path) -> None:
    text = (
        (Path(__file__).parent.parent / "recipes" / "quick.toml")
        .read_text()
        .replace("learning_rate = ", "learning_rates = ")
    )
    file = tmp_path / "own.toml"
    file.write_text(text)
    with pytest.raises(DataError, match=r"own.toml:\d+: optimizer.learning_rates: unknown field") as caught:
        catalog.find_recipe(str(file))
    assert "did you mean learning_rate" in caught.value.next_step


def test_gradient_checkpointing_gives_the_same_gradient(folder: Path) -> None:
    group = LabelledBatchSource(build_pairs(), RECIPE.contrastive, 1).build_batch(np.arange(6), 0)
    actual = []
    for gradient_checkpointing in (False, True):
        encoder = build_encoder(
            folder, replace(RECIPE, gradient_checkpointing=gradient_checkpointing, lora=LoraSettings(4, 8, 0.2))
        )
        actual.append((backward_batch(encoder, group, 1.0, (0,))[0], collect_gradients(encoder)))
    assert actual[0][0] == pytest.approx(actual[1][0], abs=1e-6)
    assert actual[0][1].keys() == actual[1][1].keys() != set()
    for name in actual[0][1]:
        # without checkpointing the rows run without padding: sums in another order
        torch.testing.assert_close(actual[0][1][name], actual[1][1][name], atol=1e-5, rtol=1e-4)


def test_in_bfloat16_only_frozen_weights_are_bfloat16(folder: Path) -> None:
    recipe = replace(RECIPE, dtype="bfloat16")
    encoder = build_encoder(folder, recipe)
    assert {weight.dtype for weight in lora_module.get_trainable_weights(encoder.model).values()} == {torch.float32}
    frozen = {weight.dtype for weight in encoder.model.parameters() if not weight.requires_grad}
    assert frozen == {torch.bfloat16}
    group = LabelledBatchSource(build_pairs(), RECIPE.contrastive, 1).build_batch(np.arange(6), 0)
    bfloat16_loss, exact = (
        backward_batch(plain_gradient, group, 1.0, (0,))[0] for plain_gradient in (encoder, build_encoder(folder))
    )
    assert bfloat16_loss == pytest.approx(exact, abs=0.1)
    assert {g.dtype for g in collect_gradients(encoder).values()} == {torch.float32}


def test_search_with_a_model_in_training_halves_what_does_not_fit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, texts = build_encoder(folder), tiny_models.SENTENCES[:12]

    def search() -> Ranking:
        return rank_passages(encoder, texts[:3], texts, 5, (16, 24), lambda *_: None)

    expected, encode = search(), TrainableEncoder.encode

    def encode_two(self: TrainableEncoder, tokens: TokenizedTexts) -> torch.Tensor:
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(self, tokens)

    monkeypatch.setattr(TrainableEncoder, "encode", encode_two)
    for rows, expected_rows in zip(search().rows, expected.rows, strict=True):
        assert rows.tolist() == expected_rows.tolist()


class SquaredErrorObjective:
    """The loss of a linear layer on fixed inputs."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        self.layer, self.inputs = layer, torch.linspace(-1, 1, 12).view(3, 4).to(layer.weight.device)

    def backward(self, step: int) -> tuple[float, int]:
        loss = (self.layer(self.inputs) - step).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach()), 3

    def get_first_query(self, step: int) -> str:
        return str(step)


def train_layer(folder: Path, stops: tuple[int, ...], device: str = "cpu") -> TrainLoop:
    """Train six steps, with new weights and a new optimizer after each stop."""
    folder.mkdir()
    for stop in stops:
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 2).to(device)
        schedule = TrainSchedule(6, OptimizerSettings(learning_rate=0.1, weight_decay=0.1), 1, 100)
        loop = TrainLoop(layer, dict(layer.named_parameters()), schedule, SquaredErrorObjective(layer), folder)
        loop.resume()
        while loop.progress.step < stop:
            loop._train_step()
        loop.save_checkpoint()
    return loop


def test_the_fused_optimizer_of_a_gpu_trains_and_resumes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU the same kernel exists."""
    plain = train_layer(tmp_path / "plain", (6,))
    monkeypatch.setattr(train_loop, "FUSED_OPTIMIZER_DEVICES", ("cpu",))
    whole = train_layer(tmp_path / "whole", (6,))
    assert (plain.optimizer.defaults["fused"], whole.optimizer.defaults["fused"]) == (False, True)
    torch.testing.assert_close(whole.weights["weight"], plain.weights["weight"], atol=1e-6, rtol=1e-5)
    resumed = train_layer(tmp_path / "resumed", (3, 6))
    assert torch.equal(resumed.weights["weight"], whole.weights["weight"])


@pytest.mark.parametrize(("fused", "device"), [(True, "meta"), (False, "cpu")])
def test_a_checkpoint_counts_steps_where_the_optimizer_does(tmp_path: Path, fused: bool, device: str) -> None:
    """The fused optimizer refuses a counter on another device; the plain one would wait for it at each step."""
    train_layer(tmp_path / "any", (2,))
    weights = {name: torch.nn.Parameter(w) for name, w in torch.nn.Linear(4, 2, device="meta").named_parameters()}
    optimizer = torch.optim.AdamW(weights.values(), fused=fused, foreach=False)
    assert checkpoint.load_checkpoint(tmp_path / "any", weights, optimizer).step == 2
    assert {state["step"].device.type for state in optimizer.state.values()} == {device}
    assert {state["exp_avg"].device.type for state in optimizer.state.values()} == {"meta"}


def test_processes_that_divide_the_passages_find_the_ranking_of_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, texts = build_encoder(folder), tiny_models.SENTENCES[:22]
    monkeypatch.setattr(in_training_search, "TEXTS_PER_CHUNK", 4)
    monkeypatch.setattr(in_training_search, "QUERIES_PER_GATHER", 2)
    embedded: list[int] = []

    def rank() -> Ranking:
        embedded.append(0)

        def advance(done: int, total: int) -> None:
            embedded[-1] += done

        return rank_passages(encoder, texts[:3], texts, 5, (16, 24), advance)

    alone = rank()
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    parts: list[list[Any]] = []
    for number in range(2):  # each process alone: what it gives to the other
        parts.append([])
        monkeypatch.setattr(distributed, "get_rank", lambda number=number: number)
        monkeypatch.setattr(distributed, "gather_objects", lambda value: [parts[-1].append(value) or value])
        own = rank()
    exchanged = iter(zip(*parts, strict=True))
    monkeypatch.setattr(distributed, "gather_objects", lambda _: next(exchanged))
    together = in_training_search.gather_rankings(own, 5)
    assert embedded == [25, 3 + 12, 3 + 10]
    for expected, actual in ((alone.rows, together.rows), (alone.scores, together.scores)):
        assert [values.tobytes() for values in expected] == [values.tobytes() for values in actual]
