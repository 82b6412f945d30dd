"""Results that attack: ill-typed values, pipes in place of files, runs that are replaced while they are read."""

import copy
import json
import os
import random
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retbench.cards.model import ModelShape, TrainingProvenance
from retbench.errors import RetbenchError
from retbench.pipelines.report import build_report
from retbench.records.load_run import load_trec_run
from retbench.records.record import compute_settings_id
from retbench.records.results_folder import ResultsFolder
from tests.finished_runs import write_failed_run, write_finished_run
from tests.test_run import run_command

VALUES = (None, [], {}, "x", "", -1, 1.5, True, float("nan"), float("inf"), 10**30, [1], {"a": 1}, ["x"])
Keys = tuple[Any, ...]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_mixed_results(tmp_path / "r")


def write_mixed_results(folder: Path) -> Path:
    """Write two finished runs, of which one has every optional fact, and a failure."""
    cost = {"tokens_per_second": 5.0, "parameters": 1000, "weights_mb": 3.0}
    write_finished_run(folder, "m1", "t", [0.5, 0.6, 0.7], cost=cost, training_sets=("scifact",))
    encoder = {"method": {"name": "mean"}, "query_limit": 8, "document_limit": 8, "dtype": "float32", "weights": "w"}
    write_finished_run(
        folder, "m2", "t", [0.5, 0.6, 0.7], cost=cost, training_sets=("scifact",), method="mean",
        settings={"encoder": encoder, "lexical": None, "retriever": "dense", "engine": "transformers"},
        kind="backbone", lexical=None, shape=ModelShape(2, 8, 99), parent="m1", family="m", specialisation="code",
        training=TrainingProvenance({"name": "quick", "seed": 1}, "f", {"set": "s"}, {"steps": 3}, {}, "c"),
    )  # fmt: skip
    write_failed_run(folder, "m3", "t")
    return folder


