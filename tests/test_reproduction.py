"""The paper's figures beside ours: which cells stand beside which row, the verdict, `study show`, and its price."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from retbench.cards import catalog
from retbench.cards.study import CellSelection, Stage, Study
from retbench.cli.main import app
from retbench.cli.study_show import _drop_common_parts
from retbench.errors import DataError, UsageError
from retbench.pipelines.estimate_cost import DeviceSpec
from retbench.pipelines.studies import run as run_module
from retbench.pipelines.studies.cells import list_study_cells
from retbench.pipelines.studies.cost import CostEstimator
from retbench.pipelines.studies.dry_run import estimate_study
from retbench.pipelines.studies.overview import build_overview
from retbench.pipelines.studies.reproduction import build_reproduction_tables, check_selections
from retbench.pipelines.studies.status import build_stage_reports, list_statuses, write_note
from retbench.records.cell import Cell
from retbench.records.results_folder import RECORD_FILE, read_record
from retbench.reports.html_page import build_page
from retbench.reports.published_tables import PublishedTable, load_shipped_tables, read_table
from retbench.reports.reproduction import ReproducedFigure, ReproducedRow
from retbench.reports.study_tables import format_study_latex, format_study_markdown
from tests import small_collection
from tests.finished_runs import write_finished_run

PAPERS = ("specialized-llms", "llm-ql", "llm2ir", "search-adaptor", "e2rank", "insertrank")
TABLE = """
name = "mine"
title = "A table"
source = "a paper"
tasks = ["small"]
tolerance = 0.5
tolerance_reason = "Two runs of the authors differ by so much."
[rows]
"BM25" = [{near}]
"Far" = [{far}]
"Of others" = [12.0]
"""


def build_plan(folder: Path, **selections: CellSelection) -> Study:
    stages = (
        Stage("first", ("bm25",), tasks=(str(folder),)),
        Stage("ql", ("bm25",), tasks=(str(folder),), options={"rerank": ["ql"]}),
    )
    return Study("s", "s", stages, references=("mine",), reproduces={"mine": selections})


def read_scores(plan: Study, out: Path) -> list[float]:
    records = [read_record(out / str(status.record) / RECORD_FILE) for status in list_statuses(plan, out)]
    return [record.scores["ndcg_at_10"] for record in records]


def write_table(out: Path, **texts: Any) -> None:
    (out / "references").mkdir(parents=True, exist_ok=True)
    (out / "references" / "mine.toml").write_text(TABLE.format(**texts))


def test_a_figure_is_not_run_then_within_or_outside_the_tolerance(tmp_path: Path) -> None:
    folder, out = small_collection.write_folder(tmp_path / "small"), tmp_path / "r"
    plan = build_plan(folder, BM25=CellSelection("first"), Far=CellSelection("first", "bm25"))
    write_table(out, near=1.0, far=2.0)
    (table,) = build_reproduction_tables(plan, out)
    assert [row.format_verdict() for row in table.rows] == ["not run", "not run", "not in this plan"]
    list(run_module.run_study(plan, out))
    score = 100 * read_scores(plan, out)[0]
    write_table(out, near=score - 0.49, far=score - 0.51)
    (table,) = build_reproduction_tables(plan, out)
    assert [row.format_verdict() for row in table.rows] == [
        "within tolerance", "outside: small +0.51", "not in this plan",
    ]  # fmt: skip
    assert table.rows[0].figures[0].format_figures() == f"{score - 0.49:.2f} → {score:.2f}"
    text = format_study_markdown(plan, [], [table])
    assert "| row | our cells | small | reproduction |" in text
    assert f"| BM25 | first | {score - 0.49:.2f} → {score:.2f} | within tolerance |" in text
    assert "- Tolerance: 0.5 points. Two runs of the authors differ by so much." in text
    assert "\\begin{tabular}{llrl}" in format_study_latex(plan, [], [table])
    page = build_page([], [table])
    assert '<a href="#reproduction">' in page
    assert f'<td class="number">{score - 0.49:.2f} → {score:.2f}</td><td class="text up">within tolerance</td>' in page
    assert '<td class="text down">outside: small +0.51</td>' in page
    assert "Two runs of the authors differ by so much." in page


def test_the_report_command_has_the_reproduction_column(tmp_path: Path) -> None:
    folder, out = small_collection.write_folder(tmp_path / "small"), tmp_path / "r"
    write_table(out, near=1.0, far=2.0)
    file = tmp_path / "p.toml"
    file.write_text(
        f'name = "p"\ntitle = "p"\nreferences = ["mine"]\n[[stages]]\nname = "first"\nmodels = ["bm25"]\n'
        f'tasks = ["{folder}"]\n[reproduces.mine]\n"BM25" = {{ stage = "first" }}\n'
    )
    result = CliRunner().invoke(app, ["study", "report", str(file), "--results", str(out)])
    assert result.exit_code == 0, result.output
    assert "# The paper's figures and ours" in result.stdout
    assert "| BM25 | first | 1.00 | not run |" in result.stdout
    page = CliRunner().invoke(app, ["study", "report", str(file), "--results", str(out), "--format", "html"])
    assert '<td class="number">1.00</td><td class="text">not run</td>' in page.stdout
    shown = CliRunner().invoke(app, ["study", "show", str(file), "--out", str(out), "--json"])
    document = json.loads(shown.stdout)
    assert document["tables"][0]["rows"][0]["reproduction"] == "not run"
    assert (document["missing"], document["stages"][0]["cells"]) == ([], 1)


def test_a_published_gain_stands_beside_a_difference_of_two_stages(tmp_path: Path) -> None:
    folder, out = small_collection.write_folder(tmp_path / "small"), tmp_path / "r"
    plan = build_plan(folder, BM25=CellSelection("other", minus="first"))
    plan = replace(plan, stages=(plan.stages[0], replace(plan.stages[0], name="other", set={"split": "train"})))
    write_table(out, near=0.0, far=2.0)
    file = out / "references" / "mine.toml"
    file.write_text(file.read_text().replace("[rows]", 'measures = "gain"\n[rows]', 1))
    list(run_module.run_study(plan, out))
    first, other = read_scores(plan, out)
    assert first != other
    (table,) = build_reproduction_tables(plan, out)
    assert table.rows[0].figures[0].measured == pytest.approx(other - first)
    assert table.rows[0].cells == "other minus first"
    boards = [board for stage in build_stage_reports(plan, out) for board in stage.report.boards]
    assert [board.published_rows for board in boards] == [[], []]  # a gain is no score


def test_a_mean_over_the_tasks_of_two_stages_stands_beside_a_published_gain(tmp_path: Path) -> None:
    stages = [
        Stage(name, ("bm25",), tasks=(str(small_collection.write_folder(tmp_path / task)),), set={"split": split})
        for task in ("small", "other")
        for name, split in ((f"{task}-frozen", "test"), (f"{task}-adapted", "train"))
    ]
    selection = CellSelection(
        "small-adapted", "bm25", minus="small-frozen", also=CellSelection("other-adapted", minus="other-frozen")
    )
    plan = Study("s", "s", tuple(stages), references=("mine",), reproduces={"mine": {"BM25": selection}})
    out = tmp_path / "r"
    write_table(out, near="1.0, 2.0", far="1.0, 2.0")
    file = out / "references" / "mine.toml"
    text = file.read_text().replace('["small"]', '["small", "other"]').replace("[12.0]", "[1.0, 2.0]")
    file.write_text(text.replace("[rows]", 'measures = "gain"\n[rows]', 1))
    list(run_module.run_study(plan, out))
    small_frozen, small_adapted, other_frozen, other_adapted = read_scores(plan, out)
    (table,) = build_reproduction_tables(plan, out)
    assert [figure.measured for figure in table.rows[0].figures] == [
        pytest.approx(small_adapted - small_frozen),
        pytest.approx(other_adapted - other_frozen),
    ]
    assert table.rows[0].cells == "small-adapted · bm25 minus small-frozen, other-adapted minus other-frozen"
    with pytest.raises(UsageError, match="no stage 'gone'"):
        check_selections(
            replace(plan, reproduces={"mine": {"BM25": replace(selection, also=CellSelection("gone"))}}), out
        )


def test_the_stages_of_search_adaptor_have_the_fourteen_collections_of_its_mean_gain() -> None:
    study = catalog.find_study("search-adaptor")
    tasks = {stage.name: set(stage.tasks) for stage in study.stages}
    fourteen = set(catalog.load_suites().find("search-adaptor-beir").tasks)
    for selection in study.reproduces["search-adaptor-gains-beir"].values():
        adapted, half = selection.list_parts()
        assert tasks[adapted.stage] | tasks[half.stage] == fourteen
        assert (tasks[str(adapted.minus)], tasks[str(half.minus)]) == (tasks[adapted.stage], tasks[half.stage])


def test_a_sample_is_not_a_reproduction(tmp_path: Path) -> None:
    folder, out = small_collection.write_folder(tmp_path / "small"), tmp_path / "r"
    stage = Stage("first", ("bm25",), tasks=(str(folder),), sample=2)
    plan = Study("s", "s", (stage,), references=("mine",), reproduces={"mine": {"BM25": CellSelection("first")}})
    write_table(out, near=1.0, far=2.0)
    list(run_module.run_study(plan, out))
    (table,) = build_reproduction_tables(plan, out)
    assert table.rows[0].format_verdict() == "not run"


def test_a_row_with_several_systems_asks_for_the_model(tmp_path: Path) -> None:
    folder = small_collection.write_folder(tmp_path / "small")
    stage = Stage("first", ("bm25", "bm25-lucene"), tasks=(str(folder),))
    plan = Study("s", "s", (stage,), references=("mine",), reproduces={"mine": {"BM25": CellSelection("first")}})
    write_table(tmp_path, near=1.0, far=2.0)
    with pytest.raises(DataError, match="selects several cells of the stage first: bm25 · bm25 and bm25-lucene"):
        build_reproduction_tables(plan, tmp_path)


@pytest.mark.parametrize(
    ("selection", "message"),
    [(CellSelection("nope"), "no stage 'nope'"), (CellSelection("first", minus="no"), "no stage 'no'"),
     (CellSelection("first", "minilm-l6"), "has no model 'minilm-l6'")],
)  # fmt: skip
def test_a_selection_of_nothing_is_an_error(tmp_path: Path, selection: CellSelection, message: str) -> None:
    write_table(tmp_path, near=1.0, far=2.0)
    with pytest.raises(UsageError, match=message):
        check_selections(build_plan(tmp_path, BM25=selection), tmp_path)
    with pytest.raises(UsageError, match="no such row"):
        check_selections(build_plan(tmp_path, Nobody=CellSelection("first")), tmp_path)


def test_a_row_names_the_columns_that_differ() -> None:
    figures = [ReproducedFigure(name, 0.5, measured, 0.01) for name, measured in
               {"a": 0.5, "b": 0.52, "c": None, "d": 0.49, "e": 0.49}.items()]  # fmt: skip
    row = ReproducedRow("m", "stage", tuple(figures))
    assert row.format_verdict() == "outside: b +2.00; within tolerance: a, d, e; not run: c"


def test_a_tolerance_has_a_reason(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text('name = "t"\ntitle = "t"\nsource = "s"\ntasks = []\ntolerance = 1.0\n')
    with pytest.raises(DataError, match="tolerance and tolerance_reason need each other"):
        read_table(tmp_path / "t.toml")
    table = PublishedTable("t", "t", "s", ("a", "b"), tolerance=1.0, tolerance_reason="r", tolerances={"b": 3.0})
    assert (table.get_tolerance("a"), table.get_tolerance("b"), table.get_tolerance(None)) == (0.01, 0.03, 0.01)


@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_says_which_cells_stand_beside_its_figures(name: str, tmp_path: Path) -> None:
    study, tables = catalog.find_study(name), {table.name: table for table in load_shipped_tables()}
    check_selections(study, tmp_path)
    assert study.reproduces, "no figure of the paper has cells"
    assert [table for table in study.reproduces if tables[table].tolerance is None] == []
    cells = {(cell.stage, cell.model, cell.task) for stage in study.stages for cell in list_study_cells(study, stage)}
    for table in build_reproduction_tables(study, tmp_path):
        for row, selection in study.reproduces.get(table.table.name, {}).items():
            figures = next(found.figures for found in table.rows if found.name == row)
            tasks = {task for stage, _, task in cells if stage == selection.stage}
            assert figures, row
            covered = [figure.column for figure in figures if figure.column in tasks or figure.column == "average"]
            groups = {group for suite in catalog.load_suites() for group in suite.groups or {}}
            assert covered or any(figure.column in groups for figure in figures), f"{name}: {row} has no task of ours"


def test_show_of_every_study_needs_no_torch() -> None:
    program = f"""
