"""Time to train an adaptor on many stored vectors: one training (one alpha, one beta) with its validation.

    python benchmarks/bench_adaptor.py --documents 100000

The vectors are random: clusters of documents, and queries that are rotated documents, so there is something to learn.
`retbench finetune --objective adaptor` does the same after its vectors are cached; its default grid has nine such
trainings. CPU seconds are reported too, because other work on the machine slows the clock.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch

from retbench.cards.adaptor_recipe import AdaptorRecipe
from retbench.encoders.adaptor import Adaptor
from retbench.pipelines.finetuning.train_adaptor import VALIDATION_POOL
from retbench.retrievers.exact_search import search_exactly as nearest
from retbench.store.shard_store import VectorBlock
from retbench.training.search_adaptor import AdaptorTrainingData, train_with_loss_weights

HERE = Path(__file__).parent
HELD = 0.2


def draw_clusters(documents: int, queries: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Documents, queries, and the document each query is for."""
    draw = np.random.default_rng(1)
    centres = draw.normal(size=(1000, width))
    vectors = centres[draw.integers(1000, size=documents)] + draw.normal(size=(documents, width))
    rotation, _ = np.linalg.qr(draw.normal(size=(width, width)))
    wanted = draw.choice(documents, queries, replace=False)
    asked = vectors[wanted] @ (0.3 * np.eye(width) + rotation) + 0.5 * draw.normal(size=(queries, width))
    return normalize(vectors), normalize(asked), wanted


def normalize(vectors: np.ndarray) -> np.ndarray:
    """Normalise to length one, in float32."""
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def measure_training(documents: int, queries: int, width: int, recipe: AdaptorRecipe) -> dict[str, float]:
    """Run one training; return its seconds and scores."""
    vectors, asked, wanted = draw_clusters(documents, queries, width)
    held = round(queries * HELD)
    learned = np.arange(held, queries)
    pairs = np.array([(row, wanted[q], 1) for row, q in enumerate(learned)], dtype=np.int64)
    training_data = AdaptorTrainingData(asked[held:], vectors, pairs, [{int(wanted[q]): 1} for q in learned])
    others = np.setdiff1d(np.arange(documents), wanted[:held])[: VALIDATION_POOL - held]
    small = np.concatenate((wanted[:held], others))  # the size of the validation pool for a large corpus
    looks: list[float] = []

    def score(tensors: dict[str, np.ndarray]) -> float:
        change = Adaptor(tensors)
        found = nearest(change(asked[:held]), [VectorBlock(np.arange(len(small)), change(vectors[small]))], 10).rows
        ranks = [np.flatnonzero(row == q) for q, row in enumerate(found)]
        looks.append(float(np.mean([1 / np.log2(rank[0] + 2) if len(rank) else 0 for rank in ranks])))
        return looks[-1]

    started, cpu = time.perf_counter(), time.process_time()
    best = train_with_loss_weights(training_data, recipe, recipe.alpha[0], recipe.beta[0], score)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    steps = recipe.eval_steps * (len(looks) - 1)
    return {
        "documents": documents, "queries": queries, "width": width, "steps": steps, "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1), "cpu_seconds_a_step": round(cpu / max(1, steps), 4), "before": round(looks[0], 4),
        "after": round(best.score, 4), "best_step": best.step,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--iterations", type=int, default=AdaptorRecipe.max_steps)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "adaptor.json")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    recipe = AdaptorRecipe(alpha=(0.1,), beta=(0.01,), max_steps=options.iterations)
    found = measure_training(options.documents, options.queries, options.width, recipe)
    facts = {
        "command": " ".join(["python", *sys.argv]),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    told = json.dumps({**facts, "threads": torch.get_num_threads(), "training": found}, indent=1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(told + "\n")
    print(told)


if __name__ == "__main__":
    main()
