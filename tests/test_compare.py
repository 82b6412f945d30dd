"""compare and inspect: settings first, then the significance test, then queries with their texts."""

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import retbench
from retbench.cli.main import app
from retbench.corpora.open_collection import open_collection
from retbench.errors import DataError, UsageError
from retbench.pipelines.runs import compare_inputs
from retbench.pipelines.runs.compare import compare_runs
from retbench.pipelines.runs.inspect import inspect_run
from retbench.records.load_run import load_trec_run
from retbench.records.results_folder import ResultsFolder
from retbench.reports.comparison import SettingDifference, list_setting_differences
from retbench.reports.comparison_text import format_comparison, format_settings
from retbench.scoring.metrics import score_run
from retbench.scoring.significance import compute_paired_p_value
from tests import small_collection
from tests.finished_runs import METRIC, write_finished_run


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """BM25 on the small collection at two depths."""
    folder = small_collection.write_folder(tmp_path / "small")
    for depth in (10, 12):
        retbench.evaluate(["bm25"], tasks=[str(folder)], out=tmp_path / "r", overrides={"depth": depth})
    return tmp_path / "r"


def _list_runs(results: Path) -> list[Path]:
    return [
        run.folder
        for run in sorted(ResultsFolder(results).scan_runs().runs, key=lambda run: run.record.settings["depth"])
    ]


def test_settings_are_printed_first_and_the_test_agrees_with_the_scores(tmp_path: Path) -> None:
    a = write_finished_run(tmp_path, "a", "t", [0.9, 0.5, 0.5, 0.1, 0.8])
    b = write_finished_run(tmp_path, "b", "t", [0.1, 0.5, 0.4, 0.2, 0.3], settings={"depth": 10})
    found = retbench.compare(a, b)
    assert [one.name for one in found.settings] == ["model", "settings.lexical.name", "settings.depth"]
    assert found.test is not None
    assert (found.test.wins.wins, found.test.wins.ties, found.test.wins.losses) == (3, 1, 1)
    assert found.test.p_value == compute_paired_p_value([0.9, 0.5, 0.5, 0.1, 0.8], [0.1, 0.5, 0.4, 0.2, 0.3])
    assert found.test.difference == pytest.approx(0.26)
    assert [moved.query for moved in found.moved] == ["q000", "q004", "q002", "q003"] or found.moved[0].query == "q000"
    assert "not in the cache" in found.remarks[0]


def test_the_test_may_use_any_metric_of_both_runs(tmp_path: Path) -> None:
    recall = {"recall_at_100": [1.0, 0.5, 0.0]}, {"recall_at_100": [0.0, 0.5, 0.5]}
    a, b = (write_finished_run(tmp_path, name, "t", [0.5] * 3, more_scores=recall[n]) for n, name in enumerate("ab"))
    found = retbench.compare(a, b, metric="Recall@100")
    assert found.test is not None
    assert (found.test.metric, found.test.queries) == ("recall_at_100", 3)
    assert found.test.difference == pytest.approx(0.5 / 3)
    assert next(iter(found.scores)) == "recall_at_100"  # shown first
    with pytest.raises(UsageError, match="there is no metric 'recall@7'"):
        retbench.compare(a, b, metric="recall@7")
    with pytest.raises(DataError, match="has no map_at_10"):
        retbench.compare(a, b, metric="map@10")


def test_a_trec_run_is_tested_by_any_metric_up_to_its_depth(results: Path, tmp_path: Path) -> None:
    _, run = _list_runs(results)
    trec = tmp_path / "same.trec"
    trec.write_bytes(gzip.decompress((run / "run.trec.gz").read_bytes()))
    found = compare_runs(str(run), str(trec), metric="recall_at_10")
    assert found.test is not None
    assert (found.test.metric, found.test.difference) == ("recall_at_10", 0)
    with pytest.raises(DataError, match=r"same.trec has no recall_at_1000: it ranks \d+ documents"):
        compare_runs(str(trec), str(trec), task=str(tmp_path / "small"), metric="recall_at_1000")