import sys
from pathlib import Path
from retbench.cards import catalog
from retbench.cli.main import app
from retbench.pipelines.estimate_cost import DeviceSpec
from retbench.pipelines.studies.cost import CostEstimator
from retbench.pipelines.studies.overview import build_overview
for name in {PAPERS}:
    overview = build_overview(catalog.find_study(name), Path("nowhere"), CostEstimator(DeviceSpec(peak=1e15)))
    assert len(overview.stages) == len(catalog.find_study(name).stages)
    assert any(item.kind == "weights" for item in overview.missing), name
    assert any(item.kind == "collection" for item in overview.missing), name
sys.exit(int("torch" in sys.modules or "datasets" in sys.modules))
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")


def test_show_prints_figures_what_is_missing_and_the_price() -> None:
    result = CliRunner().invoke(app, ["study", "show", "specialized-llms", "--devices", "8", "--price", "2"])
    assert result.exit_code == 0, result.output
    assert "fine-tuned · qwen2.5-7b" in result.stdout
    assert "weights: " in result.stdout
    assert "next: retbench fetch specialized-llms" in result.stdout
    assert "8 devices at 40% of 788 TFLOP/s" in result.stdout


def test_the_dry_run_of_every_paper_estimates_without_weights(tmp_path: Path) -> None:
    for name in PAPERS:
        study = catalog.find_study(name)
        rows = list(estimate_study(study, tmp_path, CostEstimator(DeviceSpec(peak=1e14))))
        cells = [row for row in rows if "training" not in row]
        expected = [cell for stage in study.stages for cell in list_study_cells(study, stage)]
        assert [(row["stage"], row["model"], row["task"]) for row in cells] == [
            (cell.stage, cell.model, cell.task) for cell in expected
        ]
        assert {row["status"] for row in rows} <= {"open", "not here", "skipped", "done"}
        assert any(row.get("tokens") for row in rows), name


