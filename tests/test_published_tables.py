"""Published scores: the shipped tables, their rows on the leaderboard, imports, and expected scores."""

import json
import math
import resource
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from retbench.cards import catalog
from retbench.cards.model import ModelCard, PublishedScore
from retbench.cli.main import app
from retbench.errors import DataError, MissingError, ResourceError, UsageError
from retbench.pipelines.evaluation.published_scores import find_expected_scores
from retbench.pipelines.evaluation.request import EvaluationRequest
from retbench.pipelines.mteb_bridge.import_results import import_results
from retbench.pipelines.report import build_report
from retbench.records.cell import Cell
from retbench.records.mteb_results import read_mteb_results_below
from retbench.reports.published_tables import load_published_rows, load_shipped_tables, read_table
from retbench.scoring.metrics import score_query
from tests.finished_runs import write_finished_run


def test_every_shipped_column_is_a_task_or_a_group_of_ours() -> None:
    groups = {group for suite in catalog.load_suites() for group in suite.groups or {}}
    for table in load_shipped_tables():
        unknown = [task for task in table.tasks if task not in catalog.load_task_cards() and task not in groups]
        assert unknown == [], table.name
        assert table.suite is None or table.suite in catalog.load_suites()


def test_every_shipped_table_has_the_metric_and_protocol_of_its_tasks() -> None:
    for table in load_shipped_tables():
        for task in (task for task in table.tasks if task in catalog.load_task_cards()):
            card = catalog.find_task_card(task)
            assert card.protocol == table.protocol, (table.name, task)
            metric = table.get_metric(task)
            if metric.replace("_at_", "-") in table.name:  # a further metric of a table that is shown by the main one
                assert metric in score_query(["d"], {"d": 1}, card.depth), (table.name, task)
            else:
                assert card.metric == metric, (table.name, task)


def test_every_shipped_number_is_a_score() -> None:
    for row in load_published_rows():
        figures = [*row.scores.values(), *([row.suite_mean] if row.suite_mean is not None else [])]
        assert figures, row
        assert all(0 <= figure <= 1 and math.isfinite(figure) for figure in figures), row


def test_published_rows_are_marked_and_never_ranked(tmp_path: Path) -> None:
    write_finished_run(tmp_path, "m", "scifact", [0.5] * 4)
    assert build_report(tmp_path).boards[0].published_rows == []
    text = build_report(tmp_path, reference=True).format("markdown")
    assert "| – | – | E5-Mistral-7B† | published: mteb-beir | 76.42 |" in text
    only = build_report(tmp_path, table_names=("repllama-scifact",)).format("markdown")
    assert "RepLLaMA-7B†" in only
    assert "E5-Mistral" not in only
    with pytest.raises(UsageError, match="repllamma"):
        build_report(tmp_path, table_names=("repllamma",))


def test_another_metric_sample_or_protocol_excludes_published_rows(tmp_path: Path) -> None:
    write_finished_run(tmp_path / "a", "m", "scifact", [0.5] * 4, settings={"sample": 4})
    write_finished_run(tmp_path / "b", "m", "scifact", [0.5] * 4, settings={"protocol": "study"})
    write_finished_run(tmp_path / "c", "m", "msmarco-dev", [0.5] * 4)  # published by another metric
    for folder in "abc":
        assert build_report(tmp_path / folder, reference=True).boards[0].published_rows == []


def test_a_group_column_takes_the_published_mean(tmp_path: Path) -> None:
    for forum in ("android", "english"):
        write_finished_run(tmp_path, "m", f"cqadupstack-{forum}", [0.5] * 4, suite="beir")
    write_finished_run(tmp_path, "m", "scifact", [0.7] * 4, suite="beir")
    text = build_report(tmp_path, table_names=("mteb-beir",)).format("markdown")
    head = next(line for line in text.splitlines() if line.startswith("| rank"))
    assert "| cqadupstack | scifact |" in head
    assert "| 60.00 | 50.00? | 70.00? |" in text
    assert f"| {(46.00 + 76.42) / 2:.2f} | 46.00 | 76.42 |" in text
    assert "The average covers 2 of the 15 entries of beir." in text


def test_a_row_of_the_wrong_length_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text('name = "t"\ntitle = "t"\nsource = "s"\ntasks = ["a", "b"]\n[rows]\n"m" = [1.0]\n')
    with pytest.raises(DataError, match=r"t.toml:6: rows.m: 1 scores for 2 tasks"):
        read_table(tmp_path / "t.toml")


def test_import_adds_mteb_results_and_keeps_earlier_ones(tmp_path: Path) -> None:
    write_finished_run(tmp_path / "r", "m", "scifact", [0.5] * 4)
    folder = tmp_path / "org__model" / "rev"
    folder.mkdir(parents=True)
    for name, score in (("SciFact", 0.61), ("NFCorpus", 0.33)):
        row = {"hf_subset": "default", "ndcg_at_10": score, "main_score": score}
        (folder / f"{name}.json").write_text(json.dumps({"task_name": name, "scores": {"test": [row]}}))
        result = CliRunner().invoke(app, ["import", str(folder / f"{name}.json"), "--results", str(tmp_path / "r")])
        assert result.exit_code == 0, result.output
    (table,) = map(read_table, (tmp_path / "r" / "references").glob("*.toml"))
    assert table.rows == {"org/model": (0.61, 0.33)}
    assert "| org/model† | published: org-model-standard | 61.00 |" in build_report(tmp_path / "r", True).format(
        "markdown"
    )