def test_one_letter_of_a_prompt_is_shown_with_its_bytes(tmp_path: Path) -> None:
    facts = {"query_limit": 64, "document_limit": 512, "dtype": "float32", "weights": "w"}
    a, b = (
        write_finished_run(
            tmp_path, "m", "t", [0.5, 0.5], settings={"encoder": {**facts, "method": {"query": template}}}
        )
        for template in ("Query:{text}", "Query: {text}")
    )
    (one,) = compare_runs(str(a), str(b)).settings
    assert (one.name, one.a, one.b) == ("settings.encoder.method.query", "'Query:{text}'", "'Query: {text}'")


def test_runs_over_different_documents_are_not_tested(tmp_path: Path) -> None:
    a, b = (
        write_finished_run(tmp_path, "a", "t", [0.5] * 3),
        write_finished_run(tmp_path, "b", "t", [0.4] * 3, fingerprint="another"),
    )
    found = compare_runs(str(a), str(b))
    assert found.test is None
    assert "fingerprint" in found.remarks[0]


def test_texts_come_from_the_cache(results: Path, tmp_path: Path) -> None:
    run = _list_runs(results)[1]
    lines = gzip.decompress((run / "run.trec.gz").read_bytes()).decode().splitlines()
    rows = [line.split() for line in lines]
    worse = [" ".join([*row[:3], str(99 - int(row[3])), str(-float(row[4])), row[5]]) for row in rows]  # upside down
    (tmp_path / "worse.trec").write_text("\n".join(worse))
    found = compare_runs(str(run), str(tmp_path / "worse.trec"))
    assert found.test is not None
    assert found.test.difference > 0
    assert found.moved[0].text in [text for _, text in small_collection.QUERIES]
    assert found.moved[0].top_a != found.moved[0].top_b
    assert found.remarks == []


def test_our_run_imported_as_a_trec_run_has_the_same_scores(results: Path, tmp_path: Path) -> None:
    deep = _list_runs(results)[1]
    (tmp_path / "foreign.trec").write_bytes(gzip.decompress((deep / "run.trec.gz").read_bytes()))
    found = compare_runs(str(tmp_path / "foreign.trec"), str(deep))
    assert found.test is not None
    assert found.test.wins.ties == found.test.queries == 3
    assert found.scores[METRIC][0] == pytest.approx(found.scores[METRIC][1])


@pytest.fixture
def twins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_catalog: Callable[[], None]) -> str:
    """A task whose queries are documents, too, and may not find themselves."""
    folder = small_collection.write_folder(tmp_path / "twins")
    with (folder / "corpus.jsonl").open("a") as corpus:
        corpus.writelines(
            json.dumps({"_id": name, "title": "", "text": text}) + "\n" for name, text in small_collection.QUERIES
        )
    cards = tmp_path / "cards" / "tasks" / "mine"
    cards.mkdir(parents=True)
    card = f'name = "twins"\nsame_id = "drop"\n[source]\nkind = "folder"\npath = "{folder}"\n'
    (cards / "twins.toml").write_text(card)
    monkeypatch.setenv("RETBENCH_CARDS", str(tmp_path / "cards"))
    fresh_catalog()
    return "twins"


