"""`--minutes` takes the largest sample that fits, and the same one again."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import retbench
from retbench.cli.main import app
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.text_encoder import TextEncoder
from retbench.errors import DataError, UsageError
from retbench.pipelines.evaluation import fit_sample
from retbench.pipelines.evaluation.fit_sample import CellCost, choose_sample
from retbench.pipelines.evaluation.request import EvaluationRequest
from retbench.pipelines.models.encoder_factory import EncoderFactory
from tests import tiny_models

WORDS = ("kettle", "harbour", "violin", "meadow", "lantern", "granite", "orchard", "compass")


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A collection of 40 queries and 1,200 documents."""
    texts = [f"{WORDS[n % 8]} {WORDS[n // 8 % 8]} {WORDS[n // 64 % 8]} {n}" for n in range(1200)]
    folder = tmp_path / "many"
    (folder / "qrels").mkdir(parents=True)
    rows = [json.dumps({"_id": f"d{n}", "title": "", "text": text}) for n, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("\n".join(rows))
    queries = [json.dumps({"_id": f"q{n}", "text": texts[n * 30]}) for n in range(40)]
    (folder / "queries.jsonl").write_text("\n".join(queries))
    (folder / "qrels" / "test.tsv").write_text("".join(f"q{n}\td{n * 30}\t1\n" for n in range(40)))
    return folder


def set_lexical_speed(monkeypatch: pytest.MonkeyPatch, seconds_per_document: float) -> None:
    """Pretend this speed of a lexical model, and measurements that take no time."""
    monkeypatch.setattr(fit_sample, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    monkeypatch.setattr(fit_sample, "_measure_lexical_model", lambda _: seconds_per_document)


def cost(**changes: Any) -> CellCost:
    usual = CellCost(100, 50_000, 1.0, seconds_per_query=0.1, seconds_per_document=0.01, load_seconds=2.0)
    return replace(usual, **changes)


@pytest.mark.parametrize(("seconds", "expected"), [(8.1, 20), (8.0, 20), (7.99, 19), (5.0, 10), (1.0, 5)])
def test_the_sample_is_the_largest_that_fits(seconds: float, expected: int) -> None:
    # a query costs 0.1 s and its 20 documents 0.2 s, beside 2 s for loading; five queries are the least
    found = choose_sample([cost()], seconds, 1.0)
    assert found.sample == expected
    assert found.expected_seconds == pytest.approx(2 + 0.3 * expected)


def test_all_models_and_tasks_share_the_time() -> None:
    assert choose_sample([cost(), cost(load_seconds=0.0)], 8.0, 1.0).sample == 10


def test_more_judged_documents_than_distractors_cost_more() -> None:
    assert choose_sample([cost(judged_per_query=40.0)], 7.0, 1.0).sample == 10


def test_as_many_queries_as_a_task_has_mean_its_whole_corpus() -> None:
    large_corpus = cost(documents=1_000_000)  # 10,000 s
    assert choose_sample([large_corpus], 300.0, 1.0).sample == 99
    assert choose_sample([cost(documents=1000)], 300.0, 1.0).sample is None


def test_the_sample_stays_the_same_although_the_machine_became_slower(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["run", "--model", "bm25", "--task", str(task), "--out", str(tmp_path / "out"), "--minutes", "1"]
    monkeypatch.setattr(sys, "argv", ["retbench", *arguments])
    set_lexical_speed(monkeypatch, 0.25)  # 54 s hold 10 queries of 20 documents
    first, output = run_cells(*arguments)
    assert (first["sample"], first["queries"], first["documents"]) == (10, 10, 200)
    assert "10 queries of each task" in output
    assert "--sample 10" in output
    record = json.loads((Path(first["record"]) / "record.json").read_text())
    assert (record["settings"]["sample"], "--minutes 1" in record["command"]) == (10, True)

    monkeypatch.setattr(fit_sample, "_measure_lexical_model", lambda _: pytest.fail("it was measured again"))
    again, output = run_cells(*arguments)
    assert (again["settings_id"], again["cached"]) == (first["settings_id"], True)
    assert "10 queries of each task" in output


def test_a_fitted_sample_is_the_same_cell_as_the_same_sample_by_number(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_lexical_speed(monkeypatch, 0.25)
    (fitted,) = retbench.evaluate("bm25", tasks=str(task), minutes=1, out=tmp_path / "out")
    (given,) = retbench.evaluate("bm25", tasks=str(task), sample=10, out=tmp_path / "out")
    assert (given.settings_id, given.cached) == (fitted.settings_id, True)


def test_another_model_or_time_is_measured_for_itself(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = EvaluationRequest(("bm25",), (str(task),), out=tmp_path / "out")
    set_lexical_speed(monkeypatch, 0.25)
    assert fit_sample.fit_sample(request, 1.0).sample == 10
    set_lexical_speed(monkeypatch, 0.125)
    assert fit_sample.fit_sample(request, 1.0).sample == 10
    assert fit_sample.fit_sample(request, 0.5).sample == 10
    assert fit_sample.fit_sample(replace(request, overrides={"depth": 10}), 1.0).sample == 21


def test_a_dry_run_stores_nothing(task: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(
        app, ["run", "--model", "bm25", "--task", str(task), "--out", str(out), "--minutes", "1", "--dry-run"]
    )
    assert result.exit_code == 0, result.output
    assert "40 queries" in result.stdout
    assert not out.exists()


def test_a_backbone_is_measured_with_its_own_tokens(task: Path, tmp_path: Path) -> None:
    model = tiny_models.build_model(tmp_path / "tiny")
    lines: list[str] = []
    (cell,) = retbench.evaluate(
        str(model), tasks=str(task), methods="mean", minutes=5, out=tmp_path / "out", log_status=lines.append
    )
    assert cell.status == "done"
    assert any("tokens/s measured" in line for line in lines)


def test_importing_libraries_is_no_price_of_a_model(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first load of 40 s was taken off twice, as spent and as the price of the run, and left five queries of 39."""
    clock, loads, load_encoder = [0.0], [], EncoderFactory.load_encoder

    def load_slowly(factory: EncoderFactory, spec: EncoderSpec) -> TextEncoder:
        if not factory.loaded:
            clock[0] += 1.0 if loads else 40.0
            if not loads:
                monkeypatch.setitem(sys.modules, "a_library_that_was_imported", ModuleType("a_library"))
            loads.append(spec)
        return load_encoder(factory, spec)

    monkeypatch.setattr(fit_sample, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(EncoderFactory, "load_encoder", load_slowly)
    monkeypatch.setattr(fit_sample, "measure_speed", lambda *_: 1.0)
    monkeypatch.setattr(fit_sample, "_count_tokens", lambda *_: 1 / 21)  # a query and its 20 documents: one second
    model = tiny_models.build_model(tmp_path / "tiny")
    request = EvaluationRequest((str(model),), (str(task),), ("mean",), out=tmp_path / "out")
    found = fit_sample.fit_sample(request, 1.0)
    assert (found.sample, len(loads)) == (39, 2)
    again = fit_sample.fit_sample(replace(request, out=tmp_path / "again"), 1.0)
    assert (again.sample, len(loads)) == (39, 3)  # everything was imported: no second load


@pytest.mark.parametrize(
    ("changes", "minutes", "message"),
    [
        ({"sample": 3}, 1.0, "--minutes finds a sample, and --sample gives one"),
        ({}, 0.0, "--minutes 0 is no time"),
        ({"rerank": ("ql",)}, 1.0, "cannot foresee the time of --rerank"),
        ({"engine": "endpoint:model=m"}, 1.0, "cannot foresee the time of --engine endpoint"),
        ({"devices": "ray:store=/tmp/store"}, 1.0, "cannot foresee the time of --on ray"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    changes: dict[str, Any], minutes: float, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        fit_sample.fit_sample(EvaluationRequest(("bm25",), ("t",), out=tmp_path, **changes), minutes)


@pytest.mark.parametrize("content", ["{", "[]", '{"key": {"sample": 3}}', '{"key": 3}'])
def test_damaged_samples_are_named(content: str, task: Path, tmp_path: Path) -> None:
    (tmp_path / "samples.json").write_text(content)
    with pytest.raises(DataError, match=r"samples\.json is damaged"):
        fit_sample.fit_sample(EvaluationRequest(("bm25",), (str(task),), out=tmp_path), 1.0)


def run_cells(*arguments: str) -> tuple[dict[str, Any], str]:
    """Run one cell from the command line; return it and the status lines."""
    result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (cell,) = json.loads(result.stdout)
    return cell, result.stderr