def _write_mteb_result(folder: Path, name: str, score: float, metric: str = "ndcg_at_10") -> Path:
    """An mteb result file; `folder` is results/<org>__<model>/<revision>."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps({"task_name": name, "scores": {"test": [{"hf_subset": "default", metric: score}]}}))
    return file


def _read_imported(results: Path) -> dict[str, tuple[float, ...]]:
    tables = [read_table(file) for file in sorted((results / "references").glob("*.toml"))]
    assert len({table.name for table in tables}) == len(tables)
    return {model: scores for table in tables for model, scores in table.rows.items()}


def test_an_experiment_is_a_row_of_its_own(tmp_path: Path) -> None:
    revision = tmp_path / "m" / "org__model" / "rev"
    _write_mteb_result(revision, "SciFact", 0.6)
    _write_mteb_result(revision / "experiments" / "max_length_4", "SciFact", 0.2)
    import_results(tmp_path / "m", tmp_path / "r")
    assert _read_imported(tmp_path / "r") == {"org/model": (0.6,), "org/model (max_length_4)": (0.2,)}


def test_an_import_on_a_full_disk_leaves_no_table(tmp_path: Path) -> None:
    _write_mteb_result(tmp_path / "m" / "org__model" / "rev", "SciFact", 0.6)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # a file can be created, but not be written
    try:
        with pytest.raises(ResourceError, match="could not be written"):
            import_results(tmp_path / "m", tmp_path / "r")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "r" / "references").iterdir()) == []


def test_names_that_differ_by_a_sign_are_two_tables(tmp_path: Path) -> None:
    for model, task, score in (("e5_base", "SciFact", 0.6), ("e5-base", "NFCorpus", 0.3), ("e5-base", "SciFact", 0.5)):
        import_results(_write_mteb_result(tmp_path / f"org__{model}" / "rev", task, score), tmp_path / "r")
    assert _read_imported(tmp_path / "r") == {"org/e5_base": (0.6,), "org/e5-base": (0.3, 0.5)}


def test_two_scores_of_one_model_on_one_task_are_refused(tmp_path: Path) -> None:
    files = [
        _write_mteb_result(tmp_path / "m" / "org__model" / rev, "SciFact", score)
        for rev, score in (("a", 0.6), ("b", 0.7))
    ]
    with pytest.raises(UsageError, match=r"org/model has two scores on scifact: 0.6 and 0.7"):
        import_results(tmp_path / "m", tmp_path / "r")
    import_results(files[0], tmp_path / "r")
    import_results(files[0], tmp_path / "r")  # the same import again changes nothing
    with pytest.raises(UsageError, match=r"org/model has two scores"):
        import_results(files[1], tmp_path / "r")
    assert _read_imported(tmp_path / "r") == {"org/model": (0.6,)}


def test_only_results_that_a_board_can_show_are_imported(tmp_path: Path) -> None:
    similarity = _write_mteb_result(tmp_path / "m" / "org__model" / "rev", "STS12", 0.7, "cosine_spearman")
    with pytest.raises(MissingError, match="has no scores of retrieval tasks"):
        import_results(similarity, tmp_path / "r")
    assert _read_imported(tmp_path / "r") == {}
    _write_mteb_result(similarity.parent, "SciFact", 0.6)
    (members,) = import_results(tmp_path / "m", tmp_path / "r").values()
    assert [one.task for one in members] == ["scifact"]


def test_every_subset_and_every_known_split_of_an_mteb_file_is_read(tmp_path: Path) -> None:
    def rows(*subsets: str) -> list[dict[str, object]]:
        return [{"hf_subset": one, "ndcg_at_10": 1 if one == "go" else 0.5} for one in subsets]

    for name, scores in {
        "COIRCodeSearchNetRetrieval": {"test": rows("go", "python", "klingon")},
        "LEMBPasskeyRetrieval": {"test_256": rows("default"), "test_512": rows("default"), "test_3": rows("default")},
        "MSMARCO": {"dev": rows("default"), "train": rows("default")},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"task_name": name, "scores": scores}))
    actual = {one.task: one.scores["ndcg_at_10"] for one in read_mteb_results_below(tmp_path)}
    assert actual == {
        "codesearchnet-go": 1.0, "codesearchnet-python": 0.5, "coircodesearchnetretrieval-klingon": 0.5,
        "longembed-passkey-256": 0.5, "longembed-passkey-512": 0.5, "msmarco": 0.5,
    }  # fmt: skip


def _build_cell(model: str = "minilm-l6", method: str = "mean", sample: int | None = None) -> Cell:
    return Cell(model, method, "scifact", "beir", "test", "done", sample=sample, scores={"ndcg_at_10": 0.6451})


def test_an_expected_score_is_checked_only_for_a_cell_with_card_settings() -> None:
    model = catalog.find_model_card("minilm-l6")
    request, task = EvaluationRequest(("minilm-l6",), ("scifact",)), catalog.find_task_card("scifact")
    (actual,) = find_expected_scores(_build_cell(), model, task, request)
    assert (actual.metric, actual.is_met) == ("ndcg_at_10", True)
    assert find_expected_scores(_build_cell(sample=10), model, task, request) == ()
    assert find_expected_scores(_build_cell(method="last"), model, task, request) == ()
    assert find_expected_scores(_build_cell(), model, replace(task, fields=("text",)), request) == ()
    assert (
        find_expected_scores(
            _build_cell(), model, task, EvaluationRequest(("minilm-l6",), ("scifact",), overrides={"max_length": 64})
        )
        == ()
    )


def test_a_model_card_may_have_an_expected_score() -> None:
    model = ModelCard("mine", reference=(PublishedScore("scifact", "ndcg_at_10", 0.9, "a paper", 0.01),))
    (actual,) = find_expected_scores(
        _build_cell("mine"), model, catalog.find_task_card("scifact"), EvaluationRequest(("mine",), ("scifact",))
    )
    assert (actual.score, actual.is_met) == (0.9, False)
