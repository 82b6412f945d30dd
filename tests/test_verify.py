"""`retbench verify`: mteb and beir score our run, and every difference is explained or refused."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from retbench.cards import catalog
from retbench.cards.task import TaskCard
from retbench.cli.main import app
from retbench.errors import DataError, MissingError
from retbench.pipelines.checks import verify
from retbench.pipelines.evaluation.evaluate import evaluate
from retbench.pipelines.evaluation.request import EvaluationRequest
from retbench.scoring import external_evaluators
from tests import small_collection


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_collection.write_folder(tmp_path / "small")


def add_rows(
    folder: Path, documents: dict[str, str], queries: dict[str, str], judged: list[tuple[str, str, int]]
) -> None:
    for name, rows in (("corpus", documents), ("queries", queries)):
        with (folder / f"{name}.jsonl").open("a") as file:
            file.writelines(json.dumps({"_id": i, "text": text}) + "\n" for i, text in rows.items())
    with (folder / "qrels/test.tsv").open("a") as file:
        file.writelines(f"{query}\t{document}\t{grade}\n" for query, document, grade in judged)


def run_bm25(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **rules: Any) -> Path:
    """Run BM25 with the given task rules; return the folder of the run."""
    find = catalog.find_task_card

    def ruled(name: str) -> TaskCard:
        return replace(find(name), **rules)

    monkeypatch.setattr(catalog, "find_task_card", ruled)
    (cell,) = evaluate(EvaluationRequest(("bm25",), (str(folder),), out=tmp_path / "results"))
    assert cell.status == "done", cell.error
    return Path(str(cell.record))


def group_by_evaluator(verification: verify.Verification, referee: str) -> dict[str, verify.MetricCheck]:
    return {verdict.metric: verdict for verdict in verification.checks if verdict.evaluator == referee}


def test_both_evaluators_agree_on_a_plain_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verification = verify.verify_run(str(run_bm25(folder, tmp_path, monkeypatch)))
    assert {verdict.evaluator for verdict in verification.checks} == {
        "mteb", "mteb, raw scores", "beir", "beir, raw scores"
    }  # fmt: skip
    assert all(verdict.agrees for verdict in verification.checks)
    assert {verdict.metric for verdict in verification.checks} >= {
        "ndcg_at_10",
        "mrr_at_10",
        "recall_at_100",
        "map_at_100",
    }


def test_a_kept_same_id_document_explains_the_beir_difference(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_rows(
        folder,
        {"twin": "the tea twin", "other": "a tea twin of the other kind"},
        {"twin": "tea twin"},
        [("twin", "other", 1)],
    )
    verification = verify.verify_run(str(run_bm25(folder, tmp_path, monkeypatch)))
    assert group_by_evaluator(verification, "mteb")["mrr_at_10"].agrees
    (reason,) = group_by_evaluator(verification, "beir")["mrr_at_10"].reasons or ()
    assert "own id" in reason
    assert verification.unexplained == []


def test_with_the_rule_in_the_card_all_evaluators_agree(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_rows(
        folder,
        {"twin": "the tea twin", "other": "a tea twin of the other kind"},
        {"twin": "tea twin"},
        [("twin", "other", 1)],
    )
    verification = verify.verify_run(str(run_bm25(folder, tmp_path, monkeypatch, same_id="drop")))
    assert all(verdict.agrees for verdict in verification.checks)


def test_ties_explain_differences_of_raw_scores_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twins = {f"z{n}": "zebra stripes" for n in range(3)}
    add_rows(folder, twins, {"qz": "zebra"}, [("qz", "z0", 1)])
    verification = verify.verify_run(str(run_bm25(folder, tmp_path, monkeypatch)))
    assert group_by_evaluator(verification, "mteb")["mrr_at_10"].agrees
    (reason,) = group_by_evaluator(verification, "mteb, raw scores")["mrr_at_10"].reasons or ()
    assert "queries have documents with equal scores" in reason
    assert verification.unexplained == []


def test_a_query_without_results_is_left_out_by_the_evaluators(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_rows(folder, {}, {"qn": "xylophone"}, [("qn", "tea", 1)])
    verification = verify.verify_run(str(run_bm25(folder, tmp_path, monkeypatch)))
    for referee in ("mteb", "beir"):
        verdict = group_by_evaluator(verification, referee)["ndcg_at_10"]
        (reason,) = verdict.reasons or ()
        assert reason.startswith("1 queries have no results")
        assert verdict.theirs > verdict.ours


def test_a_lowest_relevant_grade_explains_binary_metrics(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verification = group_by_evaluator(
        verify.verify_run(str(run_bm25(folder, tmp_path, monkeypatch, relevant_from=2))), "mteb"
    )
    assert verification["ndcg_at_10"].agrees
    (reason,) = verification["recall_at_1"].reasons or ()
    assert "only 2 and above" in reason


def test_several_reasons_are_reported_together(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_rows(folder, {}, {"qn": "xylophone"}, [("qn", "tea", 2)])
    verification = verify.verify_run(str(run_bm25(folder, tmp_path, monkeypatch, relevant_from=2)))
    assert len(group_by_evaluator(verification, "mteb")["recall_at_100"].reasons or ()) == 2
    assert verification.unexplained == []


def test_an_unexplained_difference_ends_with_exit_4(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = run_bm25(folder, tmp_path, monkeypatch)
    monkeypatch.setattr(external_evaluators, "_compute_beir_scores", lambda *_: {"ndcg_at_10": 0.123})
    done = CliRunner().invoke(app, ["verify", str(record)])
    assert done.exit_code == 4
    assert "NOT EXPLAINED" in done.output
    assert "theirs 0.123000" in done.output


def test_the_command_prints_agreement_and_json_has_every_metric(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = run_bm25(folder, tmp_path, monkeypatch)
    answer = CliRunner().invoke(app, ["verify", str(record)])
    assert answer.exit_code == 0
    assert "metrics agree to 6 digits" in answer.output
    rows = json.loads(CliRunner().invoke(app, ["verify", str(record), "--json"]).output)
    assert {"run", "task", "referee", "metric", "ours", "theirs", "digits", "reasons", "agrees"} == rows[0].keys()


def edit_record(record: Path, change: Any) -> None:
    file = record / "run.trec.gz"
    lines = gzip.decompress(file.read_bytes()).decode().splitlines()
    file.write_bytes(gzip.compress("\n".join(change(lines)).encode()))


def test_an_edited_run_is_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run_bm25(folder, tmp_path, monkeypatch)

    def renamed(lines: list[str]) -> list[str]:
        return [line.replace(" tea ", " owl ").replace(" train ", " lens ") for line in lines]

    edit_record(record, renamed)
    with pytest.raises(DataError, match="of the record"):
        verify.verify_run(str(record))


def test_an_excluded_document_in_the_run_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_rows(
        folder,
        {"twin": "the tea twin", "other": "a tea twin"},
        {"twin": "tea twin"},
        [("q1", "owl", 0), ("twin", "other", 0)],
    )
    record = run_bm25(folder, tmp_path, monkeypatch)
    facts = json.loads((record / "record.json").read_text())
    facts["settings"]["same_id"] = "drop"
    (record / "record.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match="query 'twin' ranks 'twin', which the task excludes"):
        verify.verify_run(str(record))


def test_a_missing_extra_names_the_install_command() -> None:
    with pytest.raises(MissingError) as caught, external_evaluators.import_evaluator("mteb"):
        raise ModuleNotFoundError("No module named 'mteb'")
    assert "[verify]" in caught.value.next_step


def test_mteb_drops_same_id_documents_by_task() -> None:
    assert external_evaluators.does_mteb_drop_same_id("ArguAna")
    assert not external_evaluators.does_mteb_drop_same_id("SciFact")
    assert not external_evaluators.does_mteb_drop_same_id(None)
