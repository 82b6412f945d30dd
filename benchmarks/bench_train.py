"""Training speed beside sentence-transformers' own trainer: the same model, adapters, data, batch, loss and precision.

    python benchmarks/bench_train.py [--steps 6] [--rounds 2]

Both train SmolLM2-135M on stdlib-code by in-batch softmax at temperature 0.05, low-rank adapters on all linear layers,
texts cut at the same lengths. Each round runs both, each in a process of its own, and every measurement leaves out the
first step. Printed are pairs a second, peak memory, and our ratio to theirs, round by round.
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

NAME, MODEL, TASK, BATCH, LENGTHS = "bench-train", "smollm2-135m-instruct-q4", "stdlib-code", 32, (32, 96)


def pairs(count: int) -> list[tuple[str, str]]:
    from retbench.cards import catalog
    from retbench.corpora.opening import open_collection
    from retbench.training.pairs import of_collection

    card = replace(catalog.task(TASK), split="train")
    training = of_collection(card, open_collection(card))
    return [(query.text, training.passages[query.positives[0]]) for query in training.queries[:count]]


def ours(steps: int) -> list[float]:
    from retbench.cards import catalog
    from retbench.cards.home import cache_folder
    from retbench.cards.recipe import changed
    from retbench.pipelines.finetune import finetune
    from retbench.pipelines.lesson import Wish

    seconds: list[float] = []
    recipe = changed(catalog.recipe("quick"), {"optimiser.max_steps": str(steps), "max_minutes": "none"})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        lines = [json.dumps({"query": q, "positives": [p]}) for q, p in pairs(BATCH * steps)]
        file.write_text("\n".join(lines))
        clock = [time.perf_counter()]

        def report(_: dict[str, Any]) -> None:
            seconds.append(time.perf_counter() - clock[0])
            clock[0] = time.perf_counter()

        finetune(Wish(str(file), MODEL, recipe, out=Path(folder) / NAME, report=report))
    (cache_folder() / "model_cards" / f"{NAME}.toml").unlink()  # known by name for a minute
    return seconds


def theirs(steps: int) -> list[float]:
    import datasets
    import sentence_transformers as st
    from peft import LoraConfig
    from sentence_transformers import losses, models
    from transformers import TrainerCallback

    from retbench.cards import catalog
    from retbench.engines import weights

    folder = _plain(weights.obtain(catalog.model(MODEL)).folder)
    base = models.Transformer(folder, max_seq_length=LENGTHS[1])
    base.tokenizer.pad_token = base.tokenizer.pad_token or base.tokenizer.eos_token
    model = st.SentenceTransformer(modules=[base, models.Pooling(base.get_embedding_dimension(), "mean")], device="cpu")
    model.add_adapter(LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear"))
    cut = [(_cut(base.tokenizer, q, LENGTHS[0]), p) for q, p in pairs(BATCH * steps)]
    data = datasets.Dataset.from_dict({"anchor": [q for q, _ in cut], "positive": [p for _, p in cut]})
    seconds: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        started = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter() - self.started)

    with tempfile.TemporaryDirectory() as folder:
        arguments = st.SentenceTransformerTrainingArguments(
            output_dir=folder, per_device_train_batch_size=BATCH, num_train_epochs=1, learning_rate=5e-4, use_cpu=True,
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


def measure(side: str, steps: int) -> dict[str, float]:
    """One side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--steps", str(steps)]
    ran = subprocess.run(command, check=True, capture_output=True, text=True)
    answer: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", choices=("ours", "theirs"))
    wanted = parser.parse_args()
    if wanted.side:
        from retbench.engines.memory import peak_mb

        kept = (ours if wanted.side == "ours" else theirs)(wanted.steps)[1:]
        print(json.dumps({"pairs_per_second": BATCH * len(kept) / sum(kept), "peak_mb": peak_mb()}))
        return
    for number in range(wanted.rounds):
        found = {side: measure(side, wanted.steps) for side in (("ours", "theirs"), ("theirs", "ours"))[number % 2]}
        ratio = found["ours"]["pairs_per_second"] / found["theirs"]["pairs_per_second"]
        for side, figures in found.items():
            speed, memory = figures["pairs_per_second"], figures["peak_mb"]
            print(f"round {number + 1} {side}: {speed:.2f} pairs/s, {memory:,.0f} MB")
        print(f"round {number + 1}: {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
