"""Training speed against the trainer of sentence-transformers: same model, adapters, data, batch, loss and precision.

    python benchmarks/bench_train.py [--steps 6] [--rounds 2] [--dtype bfloat16] [--out benchmarks/results/train.json]

Both train SmolLM2-135M on stdlib-code with softmax over in-batch negatives at temperature 0.05 and LoRA on all linear
layers. The maximum lengths and the precision are equal (in bfloat16, frozen weights are bfloat16 and both autocast).
Each round runs both sides, each in its own process, and leaves out the first step. The output is pairs per second,
pairs per CPU second (less sensitive to other work on the machine), peak memory, and the ratio of each round.
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

Moment = tuple[float, float]  # wall-clock seconds and CPU seconds

NAME, MODEL, TASK, BATCH, LENGTHS = "bench-train", "smollm2-135m-instruct-q4", "stdlib-code", 32, (32, 96)


def load_pairs(count: int) -> list[tuple[str, str]]:
    from retbench.cards import catalog
    from retbench.corpora.open_collection import open_collection
    from retbench.training.training_set import build_training_set

    card = replace(catalog.find_task_card(TASK), split="train")
    training = build_training_set(card, open_collection(card))
    return [(query.text, training.passages[query.positives[0]]) for query in training.queries[:count]]


def read_clocks() -> Moment:
    return time.perf_counter(), time.process_time()


def time_retbench_steps(steps: int, dtype: str) -> list[Moment]:
    from retbench.cards import catalog
    from retbench.cards.recipe import apply_recipe_options
    from retbench.pipelines.finetuning.train_encoder import finetune_encoder
    from retbench.system.user_config import get_cache_folder
    from retbench.training.training_data import TrainingRequest

    seconds: list[Moment] = []
    changes = {"optimizer.max_steps": str(steps), "max_minutes": "none", "dtype": dtype, "save_steps": "1000"}
    recipe = apply_recipe_options(catalog.find_recipe("quick"), changes)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        lines = [json.dumps({"query": q, "positives": [p]}) for q, p in load_pairs(BATCH * steps)]
        file.write_text("\n".join(lines))
        clock = [read_clocks()]

        def report(_: dict[str, Any]) -> None:
            seconds.append(_since(clock[0]))
            clock[0] = read_clocks()

        finetune_encoder(TrainingRequest(str(file), MODEL, out=Path(folder) / NAME, log_metrics=report), recipe)
    (get_cache_folder() / "model_cards" / f"{NAME}.toml").unlink()  # the card was registered only for this run
    return seconds


def _since(moment: Moment) -> Moment:
    return time.perf_counter() - moment[0], time.process_time() - moment[1]


def time_sentence_transformers_steps(steps: int, dtype: str) -> list[Moment]:
    import datasets
    import sentence_transformers as st
    import torch
    from peft import LoraConfig
    from sentence_transformers.sentence_transformer import losses
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import TrainerCallback

    from retbench.cards import catalog
    from retbench.engines import weights

    folder = _copy_without_chat_template(weights.obtain_weights(catalog.find_model_card(MODEL)).folder)
    base = Transformer(folder, max_seq_length=LENGTHS[1])
    base.tokenizer.pad_token = base.tokenizer.pad_token or base.tokenizer.eos_token
    model = st.SentenceTransformer(modules=[base, Pooling(base.get_embedding_dimension(), "mean")], device="cpu")
    model.to(getattr(torch, dtype))  # the adapters added later are float32, as on our side
    model.add_adapter(LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear"))
    cut = [(_truncate_text(base.tokenizer, q, LENGTHS[0]), p) for q, p in load_pairs(BATCH * steps)]
    data = datasets.Dataset.from_dict({"anchor": [q for q, _ in cut], "positive": [p for _, p in cut]})
    seconds: list[Moment] = []

    class Clock(TrainerCallback):
        started = (0.0, 0.0)

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = read_clocks()

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


def _copy_without_chat_template(folder: Path) -> str:
    """Copy the model without its chat template, which the library would apply to every text."""
    made = Path(tempfile.mkdtemp())
    for file in (*folder.glob("*.safetensors"), folder / "config.json"):
        (made / file.name).symlink_to(file.resolve())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(made)
    return str(made)


def _truncate_text(tokenizer: Any, text: str, length: int) -> str:
    ids = tokenizer(text, add_special_tokens=False, truncation=True, max_length=length)["input_ids"]
    return str(tokenizer.decode(ids))


def run_side(side: str, steps: int, dtype: str) -> dict[str, float]:
    """Run one side in a new process."""
    command = [sys.executable, __file__, "--side", side, "--steps", str(steps), "--dtype", dtype]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    answer: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return answer


def measure_side(side: str, steps: int, dtype: str) -> None:
    """Measure one side in this process."""
    import torch

    from retbench.engines.memory import get_peak_memory_mb

    kept = (time_retbench_steps if side == "ours" else time_sentence_transformers_steps)(steps, dtype)[1:]
    clock, cpu = (BATCH * len(kept) / sum(one[place] for one in kept) for place in (0, 1))
    facts = {"pairs_per_second": clock, "pairs_per_cpu_second": cpu, "peak_mb": get_peak_memory_mb()}
    print(json.dumps({**facts, "threads": torch.get_num_threads()}))


def run_round(number: int, steps: int, dtype: str) -> dict[str, Any]:
    """Run both sides; the order alternates."""
    found = {side: run_side(side, steps, dtype) for side in (("ours", "theirs"), ("theirs", "ours"))[number % 2]}
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
        measure_side(wanted.side, wanted.steps, wanted.dtype)
        return
    rounds = [run_round(number, wanted.steps, wanted.dtype) for number in range(wanted.rounds)]
    if wanted.out:
        command = (
            f"python benchmarks/bench_train.py --steps {wanted.steps} --rounds {wanted.rounds} --dtype {wanted.dtype}"
        )
        wanted.out.write_text(json.dumps({"command": command, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
