"""A study's report: its questions, the paper's figures beside ours, the leaderboards per stage, what is missing."""

from retbench.cards.study import Study
from retbench.reports.formats import escape_latex, escape_markdown, format_latex, format_markdown
from retbench.reports.leaderboard import Leaderboard
from retbench.reports.ranks import ALPHA
from retbench.reports.reproduction import (
    ReproductionTable,
    format_reproduction_latex,
    format_reproduction_markdown,
)
from retbench.reports.specialisation_deltas import SpecialisationDelta, compute_deltas

StageTables = list[tuple[str, list[Leaderboard], tuple[str, ...]]]  # title, leaderboards, missing cells with reasons


def format_study_markdown(study: Study, stages: StageTables, reproductions: list[ReproductionTable]) -> str:
    """The study as markdown."""
    parts = [f"# {escape_markdown(study.title)}", *([escape_markdown(study.paper)] if study.paper else [])]
    parts += ["\n".join(f"{n}. {escape_markdown(question)}" for n, question in enumerate(study.questions, start=1))]
    parts += ["# The paper's figures and ours", format_reproduction_markdown(reproductions)] if reproductions else []
    for title, boards, missing in stages:
        parts.append(f"# {escape_markdown(title)}")
        parts += [format_markdown(boards)] if boards else [] if missing else ["No finished run yet."]
        parts += [f"{escape_markdown(text)}." for text in missing]
        parts += [table for board in boards if (table := _format_markdown_deltas(board))]
    if study.departures:
        parts += ["# Differences from the paper", "\n".join(f"- {escape_markdown(text)}" for text in study.departures)]
    return "\n\n".join(filter(None, parts)) + "\n"


def format_study_latex(study: Study, stages: StageTables, reproductions: list[ReproductionTable]) -> str:
    """The study's tables as LaTeX, each below a comment with its stage's title."""
    parts = [f"% {escape_latex(study.title)}"]
    parts += [format_reproduction_latex(reproductions)] if reproductions else []
    for title, boards, missing in stages:
        parts.append("\n".join([f"% {escape_latex(title)}", *(f"% {escape_latex(text)}" for text in missing)]))
        if boards:
            parts += [format_latex(boards), *filter(None, map(_format_latex_deltas, boards))]
    return "\n\n".join(parts) + "\n"


def _group_deltas_by_pair(
    board: Leaderboard,
) -> tuple[list[str | None], dict[tuple[str, str], dict[str | None, SpecialisationDelta]]]:
    deltas_by_pair: dict[tuple[str, str], dict[str | None, SpecialisationDelta]] = {}
    for delta in compute_deltas(board):
        deltas_by_pair.setdefault((f"{delta.child.model} − {delta.parent.model}", delta.child.label), {})[
            delta.task
        ] = delta
    columns = dict.fromkeys(column for cells in deltas_by_pair.values() for column in cells)
    return list(columns), deltas_by_pair


def _format_markdown_deltas(board: Leaderboard) -> str:
    columns, deltas_by_pair = _group_deltas_by_pair(board)
    if not deltas_by_pair:
        return ""
    heads = ["pair", "method", *(column or "average" for column in columns)]
    lines = ["| " + " | ".join(map(escape_markdown, heads)) + " |", "|---|---|" + "---:|" * len(columns)]
    for (pair, method), cells in deltas_by_pair.items():
        figures = [_format_markdown_delta(cells[column]) if column in cells else "–" for column in columns]
        lines.append("| " + " | ".join([escape_markdown(pair), escape_markdown(method), *figures]) + " |")
    count = sum(map(len, deltas_by_pair.values()))
    note = f"Score of a model minus its parent's score; bold: significant at {ALPHA} (Holm over {count} differences)."
    return "\n".join([*lines, "", note])


def _format_markdown_delta(delta: SpecialisationDelta) -> str:
    figure = f"{100 * delta.difference:+.2f}"
    return f"**{figure}**" if delta.p_value <= ALPHA else figure


def _format_latex_deltas(board: Leaderboard) -> str:
    columns, deltas_by_pair = _group_deltas_by_pair(board)
    if not deltas_by_pair:
        return ""
    heads = " & ".join(map(escape_latex, ["pair", "method", *(column or "average" for column in columns)]))
    lines = ["\\begin{table}", "\\centering", f"\\begin{{tabular}}{{ll{'r' * len(columns)}}}", "\\toprule"]
    lines += [f"{heads} \\\\", "\\midrule"]
    for (pair, method), cells in deltas_by_pair.items():
        figures = [_format_latex_delta(cells[column]) if column in cells else "--" for column in columns]
        lines.append(" & ".join([escape_latex(pair), escape_latex(method), *figures]) + " \\\\")
    note = f"Score of a model minus its parent's score; bold: significant at {ALPHA}, Holm's correction."
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", f"\\caption{{{note}}}", "\\end{table}"])


def _format_latex_delta(delta: SpecialisationDelta) -> str:
    figure = f"{100 * delta.difference:+.2f}"
    return f"\\textbf{{{figure}}}" if delta.p_value <= ALPHA else figure
