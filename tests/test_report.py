"""The leaderboard: which runs are comparable, how rows are ranked, and that no name can break a table."""

import csv
import io
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import retbench
from retbench.cards import catalog
from retbench.cards.model import TrainingProvenance
from retbench.cli.main import app
from retbench.errors import DataError, MissingError
from retbench.pipelines.report import build_report, list_finished_cells
from retbench.records.record import SCHEMA
from retbench.records.results_folder import ResultsFolder, read_record
from retbench.records.scored_run import DamagedRecordError, load_scored_run, read_raw_scores
from retbench.reports.formats import escape_latex, format_csv_value
from retbench.reports.suite_average import compute_suite_mean
from retbench.reports.table_cells import TableCell, build_table
from tests.finished_runs import HOSTILE_NAME, METRIC, write_failed_run, write_finished_run

GENERATOR = np.random.default_rng(1)
GOOD = GENERATOR.uniform(0.6, 0.9, 40)
SAME = GOOD + GENERATOR.normal(0, 0.01, 40)
BAD = GOOD - 0.3


def _run_command(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["-q", *map(str, words)])
    return result.exit_code, result.stdout, result.stderr


def _list_board_rows(root: Path) -> list[tuple[int, str, str]]:
    (board,) = build_report(root).boards
    places = [(row, board.get_rank(row, board.ranked_by)) for row in board.rows]
    return [(place.rank, place.letters, row.model) for row, place in places if place]


def test_rank_counts_the_rows_that_are_significantly_better(tmp_path: Path) -> None:
    for model, scores in (("good", GOOD), ("same", SAME), ("bad", BAD)):
        write_finished_run(tmp_path, model, "t", scores)
    assert sorted(_list_board_rows(tmp_path)) == [(1, "a", "good"), (1, "a", "same"), (3, "b", "bad")]


def test_any_metric_of_the_records_ranks_and_tests(tmp_path: Path) -> None:
    write_finished_run(tmp_path, "first", "t", GOOD, more_scores={"recall_at_100": BAD})
    write_finished_run(tmp_path, "finds", "t", BAD, more_scores={"recall_at_100": GOOD})
    write_finished_run(tmp_path, "old", "t", SAME)
    code, stdout, stderr = _run_command("report", tmp_path, "--metric", "Recall@100", "--json")
    rows = {row["model"]: (row["main_score"], row["rank"]) for row in json.loads(stdout) if row["task"]}
    assert code == 1  # one run is left out
    assert rows == {"finds": (pytest.approx(GOOD.mean()), 1), "first": (pytest.approx(BAD.mean()), 2)}
    assert "has no recall_at_100" in stderr
    assert "choose one that it has: ndcg_at_10" in stderr
    code, _, stderr = _run_command("report", tmp_path, "--metric", "recall@7")
    assert code == 2
    assert "there is no metric 'recall@7'" in stderr


def test_a_better_rank_below_a_worse_one_is_explained(tmp_path: Path) -> None:
    """The third row loses by more, but its differences vary so much that this may be chance."""
    best = [0.601] * 40
    write_finished_run(tmp_path, "best", "t", best)
    write_finished_run(
        tmp_path, "second", "t", [score - 0.07 - 0.02 * (number % 2) for number, score in enumerate(best)]
    )
    write_finished_run(tmp_path, "third", "t", [0.5 + 0.45 * (-1) ** number for number in range(40)])
    (board,) = build_report(tmp_path).boards
    assert [(row.model, board.get_rank(row, "t").rank) for row in board.rows] == [
        ("best", 1),
        ("second", 2),
        ("third", 1),
    ]
    (note,) = [note for note in build_table(board).notes if "better rank" in note]
    assert "third bm25 (rank 1)" in note
    assert "second" not in note


def test_ranks_in_the_order_of_the_scores_need_no_explanation(tmp_path: Path) -> None:
    for model, score in (("best", 0.9), ("second", 0.5), ("third", 0.1)):
        write_finished_run(tmp_path, model, "t", [score + 0.01 * (number % 3) for number in range(20)])
    (board,) = build_report(tmp_path).boards
    assert not [note for note in build_table(board).notes if "better rank" in note]


