"""Speed of contrastive LoRA training: the steps of `retbench finetune` against the trainer of sentence-transformers.

Both have the same model in bfloat16, rank-16 adapters in float32 on all linear layers, the same pairs, batch size and
maximum lengths, and softmax over in-batch negatives at temperature 0.05 with mean pooling. The first two steps are left
out. Ours is measured with the token limit per pass of the recipe and with a larger one. sentence-transformers runs all
queries of a batch at once, then all passages.
"""

import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.gpu import models
from benchmarks.gpu.models import CUDA, DEVICE
from benchmarks.gpu.peer import build_sentence_transformer
from benchmarks.gpu.result_log import ResultLog, compute_median, release_memory, synchronize
from retbench.cards import catalog
from retbench.cards.recipe import Recipe, apply_recipe_options
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.engines import memory
from retbench.training import lora
from retbench.training.contrastive_batches import LabelledBatchSource
from retbench.training.contrastive_objective import ContrastiveObjective
from retbench.training.train_forward import TrainableEncoder
from retbench.training.train_loop import TrainLoop, TrainSchedule
from retbench.training.training_set import parse_training_rows

NAMES = ("0.5B", "7B") if CUDA else ("tiny qwen2",)
BATCH_SIZES = {"0.5B": 64, "7B": 16, "tiny qwen2": 4}
WARMUP_STEPS, STEPS = 2, 12 if CUDA else 4
MIN_STEPS = 5  # measured steps of each side, even past the time limit: a single step is not reliable
LARGE_PASS_TOKENS = 1 << 14  # tokens per pass
OURS, THEIRS, BY_RECIPE = "ours, passes of 16,384 tokens", "theirs", "ours, as the recipe"
Pairs = list[tuple[str, str]]


def measure(log: ResultLog) -> None:
    """Measure both sides for each shape; the remaining time is divided equally."""
    sides = [(name, side) for name in NAMES for side in (OURS, THEIRS, BY_RECIPE)]
    paces: dict[tuple[str, str], float] = {}
    for number, (name, side) in enumerate(sides):
        ends = time.time() + log.seconds_left() / (len(sides) - number)
        if log.seconds_left() < 4:
            log.write_row("skipped", model=name, side=side, why="no time left")
            continue
        with log.record_errors("training", model=name, side=side):
            facts = measure_side(name, side, ends)
            paces[name, side] = facts["pairs_per_second"]
            if (name, THEIRS) in paces and (name, OURS) in paces:
                own = paces[name, BY_RECIPE if side == BY_RECIPE else OURS]
                facts["times_theirs"] = round(own / paces[name, THEIRS], 3)
            log.write_row("training", model=name, side=side, measured=CUDA, batch=BATCH_SIZES[name], **facts)
        release_memory()


def measure_side(name: str, side: str, ends: float) -> dict[str, Any]:
    """Build a new model and train it for some steps."""
    model = models.build_model(models.get_shapes()[name])
    vocabulary = int(model.config.vocab_size)
    tokenizer = models.build_tokenizer(vocabulary)
    batch = BATCH_SIZES[name]
    pairs = draw_pairs(batch * STEPS, vocabulary)
    memory.reset_peak_memory()
    if side == THEIRS:
        taken = time_sentence_transformers_steps(model, tokenizer, pairs, batch, ends)
    else:
        taken = time_retbench_steps(
            model, tokenizer, pairs, build_recipe(batch, LARGE_PASS_TOKENS if side == OURS else None), ends
        )
    kept = taken[WARMUP_STEPS:] or taken
    return {"pairs_per_second": round(batch / compute_median(kept), 2), "peak_mb": round(memory.get_peak_memory_mb()),
            "steps": len(kept), "seconds": [round(one, 4) for one in taken]}  # fmt: skip


def draw_pairs(count: int, vocabulary: int) -> Pairs:
    """Pairs of a query of about twelve words and a passage."""
    passages = models.draw_texts("passages", count * 90, vocabulary)[:count]
    return [(" ".join(passage.split()[1:13]) + f" w{2 + row % 400}", passage) for row, passage in enumerate(passages)]


def build_recipe(batch: int, tokens: int | None) -> Recipe:
    """The recipe `quick` with the settings of this benchmark."""
    changes = {"dtype": "bfloat16", "max_minutes": "none", "batch.contrastive_batch_size": str(batch),
              "batch.train_batch_size": str(batch),
              "lengths.document": "156"}  # fmt: skip
    changes |= {"batch.max_tokens": str(tokens)} if tokens else {}
    return apply_recipe_options(catalog.find_recipe("quick"), changes)


def time_retbench_steps(model: Any, tokenizer: Any, pairs: Pairs, recipe: Recipe, ends: float) -> list[float]:
    """Seconds of each step of our train loop."""
    rows = ((str(row), {"query": query, "positives": [passage]}) for row, (query, passage) in enumerate(pairs))
    training_set = parse_training_rows("drawn", rows)
    adapted = lora.prepare_for_training(model, recipe)
    encoder = TrainableEncoder(adapted, PromptTokenizer(tokenizer, recipe.method), recipe, True, DEVICE)
    objective = ContrastiveObjective(encoder, LabelledBatchSource(training_set, recipe.contrastive, recipe.seed))
    schedule = TrainSchedule(STEPS, recipe.optimizer, 1000, 1000)
    folder = Path(tempfile.mkdtemp())
    loop = TrainLoop(adapted, lora.get_trainable_weights(adapted), schedule, objective, folder)
    taken: list[float] = []
    while len(taken) < STEPS and (len(taken) < WARMUP_STEPS + MIN_STEPS or time.time() < ends):
        started = time.perf_counter()
        loop._train_step()
        synchronize()
        taken.append(time.perf_counter() - started)
    return taken


def time_sentence_transformers_steps(model: Any, tokenizer: Any, pairs: Pairs, batch: int, ends: float) -> list[float]:
    """Seconds of each step of the trainer, with its data loader and collator, as on our side."""
    import datasets
    import sentence_transformers as st
    from peft import LoraConfig
    from sentence_transformers.sentence_transformer import losses
    from transformers import TrainerCallback

    whole = build_sentence_transformer(model, tokenizer, 156, "mean")
    whole.add_adapter(LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear"))
    columns = {"anchor": [query for query, _ in pairs], "positive": [passage for _, passage in pairs]}
    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.mark()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            self.mark()
            control.should_training_stop = len(marks) > WARMUP_STEPS + MIN_STEPS and time.time() > ends
            return control

        def mark(self) -> None:
            synchronize()
            marks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = st.SentenceTransformerTrainingArguments(
            output_dir=folder, per_device_train_batch_size=batch, max_steps=STEPS, learning_rate=5e-4, bf16=True,
            use_cpu=not CUDA, save_strategy="no", report_to="none", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        loss = losses.MultipleNegativesRankingLoss(whole, scale=20.0)
        st.SentenceTransformerTrainer(
            model=whole, args=arguments, train_dataset=datasets.Dataset.from_dict(columns), loss=loss,
            callbacks=[Clock()],
        ).train()  # fmt: skip
    moved = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert moved, "no adapter was trained"
    return [after - before for before, after in pairwise(marks)]
