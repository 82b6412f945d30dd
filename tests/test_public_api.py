"""The functions of `import retbench`: every argument is explicit, and results equal those of the commands."""

import inspect
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import retbench
from retbench.errors import UsageError
from tests import small_collection

PUBLIC = [getattr(retbench, name) for name in retbench.__all__]


@pytest.mark.parametrize("function", PUBLIC, ids=retbench.__all__)
def test_every_argument_is_typed_and_documented(function: Callable[..., Any]) -> None:
    documentation = inspect.getdoc(function) or ""
    assert "retbench." in documentation, "the docstring has an example"
    for parameter in inspect.signature(function).parameters.values():
        assert parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        assert parameter.annotation is not parameter.empty
        assert f"\n    {parameter.name}: " in documentation


def test_the_import_is_light() -> None:
    program = "import sys, retbench; sys.exit(bool({'torch', 'numpy', 'pandas', 'typer'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_evaluate_takes_one_name_or_many(tmp_path: Path) -> None:
    folder = str(small_collection.write_folder(tmp_path / "small"))
    lines: list[str] = []
    (first,) = retbench.evaluate("bm25", tasks=folder, out=tmp_path / "results", log_status=lines.append)
    (same_cell,) = retbench.evaluate(["bm25"], tasks=[folder], out=tmp_path / "results")
    assert (first.status, first.cached, same_cell.cached) == ("done", False, True)
    assert same_cell.scores == first.scores
    assert any("bm25" in line for line in lines)


def test_evaluate_passes_every_option_on(tmp_path: Path) -> None:
    folder = str(small_collection.write_folder(tmp_path / "small"))
    cell, reranked = retbench.evaluate(
        "bm25", tasks=folder, sample=1, rerank="ql", overrides={"depth": 20}, devices=1, out=tmp_path / "results"
    )
    assert (cell.sample, cell.queries, cell.rerank) == (1, 1, ())
    assert reranked.rerank[0].startswith("ql")


def test_weights_need_one_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="exactly one model"):
        retbench.evaluate(["a", "b"], tasks="stdlib-text", weights=str(tmp_path))


def test_load_results_and_compare_read_what_evaluate_wrote(tmp_path: Path) -> None:
    folder = str(small_collection.write_folder(tmp_path / "small"))
    for depth in (20, 30):
        retbench.evaluate("bm25", tasks=folder, overrides={"depth": depth}, out=tmp_path / "results")
    table = retbench.load_results(tmp_path / "results")
    assert sorted(table["ndcg_at_10"]) == sorted(table["main_score"])
    a, b = table["settings_id"]
    comparison = retbench.compare(a, b, results=tmp_path / "results", task=folder, queries=1)
    assert [setting.name for setting in comparison.settings] == ["settings.depth"]


def test_finetune_returns_the_card_of_a_model_that_evaluate_knows(
    model: Path, tmp_path: Path, fresh_catalog: Callable[[], None]
) -> None:
    pairs = [{"query": f"question {n}", "positives": [f"the answer {n}"], "negatives": ["none"]} for n in range(8)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs), encoding="utf-8")
    metrics: list[dict[str, Any]] = []
    card = retbench.finetune(
        data,
        str(model),
        recipe="quick",
        overrides={"optimizer.num_train_epochs": 1, "seed": 7, "lora": "none"},
        out=tmp_path / "trained",
        log_metrics=metrics.append,
    )
    assert card.training
    assert (card.name, card.training.recipe["seed"]) == ("trained", 7)
    assert metrics[-1]["step"] == metrics[-1]["steps"]
    fresh_catalog()
    folder = small_collection.write_folder(tmp_path / "small")
    (cell,) = retbench.evaluate(card.name, tasks=str(folder), out=tmp_path / "results")
    assert cell.status == "done", cell.error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "contrastiv"}, "there is no objective"),
        ({"objective": "adaptor", "eval_task": "stdlib-code"}, "does not support eval_task"),
        ({"objective": "llm-ql", "recipe": "quick"}, "has objective contrastive"),
        ({"objective": "adaptor", "recipe": "nowhere.toml"}, "no adaptor recipe at"),
    ],
)
def test_finetune_refuses_what_does_not_fit(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        retbench.finetune("stdlib-code", "minilm-l6", out=tmp_path / "trained", **options)


def test_an_evaluation_without_tasks_is_an_error_and_not_an_empty_list() -> None:
    with pytest.raises(UsageError, match="no task is given"):
        retbench.evaluate("bm25")
