"""retbench overlap: how much of a test collection stands in a training set."""

from typing import TYPE_CHECKING, Annotated

import typer

from retbench.cli.command import AsJson, cli_command, print_json, print_result, print_status
from retbench.cli.complete_names import complete_tasks

if TYPE_CHECKING:
    from retbench.pipelines.checks.measure_overlap import OverlapReport, RoleOverlap


@cli_command
def overlap(
    dataset: Annotated[str, typer.Argument(help="The training set: a task, a BEIR folder, a jsonl file, msmarco.")],
    task: Annotated[
        str, typer.Argument(help="The task card or BEIR folder to look for in it.", autocompletion=complete_tasks)
    ],
    split: Annotated[str, typer.Option(help="The split of the training set.")] = "train",
    words: Annotated[int, typer.Option(help="The length of the word sequences that are compared.")] = 8,
    documents: Annotated[int, typer.Option(min=1, help="The most documents of the task to look for.")] = 10_000,
    as_json: AsJson = False,
) -> None:
    """Measure contamination: which queries and documents of a task stand, word for word, in a training set."""
    from retbench.pipelines.checks.measure_overlap import OverlapRequest, measure_overlap

    report = measure_overlap(OverlapRequest(dataset, task, split, words, documents, print_status))
    print_json(report.to_json()) if as_json else print_result(_format_report(report))


def _format_report(report: "OverlapReport") -> str:
    lines = [f"{report.task} in {report.dataset} ({report.training_texts:,} texts), sequences of {report.words} words"]
    for role, overlap in (("queries", report.queries), ("documents", report.documents)):
        lines += [f"  {role}: {_format_counts(overlap)}", *(f"    {example}" for example in overlap.examples)]
    return "\n".join(lines)


def _format_counts(overlap: "RoleOverlap") -> str:
    def share(count: int) -> str:
        return f"{count:,} ({100 * count / max(1, overlap.texts):.1f}%)"

    return (
        f"{overlap.texts:,}; identical {share(overlap.identical)}, any sequence {share(overlap.any_sequence)}, "
        f"at least half of the sequences {share(overlap.most_sequences)}"
    )