def test_the_price_of_a_training_is_that_of_its_formula(tmp_path: Path) -> None:
    study = catalog.find_study("specialized-llms")
    stage = next(stage for stage in study.stages if stage.name == "fine-tuned")
    cell = next(cell for cell in list_study_cells(study, stage) if cell.model == "qwen2.5-7b")
    work = CostEstimator(DeviceSpec(count=2, peak=1e15, utilization=0.5), 100.0).estimate_training(stage, cell)
    tokens = 491_000 * (16 + 16 * 100)  # one positive and fifteen negatives; a query of 16 tokens
    flop = 2 * (7_615_616_512 - 152_064 * 3584) + 2 * 28 * 3584 * 256
    passes = 1 + 1 + 1 + 1  # forward, backward without weight gradients, checkpointing, gradient caching
    assert work.tokens == tokens
    assert work.seconds == pytest.approx(tokens * passes * flop / 0.5e15 / 2)
    assert work.memory_bytes == 7_615_616_512 * 2


def test_a_cross_encoder_reads_pairs_in_a_stage_and_before_a_training(tmp_path: Path) -> None:
    judge = "cross:model=ms-marco-minilm-l6-v2,depth=20"
    reranked = Stage("a", ("bm25",), tasks=("scifact",), options={"rerank": [judge]})
    trained = Stage(
        "b", ("minilm-l6",), "finetune", tasks=("scifact",), options={
            "dataset": "msmarco", "recipe": "filtered-negatives", "set": ["optimizer.max_steps=1"],
        },
    )  # fmt: skip
    unfiltered = {**trained.options, "set": [*trained.options["set"], "mining.cross_encoder=none"]}
    unfiltered["set"].append("mining.max_score_ratio=none")
    study = Study("s", "s", (reranked, trained, replace(trained, name="c", options=unfiltered)))
    overview = build_overview(study, tmp_path, CostEstimator(DeviceSpec(peak=1e15, utilization=0.5), 100.0))
    first, second, third = (row.work for row in overview.stages)
    assert first.tokens == 300 * 20 * (100 + 16)
    assert first.seconds == pytest.approx(first.tokens * 2 * 22_713_601 / 0.5e15)
    assert second.tokens - third.tokens == pytest.approx(491_000 * 51 * (100 + 16), rel=0.01)


