"""retbench finetune: a recipe, a model and data become a model that `run` knows by name."""

import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from retbench.cli.command import (
    AsJson,
    cli_command,
    is_quiet,
    parse_assignments,
    print_json,
    print_result,
    print_status,
)
from retbench.errors import UsageError

RECIPES = {"contrastive": "repllama", "llm2ir": "llm2ir", "llm-ql": "llm-ql", "e2rank": "e2rank"}


@cli_command
def finetune(
    *,
    dataset: Annotated[str, typer.Argument(help="A task with a train split, a BEIR folder, a jsonl file, or msmarco.")],
    model: Annotated[str, typer.Option(help="The model to train: a card, a hub id or a folder.")],
    recipe: Annotated[str | None, typer.Option(help="A recipe's name or TOML file (retbench list recipes).")] = None,
    objective: Annotated[
        str | None, typer.Option(help="Without a recipe: contrastive, llm2ir, llm-ql, e2rank, adaptor.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the new model is called.")] = None,
    out: Annotated[Path | None, typer.Option(help="Its folder; by default one in the cache.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on after an interruption.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE of the recipe, such as optimiser.rate=1e-4; split; report_to."),
    ] = None,
    eval_task: Annotated[
        str | None, typer.Option(help="Scored on the way, the best is kept: TASK or TASK:split=dev,sample=100.")
    ] = None,
    export: Annotated[str | None, typer.Option(help="Also write another format: sentence-transformers.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Train even on an evaluated split; the card says so.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan after a short measurement.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a model by a recipe; the result is a model like any other."""
    from retbench.cards import catalog
    from retbench.cards.recipe import apply_recipe_options
    from retbench.cli.progress import ProgressDisplay
    from retbench.pipelines.evaluation.request import format_command_line
    from retbench.pipelines.finetuning import train_encoder as story
    from retbench.training.training_data import TrainingRequest

    if objective is not None and objective not in (*RECIPES, "adaptor"):
        raise UsageError(f"there is no objective {objective!r}", f"known: {', '.join(RECIPES)}, adaptor")
    if export not in (None, "sentence-transformers"):
        raise UsageError(f"there is no export {export!r}", "known: sentence-transformers")
    wanted = parse_assignments(set_, "optimiser.rate=1e-4")
    split, trackers = wanted.pop("split", "train"), tuple(filter(None, wanted.pop("report_to", "").split("+")))
    show: dict[str, Any] = {} if is_quiet() else {"show": ProgressDisplay(), "say": print_status, "report": Line()}
    if objective == "adaptor":
        told = {"--dry-run": dry_run, "--export": export, "--eval-task": eval_task, "--set report_to": trackers}
        if lost := next((name for name, given in told.items() if given), None):
            raise UsageError(f"an adaptor takes no {lost}", "leave it out: it trains for minutes, and validates itself")
        unused = catalog.find_recipe(RECIPES["contrastive"])  # it is a backbone's; an adaptor's stands beside it
        plain = TrainingRequest(
            dataset, model, unused, name, out, split, resume=resume, force=force, command=format_command_line(), **show
        )
        _say(_adapted(plain, recipe, wanted), as_json)
        return
    chosen = apply_recipe_options(catalog.find_recipe(recipe or RECIPES[objective or "contrastive"]), wanted)
    if objective and chosen.objective != objective:
        raise UsageError(
            f"recipe {chosen.name} has objective {chosen.objective}, not {objective}", "name one of the two"
        )
    wish = TrainingRequest(dataset, model, chosen, name, out, split, eval_task, export, trackers, resume, force,
                command=format_command_line(), **show)  # fmt: skip
    silent = os.environ.get("RANK", "0") != "0"  # one of torchrun's processes talks for all
    if dry_run and silent:
        return
    facts = story.estimate_training_plan(wish) if dry_run else story.summarize_training(story.finetune(wish))
    if not silent:
        _say(facts, as_json)


def _say(facts: dict[str, Any], as_json: bool) -> None:
    print_json(facts) if as_json else print_result("\n".join(f"{key}: {value}" for key, value in facts.items()))


def _adapted(wish: Any, file: str | None, wanted: dict[str, str]) -> dict[str, Any]:
    """The objective that trains no backbone: its recipe is its own."""
    from retbench.cards import options, toml_parser
    from retbench.cards.adaptor_recipe import AdaptorRecipe
    from retbench.pipelines.finetuning import train_adaptor

    if file and not Path(file).is_file():
        raise UsageError(f"there is no adaptor's recipe at {file}", "name a TOML file, or leave --recipe out")
    written = toml_parser.load_card(AdaptorRecipe, Path(file)) if file else AdaptorRecipe()
    return train_adaptor.train_adaptor(wish, options.apply_options(written, wanted))


class Line:
    """One line that lives: loss, speed, memory, time left; in a log, one every fifteen seconds."""

    def __init__(self) -> None:
        self.told = 0.0

    def __call__(self, facts: dict[str, Any]) -> None:
        """Show the newest facts."""
        if "score" in facts:
            print_status(f"  step {facts['step']:,}: score {100 * facts['score']:.2f}")
            return
        text = (
            f"  step {facts['step']:,} of {facts['steps']:,}  loss {facts['loss']:.4f}  "
            f"{facts['tokens_per_second']:,.0f} tokens/s  {facts['memory_mb']:,.0f} MB  "
            f"{facts['seconds_left'] / 60:.1f} min left"
        )
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{text}\x1b[K" + ("\n" if facts["step"] == facts["steps"] else ""))
            sys.stderr.flush()
        elif time.monotonic() - self.told > 15 or facts["step"] == facts["steps"]:
            self.told = time.monotonic()
            print_status(text)
