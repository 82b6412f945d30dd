"""A model trained by dot product, from the recipe to the ranking, against plain transformers and torch."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import tiny_models
from tests.test_dot_product import check_dot_products
from tests.test_run import run_cells, run_command

DOT_RECIPE = """
name = "dot"
title = "all weights, compared by dot product"
fidelity = "ours"
source = "a test"
objective = "contrastive"
[method]
name = "mean-dot"
title = "the mean of all token states, compared by dot product"
fidelity = "ours"
source = "a test"
pooling = "mean"
similarity = "dot"
[lengths]
query = 64
document = 64
[contrastive]
temperature = 20.0
hard_negatives = 0
[mining]
source = "given"
[batch]
contrastive_batch_size = 6
train_batch_size = 6
[optimizer]
learning_rate = 1e-3
lr_scheduler_type = "constant"
num_train_epochs = 4
weight_decay = 0.01
max_grad_norm = 0.0
"""


def test_a_model_trained_by_dot_product_is_saved_and_run_as_such(
    model: Path, task: Path, out: Path, tmp_path: Path, fresh_catalog: Callable[[], None]
) -> None:
    """The losses are those of a plain loop; the trained model is found by name, and its runs rank by dot product."""
    pairs = list(zip(tiny_models.SENTENCES[:6], tiny_models.SENTENCES[16:22], strict=True))
    data, recipe, folder = tmp_path / "pairs.jsonl", tmp_path / "dot.toml", tmp_path / "trained"
    data.write_text("".join(json.dumps({"query": query, "positives": [text]}) + "\n" for query, text in pairs))
    recipe.write_text(DOT_RECIPE)
    line = ("finetune", data, "--model", model, "--recipe", recipe, "--name", "dotted", "--out", folder)
    answer = run_command(*line)
    assert answer.exit_code == 0, answer.output
    metrics = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [entry["loss"] for entry in metrics] == pytest.approx(train_plainly(model, pairs, "dot", 4), rel=1e-4)
    assert metrics[0]["loss"] != pytest.approx(train_plainly(model, pairs, "cosine", 1)[0], rel=1e-2)
    fresh_catalog()
    (cell,) = run_cells("run", "--model", "dotted", "--task", task, "--out", out, "--set", "dtype=float32")
    record = json.loads((Path(cell["record"]) / "record.json").read_text())
    assert record["settings"]["encoder"]["method"]["similarity"] == "dot"
    check_dot_products(folder, task, Path(cell["record"]))


def train_plainly(folder: Path, pairs: list[tuple[str, str]], similarity: str, steps: int) -> list[float]:
    """The losses of a loop with only transformers and torch: every text alone, in-batch negatives."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01), []
    for _ in range(steps):
        queries, passages = (
            torch.stack([model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in texts])
            for texts in zip(*pairs, strict=True)
        )
        if similarity == "cosine":
            queries, passages = (torch.nn.functional.normalize(vectors) for vectors in (queries, passages))
        loss = torch.nn.functional.cross_entropy(queries @ passages.T / 20.0, torch.arange(len(pairs)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