def test_a_reranker_that_the_study_trains_has_the_price_of_its_parent(tmp_path: Path) -> None:
    study = catalog.find_study("llm-ql")
    stages = tuple(stage for stage in study.stages if stage.name in ("full", "rank-by-llm-ql"))
    overview = build_overview(
        replace(study, stages=stages, reproduces={}), tmp_path, CostEstimator(DeviceSpec(peak=1e15))
    )
    assert (overview.stages[1].work.seconds or 0) > 0


def test_candidate_lists_without_a_corpus_are_embedded_too(tmp_path: Path) -> None:
    rerank = {"rerank": ["vectors:model=minilm-l6,depth=20"]}
    stage = Stage("a", ("candidate-list",), tasks=("trec-dl-2019-candidates",), options=rerank)
    (row,) = build_overview(Study("s", "s", (stage,)), tmp_path, CostEstimator(DeviceSpec(peak=1e12), 100.0)).stages
    assert row.work.tokens == 43 * (20 * 100 + 16)


def test_a_collection_of_unknown_size_is_counted_as_unknown(tmp_path: Path) -> None:
    """Its price was 0, without a word."""
    stage = Stage("a", ("minilm-l6",), tasks=("loco-qmsum", "scifact"))
    study = Study("s", "s", (stage, replace(stage, name="b", tasks=("loco-qmsum",))))
    first, second = build_overview(study, tmp_path, CostEstimator(DeviceSpec(peak=1e12), 100.0)).stages
    assert (first.work.tokens, first.unknown) == (5183 * 100 + 300 * 16, 1)
    assert first.work.seconds
    assert (second.work.seconds, second.unknown) == (None, 1)


