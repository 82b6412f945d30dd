"""retbench push: uploads a trained model and its scores to the hub."""

from typing import Annotated

import typer

from retbench.cli.command import AsJson, RunsFolder, cli_command, print_json, print_result


@cli_command
def push(
    model: Annotated[str, typer.Argument(help="A model that `retbench finetune` made: its name or folder.")],
    repo: Annotated[str, typer.Argument(help="The repository on the hub, OWNER/NAME; it is created if it is missing.")],
    results: RunsFolder,
    private: Annotated[bool, typer.Option("--private", help="Create a private repository.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the files and the model card; send none.")] = False,
    as_json: AsJson = False,
) -> None:
    """Upload a trained model to the Hugging Face hub, with a model card and the scores of its complete runs."""
    from retbench.pipelines.push import MODEL_PAGE, plan_push, push_model

    plan = plan_push(model, repo, results)
    address = None if dry_run else push_model(plan, private)
    files = [*plan.files, *plan.texts]
    if as_json:
        print_json({"repo": repo, "address": address, "files": files, "scores": len(plan.scores)})
    elif dry_run:
        print_result("\n".join([*files, "", plan.texts[MODEL_PAGE]]))
    else:
        print_result(f"{len(files)} files and {len(plan.scores)} scores: {address}")
