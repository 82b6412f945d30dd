"""Export to mteb's result format: mteb reads the files, and runs that mteb would not measure are refused."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import retbench
from retbench.cards import catalog
from retbench.cli.main import app
from retbench.errors import DataError, UsageError
from retbench.pipelines.mteb_bridge.export_results import export_results
from tests import small_collection, tiny_models
from tests.hub_repositories import build_retrieval_configs, write_fetched_repository


@pytest.fixture(autouse=True)
def _libraries_may_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write_cached_dataset(task: str, **layout: Any) -> None:
    source = catalog.find_task_card(task).source
    rows = build_retrieval_configs(
        small_collection.DOCUMENTS, small_collection.QUERIES, small_collection.TEST_JUDGMENTS, **layout
    )
    if source.subset:
        split, queries = rows[f"{source.subset}-queries"]
        rows[f"{source.subset}-queries"] = (split, [{**query, "partition": "test"} for query in queries])
    write_fetched_repository(str(source.repo), str(source.revision), rows)


def run_tasks(tmp_path: Path, *tasks: str, **options: Any) -> list[str]:
    cells = retbench.evaluate(["bm25"], tasks=list(tasks), out=tmp_path / "results", **options)
    assert [cell.error for cell in cells] == [None] * len(tasks)
    return [str(cell.record) for cell in cells]


def test_mteb_reads_what_was_exported(tmp_path: Path) -> None:
    from mteb.results import TaskResult

    write_cached_dataset("scifact")
    (cell,) = retbench.evaluate(["bm25"], tasks=["scifact"], out=tmp_path / "results")
    (file,) = export_results([str(cell.record)], tmp_path / "mteb")
    result = TaskResult.from_disk(file)
    assert result.task_name == "SciFact"
    assert result.dataset_revision == catalog.find_task_card("scifact").source.revision
    assert result.get_score(splits=["test"]) == pytest.approx(cell.main_score, abs=5e-6)
    assert json.loads((file.parent / "model_meta.json").read_text())["name"] == "retbench/bm25"


def test_half_a_result_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    write_cached_dataset("scifact")
    runs = run_tasks(tmp_path, "scifact")
    (file,) = export_results(runs, tmp_path / "mteb")
    content = file.read_bytes()
    for half in (content[: len(content) // 2], b"", b"[]", b'{"scores": 3}'):
        file.write_bytes(half)
        with pytest.raises(DataError, match=r"SciFact\.json is not a result file of mteb"):
            export_results(runs, tmp_path / "mteb")
    file.unlink()
    assert export_results(runs, tmp_path / "mteb")[0].read_bytes() == content


def test_cutoffs_deeper_than_the_run_are_left_out(tmp_path: Path) -> None:
    write_cached_dataset("scifact")
    (file,) = export_results(run_tasks(tmp_path, "scifact"), tmp_path / "mteb")
    scores = json.loads(file.read_text())["scores"]["test"][0]
    assert "recall_at_100" in scores
    assert "recall_at_1000" not in scores


def test_the_languages_of_a_task_go_into_one_file(tmp_path: Path) -> None:
    rows: dict[str, Any] = {}
    for language in ("go", "ruby"):
        configs = build_retrieval_configs(
            small_collection.DOCUMENTS, small_collection.QUERIES, small_collection.TEST_JUDGMENTS, prefix=f"{language}-"
        )
        split, queries = configs[f"{language}-queries"]
        rows |= {**configs, f"{language}-queries": (split, [{**query, "partition": "test"} for query in queries])}
    source = catalog.find_task_card("codesearchnet-go").source
    write_fetched_repository(str(source.repo), str(source.revision), rows)
    (file,) = export_results(run_tasks(tmp_path, "codesearchnet-go", "codesearchnet-ruby"), tmp_path / "mteb")
    scores = json.loads(file.read_text())["scores"]["test"]
    assert sorted(entry["hf_subset"] for entry in scores) == ["go", "ruby"]


def test_the_command_prints_the_files(tmp_path: Path) -> None:
    write_cached_dataset("scifact")
    (record,) = run_tasks(tmp_path, "scifact")
    done = CliRunner().invoke(app, ["export", record, "--out", str(tmp_path / "mteb"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)[0]["file"].endswith("SciFact.json")


def test_a_run_that_mteb_would_not_measure_is_refused(tmp_path: Path) -> None:
    write_cached_dataset("scifact")
    folder = small_collection.write_folder(tmp_path / "small")
    for record, reason in (
        (run_tasks(tmp_path, str(folder)), "is not a task of mteb"),
        (run_tasks(tmp_path, "scifact-study"), "does not have the protocol 'study'"),
        (run_tasks(tmp_path, "scifact", sample=2), "a sample of 2 queries"),
    ):
        with pytest.raises(UsageError, match=reason):
            export_results(record, tmp_path / "mteb")
    *_, reranked = retbench.evaluate(["bm25"], tasks=["scifact"], rerank=("ql",), out=tmp_path / "results")
    with pytest.raises(UsageError, match="the run was reranked by ql"):
        export_results([str(reranked.record)], tmp_path / "mteb")
    twice = run_tasks(tmp_path, "scifact")
    with pytest.raises(UsageError, match="two runs of scifact"):
        export_results(twice * 2, tmp_path / "mteb")


def test_every_setting_has_a_file_of_its_own(tmp_path: Path) -> None:
    write_cached_dataset("scifact")
    model = str(tiny_models.build_model(tmp_path / "tiny"))

    def run(engine: str = "transformers", **overrides: Any) -> str:
        (cell,) = retbench.evaluate(
            [model], tasks=["scifact"], methods=["mean"], out=tmp_path / "results", overrides=overrides, engine=engine
        )
        return str(cell.record)

    whole, wide, short = run(dtype="bfloat16"), run(dtype="float32"), run(dtype="bfloat16", max_length=4)
    other_engine, approximate = (
        run("sentence-transformers", dtype="bfloat16"),
        run(dtype="bfloat16", search="ivf:lists=1,probes=1"),
    )
    with pytest.raises(UsageError, match="have different settings, but mteb uses one file for both"):
        export_results([whole, other_engine], tmp_path / "mteb")
    assert not [*(tmp_path / "mteb").rglob("*.json")]
    configs, other_file, wide_file = export_results([whole, short, wide], tmp_path / "mteb")
    assert wide_file.relative_to(configs.parent).as_posix() == "experiments/dtype_float32/SciFact.json"
    assert other_file.relative_to(configs.parent).as_posix() == "experiments/max_length_4/SciFact.json"
    assert export_results([whole], tmp_path / "mteb") == [configs]  # the same run again changes nothing
    facts = json.loads(configs.read_text())
    facts["scores"]["test"][0]["main_score"] = 0.25  # as if from another run
    configs.write_text(json.dumps(facts))
    with pytest.raises(UsageError, match="holds other scores"):
        export_results([whole], tmp_path / "mteb")
    with pytest.raises(UsageError, match="the run used ivf"):
        export_results([approximate], tmp_path / "mteb")


def test_the_dtype_of_an_older_record_is_stated_unless_the_card_names_it(tmp_path: Path) -> None:
    write_cached_dataset("scifact")
    model = str(tiny_models.build_model(tmp_path / "tiny"))
    (cell,) = retbench.evaluate(
        [model], tasks=["scifact"], methods=["mean"], out=tmp_path / "results", overrides={"dtype": "bfloat16"}
    )
    file = Path(str(cell.record)) / "record.json"
    record = json.loads(file.read_text())
    del record["texts"]["dtype"]
    paths = {}
    for card_dtype in (None, "bfloat16", "float32"):
        record["cards"]["model"]["dtype"] = card_dtype
        file.write_text(json.dumps(record))
        (paths[card_dtype],) = export_results([str(cell.record)], tmp_path / f"mteb-{card_dtype}")
    assert {dtype: path.parent.name for dtype, path in paths.items() if "experiments" in path.parts} == {
        None: "dtype_bfloat16",
        "float32": "dtype_bfloat16",
    }
