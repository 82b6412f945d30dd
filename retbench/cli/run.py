"""retbench run: evaluate models x methods x tasks. Finished cells are read from disk; the result is a table."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retbench.cli.command import (
    OUTPUT_OPTIONS,
    AsJson,
    ResultsOut,
    cli_command,
    is_quiet,
    parse_overrides,
    print_json,
    print_result,
    print_skipped,
    print_status,
)
from retbench.cli.complete_names import (
    complete_methods,
    complete_models,
    complete_prompts,
    complete_suites,
    complete_tasks,
)
from retbench.errors import UsageError

if TYPE_CHECKING:
    from retbench.pipelines.evaluation.request import EvaluationRequest
    from retbench.records.cell import Cell

Repeated = list[str] | None
HOW, SAMPLE = "How it runs", "A sample"


ModelOption = Annotated[
    list[str],
    typer.Option(
        help="A model card, a hub id, a folder or a GGUF file; may be repeated.",
        autocompletion=complete_models,
    ),
]
SuiteOption = Annotated[
    Repeated,
    typer.Option(
        help="A suite (retbench list suites); may be repeated.",
        autocompletion=complete_suites,
    ),
]
TaskOption = Annotated[
    Repeated,
    typer.Option(help="A task card or a BEIR folder; may be repeated.", autocompletion=complete_tasks),
]
MethodOption = Annotated[
    Repeated,
    typer.Option(
        help="An encoding method (retbench list methods); may be repeated.",
        autocompletion=complete_methods,
    ),
]
RerankOption = Annotated[
    Repeated,
    typer.Option(help="A reranker, NAME:key=value,... (docs/reranking.md); may be repeated."),
]
EngineOption = Annotated[
    str,
    typer.Option(
        help="The engine: transformers, sentence-transformers, vllm, endpoint:model=NAME.", rich_help_panel=HOW
    ),
]
WeightsOption = Annotated[
    str | None, typer.Option(help="The model's weights: a Hugging Face folder or a GGUF file.", rich_help_panel=HOW)
]
PromptsOption = Annotated[
    str | None,
    typer.Option(
        help="Also run with the prompts of a set: a name or a TOML file (docs/methods.md).",
        autocompletion=complete_prompts,
    ),
]
SampleOption = Annotated[
    int | None,
    typer.Option(
        help="Use only N test queries, with their documents and distractors.",
        rich_help_panel=SAMPLE,
    ),
]
MinutesOption = Annotated[
    float | None,
    typer.Option(
        help="Use the largest such sample whose run takes so many minutes here; the same command finds it again.",
        rich_help_panel=SAMPLE,
    ),
]
SetOption = Annotated[
    Repeated,
    typer.Option(
        "--set",
        help="KEY=VALUE: dtype, max_length, rope, split, depth, dimensions, vector_dtype, search, report_to; or lists.",
        rich_help_panel=HOW,
    ),
]
DevicesOption = Annotated[
    str,
    typer.Option(
        "--devices",
        "--on",
        help="Devices of this machine: N or all; or ray:store=ADDRESS (docs/cluster.md).",
        rich_help_panel=HOW,
    ),
]
DryRunOption = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Show the plan, the exact prompts and a cost estimate; run nothing.",
        rich_help_panel=OUTPUT_OPTIONS,
    ),
]


@cli_command
def run(
    *,
    model: ModelOption,
    suite: SuiteOption = None,
    task: TaskOption = None,
    method: MethodOption = None,
    prompts: PromptsOption = None,
    rerank: RerankOption = None,
    engine: EngineOption = "transformers",
    weights: WeightsOption = None,
    sample: SampleOption = None,
    minutes: MinutesOption = None,
    set_: SetOption = None,
    devices: DevicesOption = "1",
    out: ResultsOut,
    dry_run: DryRunOption = False,
    as_json: AsJson = False,
) -> int:
    """Evaluate models on tasks. Finished cells are read from disk and not run again."""
    from retbench.cli.progress import ProgressDisplay
    from retbench.pipelines.evaluation import evaluate
    from retbench.pipelines.evaluation.request import EvaluationRequest, format_command_line
    from retbench.pipelines.experiment_trackers import parse_tracker_names, require_trackers

    tasks = evaluate.expand_task_names(tuple(suite or ()), tuple(task or ()))
    if not tasks:
        raise UsageError("no task is given", "give --suite or --task (retbench list suites)")
    if weights and len(model) > 1:
        raise UsageError("--weights needs exactly one --model", "run the models one by one")
    callbacks: dict[str, Any] = {} if is_quiet() else {"progress": ProgressDisplay(), "log_status": print_status}
    overrides = parse_overrides(set_, "dtype=float32")
    trackers = parse_tracker_names(str(overrides.pop("report_to", "")))
    require_trackers(trackers)
    request = EvaluationRequest(
        tuple(model), tasks, tuple(method or ()), weights, sample, overrides, tuple(rerank or ()), out,
        command=format_command_line(), engine=engine, devices=devices, prompts=prompts, **callbacks,
    )  # fmt: skip
    if minutes is not None:
        from retbench.pipelines.evaluation.fit_sample import fit_sample

        request = fit_sample(request, minutes, dry_run)
    return _show_plan(request, as_json) if dry_run else _evaluate(request, trackers, as_json)


def _show_plan(request: "EvaluationRequest", as_json: bool) -> int:
    from retbench.pipelines.evaluation import dry_run

    cells = list(dry_run.dry_run(request))
    print_json(cells) if as_json else print_result(dry_run.format_plan(cells))
    return 0


def _evaluate(request: "EvaluationRequest", trackers: tuple[str, ...], as_json: bool) -> int:
    from retbench.cli.cells import print_cells
    from retbench.pipelines.evaluation import evaluate
    from retbench.pipelines.evaluation.track_cells import track_cells
    from retbench.pipelines.experiment_trackers import TrackerError
    from retbench.records.cell import compute_exit_code

    done: list[Cell] = []
    problems: list[TrackerError] = []
    try:
        _report_cells(track_cells(evaluate.evaluate(request), trackers, request.out), done)
    except TrackerError as problem:
        problems.append(problem)
    if as_json:
        print_json([cell.to_json() for cell in done])
    else:
        print_cells(done, request.out)
    return print_skipped(problems) or compute_exit_code(done)


def _report_cells(cells: "Iterator[Cell]", done: "list[Cell]") -> None:
    """Print a status line for each finished cell, and add it to `done`."""
    from retbench.cli.cells import format_cell

    for cell in cells:
        if not done or cell.error is None or cell.error != done[-1].error:  # print a repeated error once
            print_status(format_cell(cell))
        done.append(cell)