def test_vectors_of_an_earlier_stage_cost_nothing_again(tmp_path: Path) -> None:
    stage = Stage("a", ("minilm-l6",), tasks=("scifact",))
    study = Study("s", "s", (stage, replace(stage, name="b"), replace(stage, name="c", set={"max_length": 64})))
    overview = build_overview(study, tmp_path, CostEstimator(DeviceSpec(peak=1e12), 100.0))
    assert [item.work.tokens for item in overview.stages] == [
        5183 * 100 + 300 * 16, 0.0, 5183 * 64 + 300 * 16,
    ]  # fmt: skip


def test_an_interrupted_reranking_is_not_noted_as_done(tmp_path: Path) -> None:
    folder, out = small_collection.write_folder(tmp_path / "small"), tmp_path / "r"
    plan = build_plan(folder)
    results = run_module.run_study(plan, out, "ql")
    assert next(results).rerank == ()  # the first stage is finished, its reranking is not
    results.close()
    assert list_statuses(plan, out)[1].status == "open"
    list(run_module.run_study(plan, out, "ql"))
    assert list_statuses(plan, out)[1].status == "done"


def test_a_plan_file_beside_the_user_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text('name = "mine"\n')
    with pytest.raises(UsageError, match="no study called 'mine'") as error:
        catalog.find_study("mine")
    assert "mine.toml" in error.value.next_step


def test_column_names_are_shown_without_their_common_words() -> None:
    assert _drop_common_parts(["bright-pony", "bright-theoremqa-questions"]) == ["pony", "theoremqa-questions"]
    assert _drop_common_parts(["fever-study", "nq-study"]) == ["fever", "nq"]
    assert _drop_common_parts(["trec-dl-2019", "scifact"]) == ["trec-dl-2019", "scifact"]
    assert _drop_common_parts(["average"]) == ["average"]


def test_weights_that_are_missing_have_the_size_of_a_card_with_the_same_shape(tmp_path: Path) -> None:
    study = Study("s", "s", (Stage("a", ("e2rank-4b",), tasks=("scifact",)),))
    missing = build_overview(study, tmp_path, CostEstimator(DeviceSpec(peak=1e12))).missing
    assert {item.name: item.detail for item in missing if item.kind == "weights"} == {"e2rank-4b": "about 8.0 GB"}


