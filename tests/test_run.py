"""`retbench run` from the command line: real files in, records and leaderboards out, clear errors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import retbench
from retbench.cards import catalog
from retbench.cards.recipe import apply_recipe_options
from retbench.cli.main import app
from retbench.errors import DataError
from retbench.pipelines.models.overrides import Overrides
from tests import small_collection, tiny_models


def run_command(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def run_cells(*words: object) -> list[dict[str, Any]]:
    answer = run_command(*words, "--json")
    assert answer.exit_code == 0, answer.output
    cells: list[dict[str, Any]] = json.loads(answer.stdout)
    return cells


def test_a_run_writes_a_complete_record(model: Path, task: Path, out: Path) -> None:
    (cell,) = run_cells("run", "--model", model, "--task", task, "--method", "promptreps", "--out", out)
    assert (cell["model"], cell["method"], cell["task"], cell["suite"]) == ("tiny", "promptreps", "pantry", "custom")
    assert (cell["documents"], cell["queries"], cell["status"]) == (20, 3, "done")
    folder = Path(cell["record"])
    assert folder == out / "custom" / "pantry" / "tiny" / cell["settings_id"]
    record = json.loads((folder / "record.json").read_text())
    assert record["cards"]["method"]["answer"] == 'The word is: "'
    assert record["texts"]["document"]["empty"] == 1
    assert record["texts"]["document"]["kernel"] in ("sdpa by length", "blocks")  # by the CPU
    assert record["cost"]["seconds"].keys() >= {"embed queries", "embed and search documents", "score"}
    assert str(model.parent) not in (folder / "record.json").read_text()
    sample = json.loads((folder / "sample.json").read_text())
    assert sample["query"]["text"] == "how to brew a hot drink"
    assert sample["query"]["read"].endswith('The word is: "')
    table = pq.read_table(folder / "per_query.parquet")
    assert table.column("query").to_pylist() == ["q1", "q2", "q3"]
    assert np.mean(table.column("ndcg_at_10").to_pylist()) == pytest.approx(cell["main_score"])


@pytest.mark.parametrize(
    ("options", "fast", "expected"),
    [
        ((), True, ("bfloat16", "default")),
        ((), False, ("float32", "machine")),
        (("--set", "dtype=float32"), True, ("float32", "--set dtype")),
        (("--set", "dtype=bfloat16"), False, ("bfloat16", "--set dtype")),
        (("--set", "dtype=int8"), True, ("int8", "--set dtype")),
    ],
)
def test_the_record_says_which_dtype_computed_and_who_chose_it(
    model: Path, task: Path, out: Path, monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...], fast: bool, expected: tuple[str, str],
) -> None:  # fmt: skip
    monkeypatch.setattr("retbench.engines.device.has_fast_bf16", lambda: fast)
    (cell,) = run_cells("run", "--model", model, "--task", task, "--method", "mean", "--out", out, *options)
    record = json.loads((Path(cell["record"]) / "record.json").read_text())
    dtype, chosen_by = expected
    assert record["texts"]["dtype"] == {"computed": dtype, "usual": "bfloat16", "chosen_by": chosen_by}
    assert record["texts"]["query"]["dtype"] == record["settings"]["encoder"]["dtype"] == dtype


@pytest.mark.parametrize(("short", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")])
def test_a_dtype_may_be_written_short(short: str, dtype: str) -> None:
    assert Overrides.parse({"dtype": short}) == Overrides.parse({"dtype": dtype})
    if dtype != "float16":  # no training is in float16
        recipe = catalog.find_recipe("quick")
        assert apply_recipe_options(recipe, {"dtype": short}) == apply_recipe_options(recipe, {"dtype": dtype})


def test_the_same_command_again_does_nothing(model: Path, task: Path, out: Path) -> None:
    line = ("run", "--model", model, "--task", task, "--method", "mean", "--out", out)
    (first,) = run_cells(*line)
    times = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()}
    (second,) = run_cells(*line)
    assert second["cached"]
    assert second["scores"] == first["scores"]
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.is_file()} == times
    assert "already done" in run_command(*line).output


@pytest.mark.parametrize("metric", ["ndcg_at_10", "recall_at_10"])
def test_a_record_with_a_changed_score_is_reported_once_and_repaired(task: Path, out: Path, metric: str) -> None:
    line = ("run", "--model", "bm25", "--task", task, "--out", out)
    (first,) = run_cells(*line)
    file = Path(first["record"]) / "record.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "scores": {**record["scores"], metric: 0.123}}))
    assert "not the means of its queries" in run_command("report", out).output
    assert [run_cells(*line)[0]["cached"] for _ in range(2)] == [False, True]
    assert json.loads(file.read_text())["scores"] == first["scores"]


@pytest.mark.parametrize(
    "change", [("--set", "max_length=8"), ("--set", "depth=50"), ("--sample", 2), ("--method", "last")]
)
def test_one_changed_setting_is_another_record(model: Path, task: Path, out: Path, change: tuple[object, ...]) -> None:
    line = ("run", "--model", model, "--task", task, "--out", out)
    (first,), (second,) = run_cells(*line), run_cells(*line, *change)
    assert first["settings_id"] != second["settings_id"]
    assert len(list(out.rglob("record.json"))) == 2


def test_without_git_a_record_has_no_commit(
    task: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (cell,) = run_cells("run", "--model", "bm25", "--task", task, "--out", out)
    assert json.loads((Path(cell["record"]) / "record.json").read_text())["machine"]["commit"] is None


def test_truncated_texts_are_counted(model: Path, task: Path, out: Path) -> None:
    (cell,) = run_cells("run", "--model", model, "--task", task, "--set", "max_length=8", "--out", out)
    texts = json.loads((Path(cell["record"]) / "record.json").read_text())["texts"]
    assert texts["document"]["truncated"] == 19  # all documents except the empty one
    assert texts["document"]["longest"] == 8


def test_scores_can_be_recomputed_from_the_run_file(task: Path, out: Path) -> None:
    import gzip

    import pytrec_eval

    (cell,) = run_cells("run", "--model", "bm25", "--task", task, "--out", out)
    run: dict[str, dict[str, float]] = {}
    for line in gzip.decompress((Path(cell["record"]) / "run.trec.gz").read_bytes()).decode().splitlines():
        query, _, document, _, score, _ = line.split()
        run.setdefault(query, {})[document] = float(score)
    judged: dict[str, dict[str, int]] = {}
    for query, document, grade in small_collection.TEST_JUDGMENTS:
        judged.setdefault(query, {})[document] = grade
    cells = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut.10"}).evaluate(run)
    assert sum(scores["ndcg_cut_10"] for scores in cells.values()) / len(judged) == pytest.approx(cell["main_score"])


def test_a_model_without_chat_template_is_skipped_with_the_reason(task: Path, out: Path, tmp_path: Path) -> None:
    folder = tiny_models.build_model(tmp_path / "bare")
    for file in (folder / "chat_template.jinja", folder / "tokenizer_config.json"):
        if file.suffix == ".jinja":
            file.unlink(missing_ok=True)
        else:
            facts = json.loads(file.read_text())
            facts.pop("chat_template", None)
            file.write_text(json.dumps(facts))
    cells = run_cells(
        "run", "--model", folder, "--task", task, "--method", "mean", "--method", "promptreps", "--out", out
    )
    assert [cell["status"] for cell in cells] == ["done", "skipped"]
    assert "chat template" in cells[1]["error"]


def test_one_bad_task_does_not_stop_the_others(task: Path, out: Path, tmp_path: Path) -> None:
    broken = small_collection.write_folder(tmp_path / "broken")
    (broken / "corpus.jsonl").write_text('{"_id": "a", "text": "x"}\nnot json\n')
    answer = run_command("run", "--model", "bm25", "--task", broken, "--task", task, "--out", out, "--json")
    assert answer.exit_code == 1
    assert [cell["status"] for cell in json.loads(answer.stdout)] == ["failed", "done"]
    assert "corpus.jsonl:2" in json.loads(answer.stdout)[0]["error"]
    alone = run_command("run", "--model", "bm25", "--task", broken, "--out", out)
    assert alone.exit_code == DataError.exit_code


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--model", "bm52", "--suite", "stdlib"), 2, "did you mean bm25"),
        (("--model", "bm25", "--suite", "stdlip"), 2, "did you mean stdlib"),
        (("--model", "bm25", "--task", "stdlib-cod"), 2, "did you mean stdlib-code"),
        (("--model", "bm25", "--task", "./nowhere"), 3, "corpus.jsonl"),
        (("--model", "./nowhere", "--suite", "stdlib"), 3, "no model at"),
        (("--model", "bm25"), 2, "give --suite or --task"),
        (("--model", "bm25", "--suite", "stdlib", "--set", "maxlength=5"), 2, "did you mean max_length"),
        (("--model", "bm25", "--suite", "stdlib", "--set", "depth"), 2, "for example --set dtype=float32"),
        (("--model", "bm25", "--suite", "stdlib", "--set", "depth=deep"), 2, "not a int"),
        (("--model", "bm25", "--suite", "stdlib", "--set", "depth=²"), 2, "not a int"),
        (("--model", "bm25", "--suite", "stdlib", "--set", "dtype=flaot32"), 2, "did you mean float32"),
        (("--model", "bm25", "--suite", "stdlib", "--set", "dtype=float64"), 2, "no such dtype"),
        (("--model", "bm25", "--suite", "stdlib", "--set", "max_length=0"), 2, "max_length=0 is too small"),
        (("--model", "bm25", "--suite", "stdlib", "--set", "depth=5"), 2, "depth 5 is too small for ndcg_at_10"),
        (("--model", "bm25", "--suite", "stdlib", "--sample", "0"), 2, "--sample must be at least 1"),
        (("--model", "minilm-l6", "--suite", "stdlib", "--method", "maen"), 2, "did you mean mean"),
    ],
)
def test_wrong_arguments_give_two_lines_and_an_exit_code(
    words: tuple[str, ...], code: int, message: str, out: Path
) -> None:
    answer = run_command("run", *words, "--out", out)
    assert answer.exit_code == code
    assert message in answer.output
    assert not out.exists()
    as_json = json.loads(run_command("run", *words, "--out", out, "--json").stdout)
    assert as_json["exit_code"] == code


def test_missing_weights_name_the_next_step(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = run_command("run", "--model", "qwen2.5-coder", "--suite", "coir", "--out", out)
    assert answer.exit_code == 3
    assert "Qwen/Qwen2.5-Coder-7B" in answer.output
    assert "retbench fetch qwen2.5-coder" in answer.output
    assert "--weights PATH" in answer.output
    assert answer.output.count("error:") == 1
    assert "neither are the collections of 20 of 20 tasks (apps, cosqa," in answer.output
    assert "`retbench fetch qwen2.5-coder-7b coir`" in answer.output
    pair = ("--task", "cosqa", "--task", "stdlib-text", "--task", "codetrans-dl")
    answer = run_command("run", "--model", "qwen2.5-coder", *pair, "--out", out)
    assert "2 of 3 tasks (cosqa, codetrans-dl)" in answer.output
    assert "`retbench fetch qwen2.5-coder-7b cosqa codetrans-dl`" in answer.output


def test_weights_of_another_shape_are_refused(model: Path, task: Path, out: Path) -> None:
    answer = run_command("run", "--model", "qwen2.5-coder", "--weights", model, "--task", task, "--out", out)
    assert answer.exit_code == 4
    assert "layers 2, not 28" in answer.output


def test_ctrl_c_keeps_finished_cells(task: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from retbench.retrievers.bm25 import BM25Index

    search, calls = BM25Index.search, []

    def interrupted(self: BM25Index, queries: Any, k: int) -> Any:
        calls.append(k)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return search(self, queries, k)

    monkeypatch.setattr(BM25Index, "search", interrupted)
    second_task = small_collection.write_folder(task.parent / "larder")
    line = ("run", "--model", "bm25", "--task", task, "--task", second_task, "--out", out)
    answer = run_command(*line)
    assert answer.exit_code == 130
    assert "finished cells and shards are kept" in answer.output
    cells = run_cells(*line)
    assert [cell["cached"] for cell in cells] == [True, False]


def test_a_dry_run_shows_texts_tokens_and_time_and_runs_nothing(model: Path, task: Path, out: Path) -> None:
    (plan,) = run_cells("run", "--model", model, "--task", task, "--method", "promptreps", "--out", out, "--dry-run")
    assert plan["first"]["query"]["read"].startswith("<|im_start|>system\nYou are an AI assistant")
    assert plan["first"]["query"]["ids"][0] == 1
    assert plan["tokens_exact"]
    assert plan["seconds"] > 0
    assert not out.exists()
    assert "document tokens" in run_command("run", "--model", model, "--task", task, "--out", out, "--dry-run").output


def test_the_python_function_equals_the_command(task: Path, out: Path) -> None:
    (cell,) = retbench.evaluate(["bm25"], tasks=[str(task)], out=out)
    frame = retbench.load_results(out)
    assert frame.loc[0, "ndcg_at_10"] == cell.main_score
    assert list(frame["task"]) == ["pantry"]


@pytest.mark.parametrize("words", [("list", "models"), ("list", "suites"), ("show", "model", "minilm-l6")])
def test_every_table_is_also_json(words: tuple[str, ...]) -> None:
    assert json.loads(run_command(*words, "--json").stdout)
    assert run_command(*words).exit_code == 0


def test_fetch_of_a_generated_suite_fills_the_cache(own_cache: Path) -> None:
    assert "stdlib-text" in run_command("fetch", "stdlib-text").output
    assert list((own_cache / "collections").glob("stdlib-text-*/manifest.json"))


def test_quiet_prints_only_results(task: Path, out: Path) -> None:
    answer = CliRunner().invoke(app, ["-q", "run", "--model", "bm25", "--task", str(task), "--out", str(out)])
    assert answer.stderr == ""
    assert "pantry" in answer.stdout


def test_a_users_own_card_runs_by_name(
    task: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_catalog: Callable[[], None]
) -> None:
    (tmp_path / "cards" / "tasks" / "kitchen").mkdir(parents=True)
    card = f'name = "my-pantry"\nfields = ["text"]\n[source]\nkind = "folder"\npath = "{task}"\n'
    (tmp_path / "cards" / "tasks" / "kitchen" / "my-pantry.toml").write_text(card)
    monkeypatch.setenv("RETBENCH_CARDS", str(tmp_path / "cards"))
    fresh_catalog()
    (cell,) = run_cells("run", "--model", "bm25", "--task", "my-pantry", "--out", out)
    assert cell["suite"] == "kitchen"


def test_a_folder_is_given_as_a_path(task: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From Python, `Path("pantry")` is a folder even if it stands in the current folder."""
    monkeypatch.chdir(task.parent)
    (cell,) = retbench.evaluate("bm25", tasks=Path(task.name), out=out)
    assert (cell.status, cell.task) == ("done", task.name)