def test_the_average_is_ranked_over_the_queries_of_all_tasks(tmp_path: Path) -> None:
    for model, shift in (("good", 0.0), ("bad", 0.2)):
        write_finished_run(tmp_path, model, "one", GOOD - shift)
        write_finished_run(tmp_path, model, "two", BAD[:20] - shift)
    (board,) = build_report(tmp_path).boards
    assert [row.model for row in board.rows] == ["good", "bad"]
    assert board.compute_average(board.rows[0]) == pytest.approx((GOOD.mean() + BAD[:20].mean()) / 2)
    place = board.get_rank(board.rows[1], None)
    assert place is not None
    assert (place.rank, place.rank_over_tasks) == (2, None)
    assert place.interval.low < GOOD.mean() / 2 + BAD[:20].mean() / 2 - 0.2 < place.interval.high


def test_six_tasks_are_also_ranked_over_tasks(tmp_path: Path) -> None:
    for model, shift in (("good", 0.0), ("bad", 0.2)):
        for task in "abcdef":
            write_finished_run(tmp_path, model, task, GOOD - shift)
    (board,) = build_report(tmp_path).boards
    assert [place.rank_over_tasks for row in board.rows if (place := board.get_rank(row, None))] == [1, 2]


def test_a_group_counts_once_in_the_average() -> None:
    forums = [f"cqadupstack-{name}" for name in ("android", "english")]
    assert compute_suite_mean("beir", {forums[0]: 0.2, forums[1]: 0.4, "scifact": 0.5}) == pytest.approx(0.4)


def test_no_average_over_missing_cells_and_failures_are_listed(tmp_path: Path) -> None:
    write_finished_run(tmp_path, "whole", "one", GOOD)
    write_finished_run(tmp_path, "whole", "two", GOOD)
    write_finished_run(tmp_path, "half", "one", BAD)
    write_failed_run(tmp_path, "half", "two", error="out of memory")
    write_failed_run(tmp_path, "never", "one", method="-")
    text = build_report(tmp_path).format("markdown")
    assert "| – | – | half | bm25 | – |" in text
    assert "failed: half on two: out of memory." in text
    assert "never" in text
    assert "A row with missing cells has no average." in text


def test_a_success_removes_the_failure_file(tmp_path: Path) -> None:
    write_failed_run(tmp_path, "m", "t")
    write_failed_run(tmp_path, "m", "t", method="-")
    write_finished_run(tmp_path, "m", "t", GOOD)
    assert ResultsFolder(tmp_path).scan_runs().failures == []


def test_runs_over_other_documents_are_a_separate_block(tmp_path: Path) -> None:
    write_finished_run(tmp_path, "a", "t", GOOD)
    write_finished_run(tmp_path, "b", "t", GOOD, fingerprint="another", created="2026-02-01")
    write_finished_run(tmp_path, "c", "t", GOOD, settings={"split": "train"})
    boards = build_report(tmp_path).boards
    assert [[row.model for row in board.rows] for board in boards] == [["a"], ["b"], ["c"]]
    assert [board.differing_rules for board in boards] == [(), ("collection of t",), ("split",)]
    assert "Not comparable with the first leaderboard of mine: different collection of t." in build_report(
        tmp_path
    ).format("markdown")


def test_a_rule_missing_in_an_older_record_has_its_default(tmp_path: Path) -> None:
    write_finished_run(tmp_path, "old", "t", GOOD)
    write_finished_run(tmp_path, "new", "t", BAD, settings={"excluded": "keep", "relevant_from": 1})
    assert len(_list_board_rows(tmp_path)) == 2
    write_finished_run(tmp_path, "other", "t", BAD, settings={"relevant_from": 2}, created="2027")
    assert [board.differing_rules for board in build_report(tmp_path).boards] == [(), ("relevant_from of t",)]


def test_the_newer_of_two_runs_of_a_cell_counts_and_is_noted(tmp_path: Path) -> None:
    write_finished_run(tmp_path, "m", "t", BAD, settings={"excluded": "keep"}, created="2027")
    write_finished_run(tmp_path, "m", "t", GOOD, created="2026")
    (board,) = build_report(tmp_path).boards
    assert board.rows[0].get_score("t") == pytest.approx(BAD.mean())
    assert "Older runs of the same cells, not shown: 1." in build_report(tmp_path).format("markdown")


def test_two_settings_of_one_model_are_two_rows_with_the_setting_in_the_name(tmp_path: Path) -> None:
    write_finished_run(tmp_path, "m", "t", GOOD)
    write_finished_run(tmp_path, "m", "t", BAD, settings={"depth": 10})
    (board,) = build_report(tmp_path).boards
    assert [row.label for row in board.rows] == ["bm25 (depth 100)", "bm25 (depth 10)"]