def test_a_served_model_has_tokens_a_price_and_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("retbench.toml").write_text('[rates."big"]\nread = 2.0\nwritten = 10.0\n')
    options = {"rerank": ["listwise:engine=endpoint,model=big,depth=20,cut=50"]}
    stage = Stage("a", ("bm25",), tasks=("scifact",), options=options, optional=True)
    study = Study("s", "s", (stage,))
    (row,) = build_overview(study, tmp_path, CostEstimator(DeviceSpec(peak=1e12), 100.0)).stages
    tokens, written = 300 * (20 * 50 + 16), 300 * 20 * 6
    assert (row.work.tokens, row.work.served_tokens, row.work.written_tokens) == (tokens, tokens, written)
    assert row.work.served_price == pytest.approx((2 * tokens + 10 * written) / 1e6)
    assert row.work.seconds == 0
    missing = build_overview(study, tmp_path, CostEstimator(DeviceSpec(peak=1e12))).missing
    assert {item.name for item in missing if item.kind == "endpoint"} == {"RETBENCH_ENDPOINT", "RETBENCH_ENDPOINT_KEY"}
    assert [item for item in missing if item.kind == "weights"] == []


@pytest.mark.parametrize(
    ("instructed", "reasoning"),
    [
        ("qwen2.5-7b-instruct", "deepseek-r1-distill-qwen-7b"),
        ("gpt-4o,engine=endpoint", "deepseek-reasoner,engine=endpoint"),
        ("gemini-2.0-flash,engine=endpoint", "deepseek-ai/DeepSeek-R1,engine=endpoint"),
    ],
)
def test_a_reasoning_model_writes_its_thoughts(tmp_path: Path, instructed: str, reasoning: str) -> None:
    works = []
    for model in (instructed, reasoning):
        stage = Stage("a", ("bm25",), tasks=("scifact",), options={"rerank": [f"listwise:model={model},depth=20"]})
        (row,) = build_overview(Study("s", "s", (stage,)), tmp_path, CostEstimator(DeviceSpec(peak=1e12))).stages
        works.append(row.work)
    assert works[1].written_tokens - works[0].written_tokens == pytest.approx(300 * 2000)


def test_long_documents_are_assumed_long_until_they_are_here() -> None:
    estimator = CostEstimator(DeviceSpec(peak=1e12))
    stage = Stage("a", ("qwen2.5-7b",), tasks=("longembed-qmsum", "scifact"), set={"max_length": 4096})
    sizes = {
        cell.task: estimator.measure_corpus(stage, cell) for cell in list_study_cells(Study("s", "s", (stage,)), stage)
    }
    assert (sizes["longembed-qmsum"].documents, sizes["longembed-qmsum"].tokens) == (197, 4096)
    assert (sizes["scifact"].documents, sizes["scifact"].tokens) == (5183, 150)


def test_a_published_mean_stands_beside_the_mean_of_the_whole_suite(tmp_path: Path) -> None:
    study = catalog.find_study("insertrank")
    stage = next(stage for stage in study.stages if stage.name == "reasoning-raw")
    plan = replace(study, stages=(stage,), references=("insertrank-r2med",), reproduces={})
    plan = replace(plan, reproduces={"insertrank-r2med": {"InsertRank, DeepSeek-R1": CellSelection("reasoning-raw")}})
    cells = [cell for cell in list_study_cells(plan, stage) if cell.task.startswith("r2med-")]
    assert len(cells) == 8
    for number, cell in enumerate(cells):
        folder = write_finished_run(tmp_path, cell.model, cell.task, [number / 10, number / 10], suite="r2med")
        result = Cell(cell.model, cell.method, cell.task, "r2med", "test", "done", record=str(folder))
        write_note(cell, result, tmp_path)
    (table,) = build_reproduction_tables(plan, tmp_path)
    (figure,) = table.rows[0].figures
    assert (figure.column, figure.published) == ("average", 0.511)
    assert figure.measured == pytest.approx(0.35)  # the mean of 0.0 to 0.7
    assert table.rows[0].format_verdict() == "outside: average -16.10"
    cells[0].get_note_path(tmp_path).unlink()
    (table,) = build_reproduction_tables(plan, tmp_path)
    assert table.rows[0].format_verdict() == "not run"