def test_an_imported_run_is_scored_by_the_task_rules(
    twins: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "theirs.trec"
    file.write_text("q2 Q0 q2 1 3 x\nq2 Q0 ship 2 2 x\nq2 Q0 train 3 1 x\n")
    (cell,) = retbench.evaluate(["bm25"], tasks=[twins], out=tmp_path / "r")
    for task in (None, twins):
        found = retbench.compare(file, cell.record or "", task=task)
        assert found.scores["mrr_at_10"][0] == pytest.approx(1 / 2 / 3)  # of three queries one is answered
    barred = {"q2": frozenset({"ship"})}
    monkeypatch.setattr(
        compare_inputs, "open_collection", lambda card, **_: replace(open_collection(card), excluded=barred)
    )
    assert retbench.compare(file, file, task=twins).scores["mrr_at_10"][0] == pytest.approx(1 / 3)


def test_an_empty_or_foreign_run_is_an_error(results: Path, tmp_path: Path) -> None:
    ours = str(_list_runs(results)[0])
    (tmp_path / "empty.trec").write_text("\n")
    with pytest.raises(DataError, match="is an empty run"):
        compare_runs(str(tmp_path / "empty.trec"), ours)
    (tmp_path / "foreign.trec").write_text("another Q0 tea 1 2.0 x\n")
    with pytest.raises(DataError, match="has none of the 3 queries"):
        compare_runs(str(tmp_path / "foreign.trec"), ours)


def test_ranks_that_contradict_the_scores_are_named(results: Path, tmp_path: Path) -> None:
    ours = str(_list_runs(results)[0])
    (tmp_path / "theirs.trec").write_text("q1 Q0 tea 1 1.0 x\nq1 Q0 coffee 2 2.0 x\nq2 Q0 ship 1 2.0 x\n")
    comparison = compare_runs(str(tmp_path / "theirs.trec"), ours)
    assert "contradicts the scores in 1 of 2 queries" in comparison.remarks[-1]
    (tmp_path / "theirs.trec").write_text("q1 Q0 tea 0 1.0 x\nq1 Q0 coffee 0 2.0 x\n")  # no order, so no contradiction
    assert compare_runs(str(tmp_path / "theirs.trec"), ours).remarks == [
        "theirs.trec has no ranking for 2 of 3 queries; they score 0"
    ]


def test_two_imported_runs_need_a_task(results: Path, tmp_path: Path) -> None:
    run = str(_list_runs(results)[1] / "run.trec.gz")
    with pytest.raises(UsageError, match="judgments"):
        compare_runs(run, run)
    found = compare_runs(run, run, task=str(tmp_path / "small"))
    assert found.test is not None
    assert found.test.p_value == 1.0


def test_an_mteb_result_has_only_mean_scores(results: Path, tmp_path: Path) -> None:
    file = tmp_path / "org__model" / "rev" / "Small.json"
    file.parent.mkdir(parents=True)
    scores = [{"hf_subset": "default", "ndcg_at_10": 0.5, "main_score": 0.5, "languages": ["eng-Latn"]}]
    file.write_text(json.dumps({"task_name": "Small", "dataset_revision": "abc", "scores": {"test": scores}}))
    found = compare_runs(str(_list_runs(results)[1]), str(file))
    assert found.b == "org/model on small (mteb result)"
    assert found.scores[METRIC][1] == 0.5
    assert "only mean scores" in found.remarks[0]
    file.write_text("{}")
    with pytest.raises(DataError, match="mteb"):
        compare_runs(str(_list_runs(results)[1]), str(file))


def test_a_subset_of_an_mteb_file_is_selected(results: Path, tmp_path: Path) -> None:
    file = tmp_path / "Small.json"
    scores = [{"hf_subset": name, "ndcg_at_10": score} for name, score in (("default", 0.5), ("go", 0.25))]
    file.write_text(json.dumps({"task_name": "Small", "scores": {"test": scores}}))
    run = str(_list_runs(results)[1])
    assert compare_runs(run, str(file)).scores[METRIC][1] == 0.5
    assert compare_runs(run, str(file), task="small-go").scores[METRIC][1] == 0.25
    with pytest.raises(UsageError, match="has small, small-go, but not other"):
        compare_runs(run, str(file), task="other")


def test_an_imported_run_is_ordered_by_score_and_then_by_id(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("q Q0 b 1 9.0 x\nq Q0 a 0 1.0 x\nq Q0 d zero 9.0 x\nq Q0 c 0 9.00000001 x\n")
    assert load_trec_run(tmp_path / "r").rankings == {"q": ["d", "c", "b", "a"]}  # in float32 the three are equal


@pytest.mark.parametrize(
    "line", ["not a run", "q Q0 d 1", "q Q0 d 1 high x", "q Q0 d 1 nan x"], ids=["words", "short", "no number", "nan"]
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "r").write_text(f"q Q0 b 1 9.0 x\n{line}\n")
    with pytest.raises(DataError, match="r, line 2 "):
        load_trec_run(tmp_path / "r")


@pytest.mark.parametrize("ranks", ["rising", "zero", "falling", "random"])
@pytest.mark.parametrize("seed", range(6))
def test_imported_runs_score_as_in_pytrec_eval(tmp_path: Path, seed: int, ranks: str) -> None:
    """Ties, scores that are equal only in float32, huge and negative scores, and lines in any order."""
    pytrec_eval = pytest.importorskip("pytrec_eval")
    generator = np.random.default_rng(seed)
    documents = [f"{'Dd-é'[number % 4]}{number}" for number in range(60)]
    judgments = {f"q{query}": {doc: int(generator.integers(0, 3)) for doc in documents[::2]} for query in range(5)}
    draws: list[Callable[[], np.ndarray]] = [
        lambda: generator.integers(0, 4, 40).astype(float),
        lambda: 1 + generator.integers(0, 9, 40) * 1e-8,
        lambda: generator.normal(0, 1e30, 40),
    ]
    run: dict[str, dict[str, float]] = {}
    lines = []
    for query in judgments:
        found = generator.permutation(60)[:40]
        scores = draws[seed % 3]()
        run[query] = {documents[row]: float(score) for row, score in zip(found, scores, strict=True)}
        rank = {
            "rising": range(1, 41),
            "zero": [0] * 40,
            "falling": range(40, 0, -1),
            "random": generator.integers(0, 99, 40),
        }
        lines += [
            f"{query}\tQ0 {documents[row]}  {place} {score!r} tag"
            for row, place, score in zip(found, rank[ranks], scores.tolist(), strict=True)
        ]
    generator.shuffle(lines)
    file = tmp_path / "run.trec.gz"
    file.write_bytes(gzip.compress("\n".join(lines).encode()))
    expected = pytrec_eval.RelevanceEvaluator(judgments, {"ndcg_cut.10", "recip_rank", "map_cut.100"}).evaluate(run)
    actual = score_run(load_trec_run(file).rankings, judgments, 100)
    for query, figures in expected.items():
        assert actual[query]["ndcg_at_10"] == pytest.approx(figures["ndcg_cut_10"], abs=1e-9)
        assert actual[query]["map_at_100"] == pytest.approx(figures["map_cut_100"], abs=1e-9)
        assert actual[query]["mrr_at_100"] == pytest.approx(figures["recip_rank"], abs=1e-9)


def test_inspect_shows_the_worst_queries_and_the_ranks_of_relevant_documents(results: Path) -> None:
    deep = _list_runs(results)[1]
    found = inspect_run(str(deep))
    scores = [answer.score for answer in found.answers]
    assert scores == sorted(scores)
    (answer,) = inspect_run(str(deep), query="q1").answers
    assert set(answer.relevant) == {"tea", "coffee", "kettle"}
    best = answer.ranked[0].split("]")[0].lstrip("[")
    assert any(rank == 1 for rank in answer.relevant.values()) == (best in ("1", "2"))
    with pytest.raises(UsageError):
        inspect_run(str(deep), query="q9")


def test_a_run_is_found_by_a_settings_id_prefix(results: Path) -> None:
    deep = _list_runs(results)[1]
    runner = CliRunner()
    out = runner.invoke(app, ["inspect", deep.name[:6], "--results", str(results), "--json"])
    assert json.loads(out.stdout)["depth"] == 12
    out = runner.invoke(app, ["compare", deep.name, deep.name, "--results", str(results)])
    assert out.exit_code == 0
    assert "All recorded settings are equal." in out.stdout
    assert runner.invoke(app, ["inspect", "zzz", "--results", str(results)]).exit_code == 2


@pytest.mark.parametrize(("queries", "expected"), [(4, "0.1250"), (5, "0.0625"), (6, "same sign on every query")])
def test_no_power_is_claimed_that_so_few_queries_cannot_have(tmp_path: Path, queries: int, expected: str) -> None:
    a = write_finished_run(tmp_path, "a", "t", [0.9, 0.8, 0.7, 0.9, 0.6, 0.8][:queries])
    b = write_finished_run(tmp_path, "b", "t", [0.1, 0.1, 0.2, 0.2, 0.1, 0.3][:queries])
    comparison = retbench.compare(a, b)
    assert comparison.test is not None
    assert (comparison.test.p_value <= 0.05) == (queries == 6)
    printed = format_comparison(comparison)
    assert expected in printed
    assert "80%" not in printed


def test_the_detectable_difference_is_printed_for_more_queries(tmp_path: Path) -> None:
    a = write_finished_run(tmp_path, "a", "t", [0.9, 0.8, 0.7, 0.9, 0.6, 0.8, 0.4, 0.9])
    b = write_finished_run(tmp_path, "b", "t", [0.1, 0.1, 0.2, 0.2, 0.1, 0.3, 0.5, 0.4])
    assert "significant in about 80% of cases" in format_comparison(retbench.compare(a, b))


def test_a_run_is_found_by_its_model_and_task(results: Path, tmp_path: Path) -> None:
    small, other = tmp_path / "small", small_collection.write_folder(tmp_path / "other")
    retbench.evaluate(["bm25", "bm25-lucene"], tasks=[str(other)], out=results)
    found = retbench.compare("bm25", "bm25-lucene", results=results, task=str(other))
    assert (found.a.split(" (")[0], found.task) == ("bm25 · bm25 · other", "other")
    assert found.test is not None
    with pytest.raises(UsageError, match=r"2 runs in .* on small fit 'bm25': \w+ \(bm25 on small\), \w+ \(bm25"):
        retbench.compare("bm25", "bm25", results=results, task=str(small))
    with pytest.raises(UsageError, match="3 runs") as caught:
        retbench.compare("bm25", "bm25-lucene", results=results)
    assert caught.value.next_step == "name one settings-id, or give --task"
    with pytest.raises(UsageError, match=r"there is no run 'bm25-lucene' in .* on small"):
        retbench.compare(str(_list_runs(results)[0]), "bm25-lucene", results=results, task=str(small))


def test_one_settings_id_of_two_equal_tasks_is_told_apart_by_the_task(results: Path, tmp_path: Path) -> None:
    retbench.evaluate(["bm25"], tasks=[str(small_collection.write_folder(tmp_path / "copy"))], out=results)
    for depth in (10, 12):
        retbench.evaluate(["bm25"], tasks=[str(tmp_path / "copy")], out=results, overrides={"depth": depth})
    shallow = _list_runs(results)[0].name
    assert retbench.compare(shallow, shallow, results=results, task=str(tmp_path / "copy")).task == "copy"


def test_a_foreign_run_is_tested_on_a_folder(results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = _list_runs(results)[1]
    (tmp_path / "theirs.trec").write_bytes(gzip.decompress((run / "run.trec.gz").read_bytes()))
    for a, b in (("theirs.trec", str(run)), (str(run), "theirs.trec"), ("theirs.trec", "theirs.trec")):
        found = retbench.compare(a, b, task="./small")
        assert (found.task, found.remarks) == ("small", [])
        assert found.test is not None


def test_the_verdict_comes_first(tmp_path: Path) -> None:
    better = [0.9, 0.8, 0.7, 0.9, 0.6, 0.8, 0.4, 0.9]
    a = write_finished_run(tmp_path, "a", "t", better)
    b = write_finished_run(tmp_path, "b", "t", [score / 2 for score in better])
    lines = format_comparison(retbench.compare(a, b)).splitlines()
    assert lines[3].startswith("A is significantly better: ndcg_at_10 A - B = +37.50 over 8 queries")
    same = format_comparison(retbench.compare(b, b)).splitlines()
    assert same[3].startswith("No significant difference")


def test_a_part_that_only_one_run_has_is_one_line() -> None:
    names = ("weights", "method.name", "dtype")
    a = {"settings.encoder": "None", **{f"settings.lexical.{name}": "1" for name in ("k1", "b")}}
    b = {"settings.lexical": "None", **{f"settings.encoder.{name}": "'x'" for name in names}}
    assert sorted(format_settings(list_setting_differences(a, b))) == [
        "  encoder: A none, B 3 settings (--json lists them)",
        "  lexical: A 2 settings (--json lists them), B none",
        "2 settings differ:",
    ]


def test_versions_stand_in_one_line_after_the_settings() -> None:
    differences = [
        SettingDifference("machine.packages.torch", "'2.9.0'", "'2.9.1'"),
        SettingDifference("machine.commit", "'a'", "'b'"),
        SettingDifference("settings.depth", "10", "100"),
        SettingDifference("texts truncated.document", "0", "4"),
    ]
    assert format_settings(differences) == [
        "1 setting differs:",
        "  depth: A 10, B 100",
        "Observed in the runs:",
        "  texts truncated.document: A 0, B 4",
        "Machine and versions: packages.torch A '2.9.0', B '2.9.1'; commit A 'a', B 'b'",
    ]
    assert format_settings(differences[:2])[0] == "All settings that may change a score are equal."
