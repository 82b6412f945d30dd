"""Print finished cells: a line per cell as soon as it is finished, then a table, the errors and the next commands."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from retbench.cli.command import choose_results_folder, print_error, print_status
from retbench.cli.terminal_table import Column, describe_hidden, print_table
from retbench.errors import RetbenchError
from retbench.records.cell import Cell, ExpectedScoreCheck
from retbench.records.extreme_score import explain_extreme_score

TABLE_METRICS = ("ndcg_at_10", "mrr_at_10", "recall_at_100")
MAX_UNKNOWN_SHARE = 0.05  # a larger share of unknown tokens is pointed out


def format_cell(cell: Cell) -> str:
    """Format one finished cell."""
    name = " · ".join((cell.model, cell.method, cell.task, *cell.variant, *cell.rerank))
    if cell.status != "done":
        return f"{name}: {cell.status}"
    text = f"{name}: {100 * (cell.main_score or 0):.2f}" + (" (already done, read from disk)" if cell.cached else "")
    return "\n  ".join([text, *map(_format_expected_score, cell.expected)])


def _format_expected_score(expected: ExpectedScoreCheck) -> str:
    verdict = "" if expected.is_met else f": differs by more than {100 * expected.tolerance:g}"
    scores = f"expected {100 * expected.score:.2f}, got {100 * expected.got:.2f}"
    return f"{expected.metric}: {scores}{verdict} ({expected.source})"


def describe_extreme_score(cell: Cell) -> str | None:
    """Say why a score of exactly 0 or 100 over many queries is probably an error; None for every other score."""
    explanation = explain_extreme_score(cell.main_score if cell.status == "done" else None, cell.queries or 0)
    return f"{cell.model} · {cell.method} · {cell.task}: {explanation}" if explanation else None


def describe_unknown_tokens(cell: Cell) -> str | None:
    """Say that the tokenizer does not know much of the text; None for a small share of unknown tokens."""
    share = cell.unknown_tokens
    if share is None or share < MAX_UNKNOWN_SHARE:
        return None
    return (
        f"{cell.model} · {cell.method} · {cell.task}: {share:.0%} of the tokens stand for text that the tokenizer does "
        "not know. Check that its files are complete and that the model was trained for this language (--dry-run)"
    )


def print_cells(cells: Sequence[Cell], results: Path) -> None:
    """Print a table of all finished cells, then remarks, errors, and what to do next."""
    done = [cell for cell in cells if cell.status == "done"]
    if done:
        _print_table(done)
    remarks = [describe(cell) for cell in done for describe in (describe_extreme_score, describe_unknown_tokens)]
    for remark in filter(None, remarks):
        print_status(f"note: {remark}")
    _print_problems([cell for cell in cells if cell.status != "done"], is_only=len(cells) == 1, has_done=bool(done))
    if done:
        print_status(_format_next_steps(done, results))


def _print_table(cells: Sequence[Cell]) -> None:
    metrics = [metric for metric in TABLE_METRICS if any(metric in cell.scores for cell in cells)]
    columns = [
        Column("model", [cell.model for cell in cells], kind="name"),
        Column("method", [format_method(cell) for cell in cells], kind="name"),
        Column("task", [cell.task for cell in cells], kind="name"),
        *(Column(metric, [_format_score(cell, metric) for cell in cells], room) for room, metric in enumerate(metrics)),
        Column("tokens/s", [f"{cell.tokens_per_second:,.0f}" if cell.tokens_per_second else "–" for cell in cells], 4),
        Column("seconds", [f"{cell.seconds or 0:.1f}" for cell in cells], 3),
        Column("settings-id", [cell.settings_id or "–" for cell in cells]),
    ]
    if hidden := print_table(columns):
        print_status(describe_hidden(hidden, "a wider terminal or --json has them"))


def format_method(cell: Cell) -> str:
    """The method, how its vectors were searched, and the rerankers."""
    variant = f" ({', '.join(cell.variant)})" if cell.variant else ""
    return " + ".join((cell.method + variant, *cell.rerank))


def _format_score(cell: Cell, metric: str) -> str:
    if metric not in cell.scores:
        return "–"
    is_doubted = cell.scores[metric] == cell.main_score and describe_extreme_score(cell) is not None
    return f"{100 * cell.scores[metric]:.2f}" + (" !" if is_doubted else "")


def _print_problems(cells: Sequence[Cell], is_only: bool, has_done: bool) -> None:
    """Print each error once, with the cells that have it; a skipped cell is no error where others are done.

    The name of the only cell of a command stands in the line above, which was printed when it failed.
    """
    cells_by_cause: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        cells_by_cause.setdefault((cell.error or "", cell.next_step or ""), []).append(cell)
    for (cause, step), same in cells_by_cause.items():
        names = [f"{cell.model}/{'+'.join((cell.method, *cell.rerank))}/{cell.task} {cell.status}" for cell in same]
        if not is_only:
            print_status("  " + "; ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""))
        label = "skipped" if has_done and same[0].status == "skipped" else "error"
        print_error(RetbenchError(cause, step), as_json=False, label=label)


def _format_next_steps(cells: Sequence[Cell], results: Path) -> str:
    """Say where the runs are, and give the commands to continue with: the board, and the last two runs of one task."""
    is_default = results == choose_results_folder()
    folder = "" if is_default else f" {shlex.quote(str(results))}"
    saved = cells[0].record if len(cells) == 1 else f"{len(cells)} runs in {results}"
    lines = [f"saved: {saved}", f"next:  retbench report{folder}"]
    last = cells[-1]
    other = next(
        (c for c in reversed(cells[:-1]) if (c.task, c.split, c.sample) == (last.task, last.split, last.sample)), None
    )
    if other:
        lines.append(f"       retbench compare {other.settings_id} {last.settings_id}{folder and ' --results'}{folder}")
    return "\n".join(lines)
