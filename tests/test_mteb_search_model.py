"""A retbench model inside mteb: its search, mteb's data flow, metrics and result files, and equal scores."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

import retbench
from retbench.cards import catalog
from retbench.errors import UsageError
from retbench.pipelines.mteb_bridge.search_model import build_model_meta, find_task_card
from tests import mteb_task, small_collection, tiny_models


@pytest.fixture(autouse=True)
def _libraries_may_warn() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_mteb_gives_bm25_the_scores_of_our_run(tmp_path: Path) -> None:
    folder = small_collection.write_folder(tmp_path / "small")
    (cell,) = retbench.evaluate(["bm25"], tasks=[str(folder)], out=tmp_path / "results")
    theirs = mteb_task.compute_scores(
        retbench.as_mteb("bm25"), mteb_task.build_task(small_collection.build_card(folder)), tmp_path / "mteb"
    )
    for metric, score in cell.scores.items():
        if metric in theirs:
            assert theirs[metric] == pytest.approx(score, abs=5e-6), metric
    assert theirs["main_score"] == theirs["ndcg_at_10"] > 0


def test_mtebs_result_files_name_the_model(tmp_path: Path) -> None:
    card = small_collection.build_card(small_collection.write_folder(tmp_path / "small"))
    mteb_task.compute_scores(retbench.as_mteb("bm25"), mteb_task.build_task(card), tmp_path / "mteb")
    (result,) = (tmp_path / "mteb").rglob("Small.json")
    assert result.parent.parent.name == "retbench__bm25"
    assert json.loads((result.parent / "model_meta.json").read_text())["name"] == "retbench/bm25"


def test_only_the_allowed_documents_are_ranked(tmp_path: Path) -> None:
    from datasets import Dataset
    from mteb.abstasks.task_metadata import TaskMetadata

    model = retbench.as_mteb("bm25")
    model.index(Dataset.from_list([{"id": f"d{n}", "title": "", "text": "tea leaves"} for n in range(5)]))
    metadata = TaskMetadata.model_construct(name="None")
    actual = model.search(
        Dataset.from_list([{"id": "q", "text": "tea"}, {"id": "free", "text": "tea"}]),
        task_metadata=metadata, hf_split="test", hf_subset="default", top_k=2, top_ranked={"q": ["d4", "d3"]},
    )  # fmt: skip
    assert actual["q"].keys() == {"d3", "d4"}
    assert actual["free"].keys() == {"d0", "d1"}


def test_settings_are_validated_like_those_of_a_run() -> None:
    with pytest.raises(UsageError, match="dtype=fp12: there is no such dtype"):
        retbench.as_mteb("bm25", overrides={"dtype": "fp12"})


def test_the_model_reads_the_fields_of_our_task_card() -> None:
    assert find_task_card("SciFact", "test", "default") == catalog.find_task_card("scifact")
    assert find_task_card("COIRCodeSearchNetRetrieval", "test", "go") == catalog.find_task_card("codesearchnet-go")
    assert find_task_card("CosQA", "test", "default").protocol == "mteb"
    assert find_task_card("Unheard", "dev", "default").name == "unheard"


def test_a_model_is_filed_under_its_repository_and_another_method_is_an_experiment() -> None:
    card = catalog.find_model_card("qwen2.5-7b")
    assert card.method is not None
    default_meta = build_model_meta(card, catalog.find_method(card.method.default), "abc")
    other_meta = build_model_meta(card, catalog.find_method("mean"), "abc", {"dtype": "float32"})
    assert (default_meta.name, default_meta.experiment_kwargs) == ("Qwen/Qwen2.5-7B", None)
    assert (other_meta.name, other_meta.experiment_kwargs) == (
        "Qwen/Qwen2.5-7B",
        {"method": "mean", "dtype": "float32"},
    )
    assert build_model_meta(catalog.find_model_card("bm25"), catalog.find_method("mean"), None).revision == "retbench"


@pytest.mark.parametrize(
    ("overrides", "fast", "stated"),
    [
        ({}, True, None),
        ({}, False, "float32"),
        ({"dtype": "float32"}, True, "float32"),
        ({"dtype": "bfloat16"}, False, None),
    ],
)
def test_mteb_is_told_the_dtype_that_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: dict[str, Any], fast: bool, stated: str | None
) -> None:
    monkeypatch.setattr("retbench.engines.device.has_fast_bf16", lambda: fast)
    model = retbench.as_mteb(str(tiny_models.build_model(tmp_path / "tiny")), overrides=overrides)
    assert (model.mteb_model_meta.experiment_kwargs or {}).get("dtype") == stated


def test_no_files_are_left_in_the_cache(tmp_path: Path, own_cache: Path) -> None:
    model = retbench.as_mteb("bm25")
    mteb_task.compute_scores(
        model,
        mteb_task.build_task(small_collection.build_card(small_collection.write_folder(tmp_path / "small"))),
        tmp_path / "mteb",
    )
    del model
    assert not list((own_cache / "collections").glob("mteb.*"))