def test_results_of_two_machines_are_merged_by_copying(tmp_path: Path) -> None:
    write_finished_run(tmp_path, "a", "t", GOOD)
    write_finished_run(tmp_path, "b", "t", BAD)
    assert len(_list_board_rows(tmp_path)) == 2


@pytest.mark.parametrize(("sets", "mark"), [(None, "?"), ((), ""), (("t",), "*")])
def test_training_exposure_is_marked(tmp_path: Path, sets: tuple[str, ...] | None, mark: str) -> None:
    write_finished_run(tmp_path, "m", "t", [0.5] * 4, training_sets=sets)
    (board,) = build_report(tmp_path).boards
    assert [cell.mark for cell in build_table(board).lines[0].cells if cell.task == "t"] == [mark]


def test_fidelity_is_what_the_preset_says_now(tmp_path: Path) -> None:
    """A source may be read again: an old record's word counts only for a method that is no longer a preset."""
    preset = asdict(catalog.find_method("promptreps-study"))
    for model, method in (
        ("one", preset),
        ("two", {**preset, "name": "gone"}),
        ("three", {**preset, "query": "{text}"}),
    ):
        file = write_finished_run(tmp_path, model, "pantry", GOOD, method=method["name"]) / "record.json"
        record = json.loads(file.read_text())
        record["cards"]["method"] = {**method, "fidelity": "exact", "source": "as it was"}
        file.write_text(json.dumps(record))
        code, out, _ = _run_command("report", tmp_path)
        assert code == 0
        assert f"sources: {'reconstructed' if model == 'one' else 'exact'}: {method['name']}" in out
        shutil.rmtree(file.parent)


@pytest.mark.parametrize(
    ("learned", "task", "mark"),
    [
        ("msmarco", "msmarco-dev", "*"), ("msmarco", "trec-dl-2019", "*"), ("scifact", "nano-scifact", "*"),
        ("nano-scifact", "scifact-study", "*"), ("codesearchnet", "codesearchnet-go-notitle", "*"),
        ("codesearchnet-go", "codesearchnet-java", ""), ("msmarco", "nano-nq", ""), ("fever", "climate-fever", ""),
    ],
)  # fmt: skip
def test_training_exposure_includes_variants_of_a_collection(
    tmp_path: Path, learned: str, task: str, mark: str
) -> None:
    write_finished_run(tmp_path, "m", task, [0.5] * 4, training_sets=(learned,))
    (board,) = build_report(tmp_path).boards
    assert [cell.mark for cell in build_table(board).lines[0].cells if cell.task == task] == [mark]


def test_user_folders_are_not_averaged(tmp_path: Path) -> None:
    for task in ("one", "two"):
        write_finished_run(tmp_path, "a", task, GOOD, suite="custom")
        write_finished_run(tmp_path, "b", task, BAD, suite="custom")
    write_failed_run(tmp_path, "c", "two", suite="custom")
    text = build_report(tmp_path).format("markdown")
    assert "average" not in text
    first, second = build_report(tmp_path).boards
    assert (first.title, first.differing_rules, second.title, second.differing_rules) == (
        "custom: one",
        (),
        "custom: two",
        (),
    )
    assert [row.model for row in first.rows] == ["a", "b"]
    assert "failed: c on two" in text


def test_a_trained_model_with_a_single_seed_is_marked(tmp_path: Path) -> None:
    def trained(seed: int) -> TrainingProvenance:
        return TrainingProvenance(
            {"name": "quick", "seed": seed}, "f", {"fingerprint": "d"}, {}, {}, "retbench finetune"
        )

    write_finished_run(tmp_path, "plain", "t", GOOD)
    write_finished_run(tmp_path, "one", "t", GOOD, training=trained(1))
    assert "| one‡ |" in build_report(tmp_path).format("markdown")
    assert "plain‡" not in build_report(tmp_path).format("markdown")
    write_finished_run(tmp_path, "two", "t", GOOD, training=trained(2))
    assert "‡" not in build_report(tmp_path).format("markdown")