def list_paths(value: Any, path: Keys = ()) -> Iterator[Keys]:
    """List the keys that lead to every value in a JSON document."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from list_paths(item, (*path, key))


def replace_value(document: Any, path: Keys, value: Any) -> Any:
    changed = copy.deepcopy(document)
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return changed


def list_mutations(document: Any) -> list[Any]:
    """Every document with one value of another type; changed settings get the settings-id that fits them."""
    mutations = [replace_value(document, path, value) for path in list_paths(document) for value in VALUES]
    for mutation in mutations:
        if isinstance(mutation.get("settings"), dict):
            mutation["settings_id"] = compute_settings_id(mutation["settings"])
    return mutations


def build_all_formats(results: Path) -> None:
    report = build_report(results)
    for name in ("markdown", "csv", "latex", "html"):
        report.format(name)
    json.dumps(report.list_cells())


@pytest.mark.parametrize("name", ["m2/*/record.json", "m3/*.failed.json"])
def test_an_ill_typed_value_never_ends_a_report(name: str, results: Path) -> None:
    (file,) = results.glob(f"mine/t/{name}")
    mutations = list_mutations(json.loads(file.read_text()))
    assert len(mutations) > 150
    for mutation in random.Random(3).sample(mutations, 25):
        file.write_text(json.dumps(mutation))
        build_all_formats(results)


@pytest.mark.fault
@pytest.mark.parametrize("name", ["m2/*/record.json", "m3/*.failed.json"])
def test_no_ill_typed_value_at_all_ends_a_report(name: str, results: Path) -> None:
    (file,) = results.glob(f"mine/t/{name}")
    for mutation in list_mutations(json.loads(file.read_text())):
        file.write_text(json.dumps(mutation))
        build_all_formats(results)


def test_a_problem_names_the_value(results: Path) -> None:
    (file,) = results.glob("mine/t/m2/*/record.json")
    document = json.loads(file.read_text())
    for path, message in {
        ("cost", "seconds"): r"cost\.seconds is \['x'\], not an object",
        ("cards", "task", "metric"): r"cards\.task\.metric is \['x'\]",
        ("settings", "fields", 1): r"settings\.fields\[1\] is \['x'\]",
    }.items():
        file.write_text(json.dumps(replace_value(document, path, ["x"])))
        (problem,) = build_report(results).problems
        assert problem.cause.startswith(str(file))
        assert re.search(message, problem.cause)


@pytest.mark.parametrize("name", ["record.json", "per_query.parquet"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "missing"])
def test_something_else_in_place_of_a_file_is_left_out(name: str, kind: str, results: Path) -> None:
    (folder,) = results.glob("mine/t/m2/*")
    file = folder / name
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    if kind == "folder":
        file.mkdir()
    if kind == "device":
        file.symlink_to("/dev/zero")
    report = build_report(results)
    assert [run.record.model for run in report.scan.runs] == ["m1"]
    assert len(report.problems) == (0 if (name, kind) == ("record.json", "missing") else 1)


def test_a_pipe_in_place_of_a_failure_is_left_out(results: Path) -> None:
    (file,) = results.glob("mine/t/m3/*.failed.json")
    file.unlink()
    os.mkfifo(file)
    report = build_report(results)
    assert (len(report.scan.runs), len(report.problems)) == (2, 1)


def test_a_run_that_is_replaced_meanwhile_is_read_or_left_out(results: Path) -> None:
    """Two versions of one run replace each other while a report reads: it sees one of them, and no problem."""
    is_over = threading.Event()

    def replace_run() -> None:
        while not is_over.is_set():
            for shift in (0.0, 0.1):
                write_finished_run(results, "m4", "t", [0.5 + shift, 0.6, 0.7])

    writer = threading.Thread(target=replace_run)
    writer.start()
    try:
        scans = [ResultsFolder(results).scan_runs() for _ in range(40)]
    finally:
        is_over.set()
        writer.join()
    assert [problem.cause for scan in scans for problem in scan.problems] == []
    assert {len(scan.runs) for scan in scans} <= {2, 3}  # the run itself may be absent for a moment


def test_a_damaged_run_is_still_a_problem(results: Path) -> None:
    (file,) = results.glob("mine/t/m2/*/per_query.parquet")
    file.write_bytes(b"no parquet")
    with pytest.raises(RetbenchError, match="cannot be read"):
        raise build_report(results).problems[0]


def test_half_a_surrogate_pair_in_a_name_can_be_written(tmp_path: Path) -> None:
    folder = write_finished_run(tmp_path / "r", "m\udc80", "t", [0.5])
    assert json.loads((folder / "record.json").read_text())["model"] == "m\udc80"
    write_failed_run(tmp_path / "r", "n\udc80", "t", error="\ud800")
    assert ResultsFolder(tmp_path / "r").scan_runs().problems == []


@pytest.mark.parametrize("moved", ["results", "mine"])
def test_runs_on_a_path_that_is_not_utf_8_are_not_called_damaged(moved: str, results: Path) -> None:
    """Their scores are sound: the folder is to be renamed and not removed."""
    folder = results if moved == "results" else results / moved
    odd = folder.rename(folder.with_name("caf\udce9"))
    answer = run_command("report", odd if moved == "results" else results)
    assert answer.exit_code == (5 if moved == "results" else 4)  # no run is left
    assert "is not UTF-8\nnext:  rename the folder" in answer.output
    assert "remove" not in answer.output
    if moved == "results":
        assert answer.output.count("next:") == 1


def test_a_byte_order_mark_is_no_part_of_a_query(tmp_path: Path) -> None:
    (tmp_path / "r.trec").write_bytes(b"\xef\xbb\xbfq1 Q0 d1 1 2.0 t\nq1 Q0 d2 2 1.0 t\n")
    assert load_trec_run(tmp_path / "r.trec").rankings == {"q1": ["d1", "d2"]}


@pytest.mark.parametrize(
    ("path", "value"), [(("seconds", "search"), 0.5), (("parameters",), 10), (("weights_mb",), None)]
)
def test_a_changed_cost_is_a_problem(path: Keys, value: Any, results: Path) -> None:
    (file,) = results.glob("mine/t/m2/*/record.json")
    record = json.loads(file.read_text())
    file.write_text(json.dumps(replace_value(record, ("cost", *path), value)))
    (problem,) = build_report(results).problems
    assert problem.cause == f"{file}: its costs changed since the run"
    del record["cost"]["checksum"]  # as early versions wrote it
    file.write_text(json.dumps(record))
    assert build_report(results).problems == []
