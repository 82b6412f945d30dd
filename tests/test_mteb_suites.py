"""Suites that have the name of a benchmark of mteb: the same tasks, revisions and average as mteb's own registry."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retbench.cards import catalog
from retbench.corpora.open_collection import open_collection
from retbench.pipelines.report import build_report
from retbench.reports.suite_average import compute_suite_mean
from tests.finished_runs import write_finished_run
from tests.hub_repositories import build_retrieval_configs, write_fetched_repository
from tests.small_collection import DOCUMENTS, QUERIES, TEST_JUDGMENTS
from tests.test_run import run_command

mteb = pytest.importorskip("mteb")

BENCHMARKS = {
    "bright-pro": "BRIGHT-Pro",
    "coreb": "CoREB(v1)",
    "mteb-eng-v2-retrieval": "MTEB(eng, v2)",
    "nanobeir": "NanoBEIR",
    "nanobeir-multilingual": "NanoBEIR-multilingual",
    "r2med": "R2MED",
    "rteb": "RTEB(beta)",
    "rteb-code": "RTEB(Code, beta)",
    "rteb-eng": "RTEB(eng, beta)",
    "rteb-fin": "RTEB(fin, beta)",
    "rteb-health": "RTEB(Health, beta)",
    "rteb-law": "RTEB(Law, beta)",
}
LANGUAGES = ("ar", "de", "en", "es", "fr", "it", "ja", "ko", "no", "pt", "sv")


def list_benchmark_tasks(name: str) -> list[Any]:
    """The tasks of a benchmark that anybody may download; of MTEB(eng, v2) those of its type Retrieval."""
    tasks = [task for task in mteb.get_benchmark(name).tasks if task.metadata.is_public]
    return [task for task in tasks if not name.startswith("MTEB") or task.metadata.type == "Retrieval"]


def list_parts(task: Any) -> list[tuple[str, str, str | None, str, str, str]]:
    """Every split and subset of a task of mteb, with its repository, revision and main score."""
    facts = (task.metadata.dataset["path"], task.metadata.dataset["revision"], task.metadata.main_score)
    subsets = [None if subset == "default" else subset for subset in task.hf_subsets]
    return [(task.metadata.name, split, subset, *facts) for split in task.eval_splits for subset in subsets]


def describe_card(name: str) -> tuple[str, str, str | None, str, str, str]:
    card = catalog.find_task_card(name)
    source = card.source
    return (str(source.mteb), card.split, source.subset, str(source.repo), str(source.revision), card.metric)


@pytest.mark.parametrize(("suite", "benchmark"), BENCHMARKS.items())
def test_a_suite_has_the_tasks_and_revisions_of_mteb(suite: str, benchmark: str) -> None:
    expected = [part for task in list_benchmark_tasks(benchmark) for part in list_parts(task)]
    ours = [describe_card(name) for name in catalog.load_suites().find(suite).expand_tasks()]
    assert sorted(map(str, ours)) == sorted(map(str, expected))


def test_bright_and_bright_long_are_together_the_benchmark_of_mteb() -> None:
    expected = [part for task in mteb.get_benchmark("BRIGHT(v1.1)").tasks for part in list_parts(task)]
    names = [name for suite in ("bright", "bright-long") for name in catalog.load_suites().find(suite).expand_tasks()]
    assert sorted(map(str, map(describe_card, names))) == sorted(map(str, expected))


@pytest.mark.parametrize(
    ("suite", "task", "parts"),
    [("swe-bench", "SWEbenchCodeRetrieval", 1), ("browsecomp-plus", "BrowseCompPlusRetrieval", 2)],
)
def test_a_suite_of_one_task_of_mteb_has_its_revision(suite: str, task: str, parts: int) -> None:
    ours = [describe_card(name) for name in catalog.load_suites().find(suite).expand_tasks()]
    assert sorted(map(str, ours)) == sorted(map(str, list_parts(mteb.get_task(task))))
    assert len(ours) == parts


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_of_nanobeir_has_its_thirteen_tasks(language: str) -> None:
    cards = [catalog.find_task_card(name) for name in catalog.load_suites().find(f"nanobeir-{language}").tasks]
    benchmark = {task.metadata.name for task in mteb.get_benchmark("NanoBEIR-multilingual").tasks}
    assert {card.source.mteb for card in cards} == benchmark
    assert {card.source.subset for card in cards} == {language}


@pytest.mark.parametrize(("suite", "benchmark"), BENCHMARKS.items())
def test_the_average_is_that_of_mteb(suite: str, benchmark: str) -> None:
    """mteb averages a task over its splits and subsets, then the tasks; the scores are random."""
    rng = np.random.default_rng(0)
    scores = {
        str(describe_card(name)): float(rng.random()) for name in catalog.load_suites().find(suite).expand_tasks()
    }
    means = []
    for task in list_benchmark_tasks(benchmark):
        by_split: dict[str, dict[str, dict[str, float]]] = {}
        for part in list_parts(task):
            by_split.setdefault(part[1], {})[part[2] or "default"] = {"main_score": scores[str(part)]}
        means.append(mteb.results.TaskResult.from_task_results(task, by_split, evaluation_time=1.0).get_score())
    names = {str(describe_card(name)): name for name in catalog.load_suites().find(suite).expand_tasks()}
    ours = compute_suite_mean(suite, {names[part]: score for part, score in scores.items()})
    assert ours == pytest.approx(float(np.mean(means)), abs=1e-12)
    aggregations = [str(getattr(one, "value", one)) for one in mteb.get_benchmark(benchmark).aggregations]
    assert any("mean" in one.lower() and "task" in one.lower() for one in aggregations)


def test_candidates_of_coreb_are_the_only_documents_that_are_ranked(out: Path) -> None:
    """A reranking task of mteb as its loader hands it over: a list of candidates for each query."""
    card = catalog.find_task_card("coreb-c2t-candidates")
    configs = build_retrieval_configs(DOCUMENTS, QUERIES, TEST_JUDGMENTS)
    first, other = QUERIES[0][0], [DOCUMENTS[0][0], DOCUMENTS[3][0]]
    rows = [{"query-id": query, "corpus-ids": other} for query, _ in QUERIES]
    configs["top_ranked"] = ("test", rows)
    write_fetched_repository(str(card.source.repo), str(card.source.revision), configs)
    collection = open_collection(card)
    everything = {row.id for row in collection.corpus}
    assert collection.excluded[first] == everything - set(other)
    answer = run_command("run", "--model", "bm25", "--task", card.name, "--out", out, "--json")
    (cell,) = json.loads(answer.stdout)
    assert cell["main_score"] == cell["scores"]["map_at_10"]


def build_plain_layout(identifier: str) -> dict[str, Any]:
    """Texts without titles, and judgments as the default configuration."""
    judgments = [{"query-id": q, "corpus-id": d, "score": str(grade)} for q, d, grade in TEST_JUDGMENTS]
    return {
        "corpus": ("corpus", [{identifier: i, "text": x} for i, _, x in DOCUMENTS]),
        "queries": ("queries", [{identifier: i, "text": x} for i, x in QUERIES]),
        "default": ("test", judgments),
    }


def build_cure_layout() -> dict[str, Any]:
    """A split for each discipline; queries in three languages over one corpus."""
    layout = build_retrieval_configs(DOCUMENTS, QUERIES, TEST_JUDGMENTS)
    rows = {"corpus": layout["corpus"][1], "qrels": layout["default"][1]}
    return {
        name: ("dermatology", part)
        for name, part in {**rows, **{f"queries-{one}": layout["queries"][1] for one in ("en", "es", "fr")}}.items()
    }


def build_bright_long_layout() -> dict[str, Any]:
    graded = {q: [d for query, d, grade in TEST_JUDGMENTS if query == q and grade > 0] for q, _ in QUERIES}
    examples = [
        {"id": q, "query": x, "gold_ids_long": graded[q], "excluded_ids": ["N/A"]} for q, x in QUERIES if graded[q]
    ]
    return {
        "long_documents": ("pony", [{"id": i, "content": f"{title} {x}"} for i, title, x in DOCUMENTS]),
        "examples": ("pony", examples),
    }


LAYOUTS: dict[str, Callable[[], dict[str, Any]]] = {
    "nano-scifact-de": lambda: build_retrieval_configs(DOCUMENTS, QUERIES, TEST_JUDGMENTS, prefix="de-"),
    "browsecomp-plus-gold": lambda: build_retrieval_configs(DOCUMENTS, QUERIES, TEST_JUDGMENTS, prefix="gold_only-"),
    "humaneval": lambda: build_plain_layout("id"),
    "chatdoctor": lambda: build_plain_layout("_id"),
    "cure-dermatology-es": build_cure_layout,
    "bright-pony-long": build_bright_long_layout,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_of_these_suites_is_read(name: str) -> None:
    card = catalog.find_task_card(name)
    write_fetched_repository(str(card.source.repo), str(card.source.revision), LAYOUTS[name]())
    collection = open_collection(card)
    assert [row.id for row in collection.corpus] == [i for i, _, _ in DOCUMENTS]
    positive = {q: {d for query, d, grade in TEST_JUDGMENTS if query == q and grade > 0} for q, _ in QUERIES}
    found = {q: {d for d, grade in graded.items() if grade > 0} for q, graded in collection.judgments.items()}
    assert found == {q: documents for q, documents in positive.items() if documents}


# A suite whose tasks are at home in other suites


def write_runs(out: Path, models: tuple[str, ...] = ("a", "b")) -> None:
    """Finished runs of the four tasks of rteb-law and of one more."""
    scores = {"aila-casedocs": 0.5, "aila-statutes": 0.4, "legal-summarization": 0.3, "legalquad": 0.2, "apps": 0.1}
    for model in models:
        for task, score in scores.items():
            card = catalog.find_task_card(task)
            settings = {"split": card.split, "protocol": card.protocol}
            write_finished_run(out, model, task, [score, score / 2], suite=card.suite, settings=settings)


def test_report_of_a_suite_has_the_tasks_of_other_suites_and_its_own_average(out: Path) -> None:
    write_runs(out)
    (board,) = build_report(out, suites=("rteb-law",)).boards
    assert (board.suite, board.tasks) == (
        "rteb-law",
        ["aila-casedocs", "aila-statutes", "legal-summarization", "legalquad"],
    )
    assert board.compute_average(board.rows[0]) == pytest.approx(0.75 * (0.5 + 0.4 + 0.3 + 0.2) / 4)
    assert [one.suite for one in build_report(out).boards] == ["coir", "rteb"]
    cells = build_report(out, suites=("rteb-law", "rteb-code")).list_cells()
    assert {(cell["suite"], cell["task"]) for cell in cells if cell["task"]} >= {("rteb-code", "apps")}
    assert "legalquad" in run_command("report", out, "--suite", "rteb-law").output
    twice = build_report(out, suites=("rteb-law", "rteb-law")).boards
    assert [one.superseded_runs for one in twice] == [0]
    assert run_command("report", out, "--suite", "swe-bench").exit_code == 3
    assert run_command("report", out, "--suite", "retb").exit_code == 2


def test_tasks_with_their_own_split_share_the_leaderboard_of_their_suite(out: Path) -> None:
    """CURE has a split for each discipline, MIRACL its dev split; a split that the card does not have stays apart."""
    for task in ("cure-dermatology-en", "cure-genetics-en", "legalquad"):
        write_finished_run(
            out, "a", task, [0.5, 0.1], suite="rteb", settings={"split": catalog.find_task_card(task).split}
        )
    write_finished_run(out, "a", "legalquad", [0.5, 0.2], suite="rteb", settings={"split": "test/test"})
    first, second = build_report(out).boards
    assert first.tasks == ["legalquad", "cure-dermatology-en", "cure-genetics-en"]
    assert first.shared_settings["split"] == "dermatology, genetics, test"
    assert second.differing_rules == ("split",)


def test_a_model_with_each_tasks_lengths_is_one_row(out: Path) -> None:
    """A suite may have tasks with other lengths; `--set max_length` is a row of its own."""

    def write(task: str, limits: tuple[int, int], created: str) -> None:
        encoder = {"query_limit": limits[0], "document_limit": limits[1], "dtype": "float32", "weights": "w" * 20}
        folder = write_finished_run(
            out, "a", task, [0.5, 0.1], suite="rteb", max_length=2048, created=created,
            settings={"encoder": encoder, "retriever": "dense", "protocol": catalog.find_task_card(task).protocol},
        )  # fmt: skip
        record = json.loads((folder / "record.json").read_text())
        lengths = catalog.find_task_card(task).lengths
        record["cards"]["task"]["lengths"] = {"query": lengths.query, "document": lengths.document}
        (folder / "record.json").write_text(json.dumps(record))

    write("legalquad", (2048, 2048), "2026-01-01T00:00:00+00:00")
    write("apps", (512, 512), "2026-01-01T00:00:01+00:00")
    (board,) = build_report(out, suites=("rteb",)).boards
    assert [(row.label, sorted(row.runs)) for row in board.rows] == [("bm25", ["apps", "legalquad"])]
    write("apps", (64, 64), "2026-01-01T00:00:02+00:00")
    (board,) = build_report(out, suites=("rteb",)).boards
    labels = {row.label: sorted(row.runs) for row in board.rows}
    assert len(labels) == 2
    assert [runs for label, runs in labels.items() if "64/64 tokens" in label] == [["apps"]]
    assert [runs for label, runs in labels.items() if "each task's lengths" in label] == [["apps", "legalquad"]]