def test_mean_and_range_over_seeds_are_below_the_board(tmp_path: Path) -> None:
    for seed, scores in ((1, [0.2] * 4), (2, [0.4] * 4), (3, [0.9] * 4)):
        recipe = {"name": "quick", "seed": seed}
        training = TrainingProvenance(recipe, "f", {"set": "s", "fingerprint": "d"}, {}, {}, "retbench finetune")
        write_finished_run(tmp_path, f"m{seed}", "t", scores, training=training, parent="p")
    other = TrainingProvenance({"name": "quick", "seed": 1}, "f", {"set": "another"}, {}, {}, "retbench finetune")
    write_finished_run(tmp_path, "m4", "t", [0.1] * 4, training=other, parent="p")
    text = build_report(tmp_path).format("markdown")
    assert "| trained | method | seeds | t |" in text
    assert "| p on s by quick | bm25 | 3 | 50.00 (20.00–90.00) |" in text
    assert "p on s by quick & bm25 & 3 & 50.00 (20.00--90.00)" in build_report(tmp_path).format("latex")
    assert "50.00 (20.00–90.00)</td>" in build_report(tmp_path).format("html")
    assert text.count("‡") == 2  # the other set's model and the remark


def test_a_cost_needs_a_price_for_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_finished_run(tmp_path / "r", "m", "t", GOOD)
    monkeypatch.chdir(tmp_path)
    assert "price" not in build_report(tmp_path / "r").format("markdown")
    (tmp_path / "retbench.toml").write_text('[prices]\n"a processor" = 0.36\n')
    assert "| 1.00 |" in build_report(tmp_path / "r").format("markdown")  # 1e6 documents at 100/s are 2.78 hours


# --- bad input


def test_unreadable_records_are_named_and_skipped_with_exit_1(tmp_path: Path) -> None:
    good, half, edited, odd = (
        write_finished_run(tmp_path, name, "t", GOOD) for name in ("good", "half", "edited", "odd")
    )
    (half / "record.json").write_text("{")
    facts = json.loads((edited / "record.json").read_text())
    facts["scores"][METRIC] = 0.99
    (edited / "record.json").write_text(json.dumps(facts))
    (odd / "per_query.parquet").write_bytes(b"PAR1")
    code, out, err = _run_command("report", tmp_path)
    assert code == 1
    assert "| good |" in out
    assert "edited" not in out
    assert all(str(folder) in err for folder in (half, edited, odd))
    assert str(good) not in err


def test_a_length_beyond_memory_is_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_finished_run(tmp_path, "good", "t", GOOD)

    def greedy(*_: object, **__: object) -> None:
        raise pa.ArrowMemoryError("malloc of size 33277066880 failed")

    monkeypatch.setattr(pq, "read_table", greedy)
    monkeypatch.setattr(pq, "ParquetFile", greedy)
    for look in (read_raw_scores, lambda folder: load_scored_run(folder, read_record(folder / "record.json"))):
        with pytest.raises(DamagedRecordError, match="malloc of size"):
            look(folder)


def test_load_results_warns_about_what_it_leaves_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_finished_run(tmp_path, "good", "t", GOOD)
    lost = write_finished_run(tmp_path, "lost", "t", GOOD)
    (lost / "record.json").write_text("{")
    for words in ((), ("--json",)):
        code, out, err = _run_command("list", "results", "--results", tmp_path, *words)
        assert (code, "good" in out, "lost" in out, str(lost) in err) == (1, True, False, True)
    with caplog.at_level("WARNING", "retbench"):
        assert list(retbench.load_results(tmp_path)["model"]) == ["good"]
    assert str(lost) in caplog.text


def test_edited_settings_are_detected(tmp_path: Path) -> None:
    folder = write_finished_run(tmp_path, "m", "t", GOOD)
    facts = json.loads((folder / "record.json").read_text())
    facts["settings"]["depth"] = 7
    (folder / "record.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match="settings-id"):
        build_report(tmp_path)


def test_an_older_record_is_migrated(tmp_path: Path) -> None:
    folder = write_finished_run(tmp_path, "m", "t", GOOD)
    today = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps({**today, "schema": 1, "failures": []}))
    assert read_record(folder / "record.json").schema == SCHEMA
    assert build_report(tmp_path).problems == []


def test_a_record_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    folder = write_finished_run(tmp_path, "m", "t", GOOD)
    today = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps({**today, "schema": SCHEMA + 1}))
    with pytest.raises(DataError, match=r"has schema \d"):
        read_record(folder / "record.json")


