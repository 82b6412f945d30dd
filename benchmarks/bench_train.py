"""Training speed beside sentence-transformers' own trainer: the same model, adapters, data, batch, loss and precision.

    python benchmarks/bench_train.py [--steps 6] [--rounds 2] [--dtype bfloat16] [--out benchmarks/results/train.json]

Both train SmolLM2-135M on stdlib-code by in-batch softmax at temperature 0.05, low-rank adapters on all linear layers,
texts cut at the same lengths, in the same precision (in bfloat16, frozen weights are held in it and both autocast).
Each round runs both, each in a process of its own, and every measurement leaves out the first step. Printed are pairs a
second, pairs a second of CPU (which other work on the machine disturbs less), peak memory, and our ratio to theirs,
round by round.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

Moment = tuple[float, float]  # of the clock, and of the CPU

NAME, MODEL, TASK, BATCH, LENGTHS = "bench-train", "smollm2-135m-instruct-q4", "stdlib-code", 32, (32, 96)


def pairs(count: int) -> list[tuple[str, str]]:
    from retbench.cards import catalog
    from retbench.corpora.open_collection import open_collection
    from retbench.training.training_set import build_training_set

    card = replace(catalog.find_task_card(TASK), split="train")
    training = build_training_set(card, open_collection(card))
    return [(query.text, training.passages[query.positives[0]]) for query in training.queries[:count]]


def now() -> Moment:
    return time.perf_counter(), time.process_time()


def ours(steps: int, dtype: str) -> list[Moment]:
    from retbench.cards import catalog
    from retbench.cards.recipe import apply_recipe_options
    from retbench.cards.user_config import get_cache_folder
    from retbench.pipelines.finetuning.train_encoder import finetune_encoder
    from retbench.training.training_data import TrainingRequest

    seconds: list[Moment] = []
    changes = {"optimizer.max_steps": str(steps), "max_minutes": "none", "dtype": dtype, "save_steps": "1000"}
    recipe = apply_recipe_options(catalog.find_recipe("quick"), changes)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        lines = [json.dumps({"query": q, "positives": [p]}) for q, p in pairs(BATCH * steps)]
        file.write_text("\n".join(lines))
        clock = [now()]

        def report(_: dict[str, Any]) -> None:
            seconds.append(_since(clock[0]))
            clock[0] = now()

        finetune_encoder(TrainingRequest(str(file), MODEL, out=Path(folder) / NAME, log_metrics=report), recipe)
    (get_cache_folder() / "model_cards" / f"{NAME}.toml").unlink()  # known by name for a minute
    return seconds


def _since(moment: Moment) -> Moment:
    return time.perf_counter() - moment[0], time.process_time() - moment[1]


def theirs(steps: int, dtype: str) -> list[Moment]:
    import datasets
    import sentence_transformers as st
    import torch
    from peft import LoraConfig
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import TrainerCallback

    from retbench.cards import catalog
    from retbench.engines import weights

    folder = _plain(weights.obtain_weights(catalog.find_model_card(MODEL)).folder)
    base = Transformer(folder, max_seq_length=LENGTHS[1])
    base.tokenizer.pad_token = base.tokenizer.pad_token or base.tokenizer.eos_token
    model = st.SentenceTransformer(modules=[base, Pooling(base.get_embedding_dimension(), "mean")], device="cpu")
    model.to(getattr(torch, dtype))  # the adapters that follow are float32, as ours
    model.add_adapter(LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear"))
    cut = [(_cut(base.tokenizer, q, LENGTHS[0]), p) for q, p in pairs(BATCH * steps)]
    data = datasets.Dataset.from_dict({"anchor": [q for q, _ in cut], "positive": [p for _, p in cut]})
    seconds: list[Moment] = []

    class Clock(TrainerCallback):
        started = (0.0, 0.0)

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(_since(self.started))

    with tempfile.TemporaryDirectory() as folder:
        arguments = st.SentenceTransformerTrainingArguments(
            output_dir=folder, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=5e-4, use_cpu=True,
            bf16=dtype == "bfloat16",
            save_strategy="no", report_to="none", logging_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        loss = losses.MultipleNegativesRankingLoss(model, scale=20.0)
        st.SentenceTransformerTrainer(
            model=model, args=arguments, train_dataset=data, loss=loss, callbacks=[Clock()]
        ).train()
    return seconds


def _plain(folder: Path) -> str:
    """The same model without the chat template that the library would wrap around every text."""
    made = Path(tempfile.mkdtemp())
    for file in (*folder.glob("*.safetensors"), folder / "config.json"):
        (made / file.name).symlink_to(file.resolve())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(made)
    return str(made)


def _cut(tokenizer: Any, text: str, length: int) -> str:
    ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=length)["input_ids"]
    return str(tokenizer.decode(ids))


def measure(side: str, steps: int, dtype: str) -> dict[str, float]:
    """One side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--steps", str(steps), "--dtype", dtype]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    answer: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return answer


def alone(side: str, steps: int, dtype: str) -> None:
    """What one process measures."""
    import torch

    from retbench.engines.memory import get_peak_memory_mb

    kept = (ours if side == "ours" else theirs)(steps, dtype)[1:]
    clock, cpu = (BATCH * len(kept) / sum(one[place] for one in kept) for place in (0, 1))
    facts = {"pairs_per_second": clock, "pairs_per_cpu_second": cpu, "peak_mb": get_peak_memory_mb()}
    print(json.dumps({**facts, "threads": torch.get_num_threads()}))


def one_round(number: int, steps: int, dtype: str) -> dict[str, Any]:
    """Both sides, in turns who is first."""
    found = {side: measure(side, steps, dtype) for side in (("ours", "theirs"), ("theirs", "ours"))[number % 2]}
    for side, figures in found.items():
        clock, cpu = figures["pairs_per_second"], figures["pairs_per_cpu_second"]
        print(f"round {number + 1} {side}: {clock:.2f} pairs/s, {cpu:.2f} a CPU second, {figures['peak_mb']:,.0f} MB")
    ratios = {key: found["ours"][key] / found["theirs"][key] for key in found["ours"] if key != "threads"}
    print(f"round {number + 1}: " + ", ".join(f"{key} {ratio:.2f} times" for key, ratio in ratios.items()), flush=True)
    return {**found, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--side", choices=("ours", "theirs"))
    parser.add_argument("--out", type=Path)
    wanted = parser.parse_args()
    if wanted.side:
        alone(wanted.side, wanted.steps, wanted.dtype)
        return
    rounds = [one_round(number, wanted.steps, wanted.dtype) for number in range(wanted.rounds)]
    if wanted.out:
        command = (
            f"python benchmarks/bench_train.py --steps {wanted.steps} --rounds {wanted.rounds} --dtype {wanted.dtype}"
        )
        wanted.out.write_text(json.dumps({"command": command, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
