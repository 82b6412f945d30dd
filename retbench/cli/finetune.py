"""retbench finetune: train a model by a recipe; `run` then finds it by name."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from retbench.cli.command import (
    OUTPUT_OPTIONS,
    AsJson,
    cli_command,
    is_quiet,
    parse_assignments,
    print_json,
    print_result,
    print_status,
)
from retbench.cli.complete_names import complete_models, complete_recipes, complete_tasks
from retbench.errors import InapplicableError, UsageError

TRAINING = "How it trains"


DatasetArgument = Annotated[
    str,
    typer.Argument(
        help="A task with a train split, a BEIR folder, a jsonl file, or msmarco.", autocompletion=complete_tasks
    ),
]
ModelOption = Annotated[
    str, typer.Option(help="The model to train: a card, a hub id or a folder.", autocompletion=complete_models)
]
RecipeOption = Annotated[
    str | None,
    typer.Option(help="A recipe's name or TOML file (retbench list recipes).", autocompletion=complete_recipes),
]
ObjectiveOption = Annotated[
    str | None, typer.Option(help="Without a recipe: contrastive, llm2ir, llm-ql, e2rank, adaptor.")
]
NameOption = Annotated[str | None, typer.Option(help="The name of the new model.")]
OutOption = Annotated[
    Path | None,
    typer.Option(help="The folder of the new model; by default one in the cache.", rich_help_panel=OUTPUT_OPTIONS),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Continue an interrupted training.", rich_help_panel=TRAINING)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="KEY=VALUE of the recipe, such as optimizer.learning_rate=1e-4; split; report_to.",
        rich_help_panel=TRAINING,
    ),
]
EvalTaskOption = Annotated[
    str | None,
    typer.Option(
        help="Evaluate on this task during training; keep the best checkpoint. TASK or TASK:split=dev,sample=100.",
        autocompletion=complete_tasks,
        rich_help_panel=TRAINING,
    ),
]
ExportOption = Annotated[
    str | None,
    typer.Option(help="Also write another format: sentence-transformers.", rich_help_panel=OUTPUT_OPTIONS),
]
ForceOption = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Train even on a split that is evaluated; the model card notes it.",
        rich_help_panel=TRAINING,
    ),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Show the plan after a short measurement.", rich_help_panel=OUTPUT_OPTIONS)
]


@cli_command
def finetune(
    *,
    dataset: DatasetArgument,
    model: ModelOption,
    recipe: RecipeOption = None,
    objective: ObjectiveOption = None,
    name: NameOption = None,
    out: OutOption = None,
    resume: ResumeOption = False,
    set_: SetOption = None,
    eval_task: EvalTaskOption = None,
    export: ExportOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    as_json: AsJson = False,
) -> None:
    """Train a model by a recipe; use the result by its name, as any other model."""
    from retbench.cli.progress import ProgressDisplay, TrainingDisplay
    from retbench.pipelines.evaluation.request import format_command_line
    from retbench.pipelines.experiment_trackers import parse_tracker_names
    from retbench.pipelines.finetuning import choose_recipe, next_command
    from retbench.training import hub_datasets
    from retbench.training.training_data import TrainingRequest

    if export not in (None, "sentence-transformers"):
        raise UsageError(f"there is no export {export!r}", "known: sentence-transformers")
    changes = parse_assignments(set_, "optimizer.learning_rate=1e-4")
    split, trackers = changes.pop("split", "train"), parse_tracker_names(changes.pop("report_to", ""))
    encoder_options = {"--dry-run": dry_run, "--export": export, "--eval-task": eval_task, "--set report_to": trackers}
    choose_recipe.check_objective(objective, encoder_options)
    output: dict[str, Any] = {}
    if not is_quiet():
        output = {"progress": ProgressDisplay(), "log_status": print_status, "log_metrics": TrainingDisplay()}
    request = TrainingRequest(dataset, model, name, out, split, eval_task, export, trackers, resume, force,
                              command=format_command_line(), **output)  # fmt: skip
    if dataset in hub_datasets.HUB_SETS:
        hub_datasets.require_hub_set(dataset)  # before torch is imported, which takes longer
    if objective == choose_recipe.ADAPTOR:
        facts = _finetune_adaptor(request, recipe, changes)
    else:
        facts = _finetune_encoder(request, recipe, objective, changes, dry_run)
    if facts and not dry_run:
        facts["next"] = next_command.format_evaluation_command(facts["model"], dataset, split)
    if facts:
        _print_facts(facts, as_json)


def _finetune_encoder(
    request: Any, recipe_name: str | None, objective: str | None, changes: dict[str, str], dry_run: bool
) -> dict[str, Any]:
    """The facts to print; none in all processes of torchrun but the first."""
    from retbench.pipelines.finetuning import choose_recipe
    from retbench.training.training_data import require_split

    recipe = choose_recipe.choose_encoder_recipe(recipe_name, objective, changes)
    if not (recipe.crops or request.resume):  # crops need no labels
        require_split(request)  # before torch is imported, which takes longer

    from retbench.pipelines.finetuning import dry_run as dry_run_module
    from retbench.pipelines.finetuning import train_encoder

    is_first_process = os.environ.get("RANK", "0") == "0"
    try:
        if dry_run:
            return dry_run_module.estimate_plan(request, recipe) if is_first_process else {}
        card = train_encoder.finetune_encoder(request, recipe)
    except InapplicableError as problem:  # its next step has options of `run`; here the recipe holds the method
        step = "give another recipe, such as --recipe quick (retbench list recipes), or --set method.KEY=VALUE"
        raise UsageError(f"recipe {recipe.name}: {problem.cause}", step) from problem
    return train_encoder.summarize_training(card) if is_first_process else {}


def _finetune_adaptor(request: Any, file: str | None, changes: dict[str, str]) -> dict[str, Any]:
    from retbench.pipelines.finetuning import choose_recipe
    from retbench.training.training_data import require_split

    recipe = choose_recipe.choose_adaptor_recipe(file, changes)
    if not request.resume:
        require_split(request)  # before torch is imported, which takes longer

    from retbench.pipelines.finetuning import train_adaptor

    return train_adaptor.summarize_adaptor(train_adaptor.finetune_adaptor(request, recipe))


def _print_facts(facts: dict[str, Any], as_json: bool) -> None:
    print_json(facts) if as_json else print_result("\n".join(f"{key}: {value}" for key, value in facts.items()))