def test_an_empty_folder_shows_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(MissingError):
        build_report(tmp_path)
    assert _run_command("report", tmp_path)[0] == 3


# --- formats


def test_a_hostile_name_breaks_no_table(tmp_path: Path) -> None:
    write_finished_run(tmp_path, HOSTILE_NAME, "t", GOOD)
    made = build_report(tmp_path)
    table = [line for line in made.format("markdown").splitlines() if line.startswith("|")]
    assert len(table) == 3
    assert "<img" not in table[2]
    assert table[2].replace("\\|", "").count("|") == table[0].count("|")
    latex = made.format("latex").splitlines()
    head, body = (next(line for line in latex if word in line) for word in ("rank & letters", "onerror"))
    assert body.endswith("\\\\")
    assert body.replace("\\&", "").count("&") == head.count("&")
    rows = list(csv.DictReader(io.StringIO(made.format("csv"))))
    assert rows[0]["model"] == HOSTILE_NAME


def test_latex_escapes_every_special_character() -> None:
    assert escape_latex("a_b\\{}&%$#~^") == r"a\_b\textbackslash{}\{\}\&\%\$\#\textasciitilde{}\textasciicircum{}"


def test_a_formula_does_not_run_in_a_spreadsheet() -> None:
    assert format_csv_value(TableCell("=1+1", "=1+1")) == "'=1+1"


def test_json_has_cells_averages_and_failures(tmp_path: Path) -> None:
    write_finished_run(tmp_path, "good", "t", GOOD)
    write_finished_run(tmp_path, "bad", "t", BAD)
    write_failed_run(tmp_path, "lost", "t")
    code, out, _ = _run_command("report", tmp_path, "--json")
    cells = json.loads(out)
    assert code == 0
    assert [(c["model"], c["task"], c["status"]) for c in cells] == [
        ("bad", "t", "done"), ("good", "t", "done"), ("lost", "t", "failed"),
        ("good", None, "done"), ("bad", None, "done"), ("lost", None, "incomplete"),
    ]  # fmt: skip
    assert [c.get("rank") for c in cells] == [2, 1, None, 1, 2, None]
    assert len(list_finished_cells(tmp_path)[0]) == 2


def test_report_can_be_written_to_a_file(tmp_path: Path) -> None:
    write_finished_run(tmp_path / "r", "m", "t", GOOD)
    assert _run_command("report", tmp_path / "r", "--format", "latex", "--out", tmp_path / "t.tex")[0] == 0
    assert _run_command("report", tmp_path / "r", "--out", tmp_path / "not" / "t.md")[0] == 2
    assert "\\begin{tabular}" in (tmp_path / "t.tex").read_text()


LIGHT = """
import sys
from typer.testing import CliRunner
from retbench.cli.main import app
for words in (["report", "{r}", "--format", "html"], ["compare", "{a}", "{a}", "--results", "{r}"],
              ["study", "status", "specialized-mini", "--out", "{r}"], ["study", "report", "specialized-mini"],
              ["list", "results", "--results", "{r}"]):
    found = CliRunner().invoke(app, words)
    assert found.exit_code == 0, (words, found.output)
assert not {{"torch", "transformers"}} & set(sys.modules)
"""


def test_reports_start_without_torch(tmp_path: Path) -> None:
    folder = write_finished_run(tmp_path, "m", "t", GOOD)
    code = LIGHT.format(r=tmp_path, a=folder)
    call = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert call.returncode == 0, call.stderr


def test_a_leaderboard_with_too_many_groups_says_why_it_has_no_letters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for model, score in (("good", 1.0), ("bad", 0.0)):
        write_finished_run(tmp_path, model, "t", [score] * 12)
    assert "share a letter" in build_report(tmp_path).format("markdown")
    monkeypatch.setattr("retbench.scoring.significance.MAX_GROUPS", 1)
    text = build_report(tmp_path).format("markdown")
    assert "No letters: over" in text
    assert "| – | good" in text


def test_equal_parts_of_many_records_are_kept_once(tmp_path: Path) -> None:
    for model in ("one", "two"):
        write_finished_run(tmp_path, model, "t", [0.5, 0.75])
    first, second = ResultsFolder(tmp_path).scan_runs().runs
    assert first.record.cards["task"] is second.record.cards["task"]
    assert first.record.machine is second.record.machine
    assert first.queries is second.queries
    assert first.record.cards["model"] != second.record.cards["model"]
