"""A study's own tables: what was asked, one board a stage, what specialisation did, and what was left out."""

from retbench.cards.study import Study
from retbench.reports.formats import latex, markdown, plain, tex
from retbench.reports.leaderboard import Block
from retbench.reports.ranks import ALPHA
from retbench.reports.specialisation_deltas import Delta, deltas

Found = list[tuple[str, list[Block], tuple[str, ...]]]  # a stage's title, its boards, and what was lost and why


def study_markdown(study: Study, found: Found) -> str:
    """The study as markdown."""
    parts = [f"# {plain(study.title)}", *([plain(study.paper)] if study.paper else [])]
    parts += ["\n".join(f"{n}. {plain(question)}" for n, question in enumerate(study.questions, start=1))]
    for title, blocks, lost in found:
        parts.append(f"# {plain(title)}")
        parts += [markdown(blocks)] if blocks else [] if lost else ["Nothing run yet."]
        parts += [f"{plain(one)}." for one in lost]
        parts += [table for block in blocks if (table := _deltas_markdown(block))]
    if study.departures:
        parts += ["# Where this is not the paper", "\n".join(f"- {plain(one)}" for one in study.departures)]
    return "\n\n".join(filter(None, parts)) + "\n"


def study_latex(study: Study, found: Found) -> str:
    """The study's tables as LaTeX, each under a comment that names its stage."""
    parts = [f"% {tex(study.title)}"]
    for title, blocks, lost in found:
        parts.append("\n".join([f"% {tex(title)}", *(f"% {tex(one)}" for one in lost)]))
        if blocks:
            parts += [latex(blocks), *filter(None, map(_deltas_latex, blocks))]
    return "\n\n".join(parts) + "\n"


def _pairs(block: Block) -> tuple[list[str | None], dict[tuple[str, str], dict[str | None, Delta]]]:
    table: dict[tuple[str, str], dict[str | None, Delta]] = {}
    for one in deltas(block):
        table.setdefault((f"{one.child.model} − {one.parent.model}", one.child.label), {})[one.task] = one
    goals = dict.fromkeys(goal for cells in table.values() for goal in cells)
    return list(goals), table


def _deltas_markdown(block: Block) -> str:
    goals, table = _pairs(block)
    if not table:
        return ""
    heads = ["pair", "method", *(goal or "average" for goal in goals)]
    lines = ["| " + " | ".join(map(plain, heads)) + " |", "|---|---|" + "---:|" * len(goals)]
    for (pair, method), cells in table.items():
        figures = [_markdown_figure(cells[goal]) if goal in cells else "–" for goal in goals]
        lines.append("| " + " | ".join([plain(pair), plain(method), *figures]) + " |")
    count = sum(map(len, table.values()))
    remark = f"A model minus the model it was made from; bold: significant at {ALPHA} (Holm over {count} differences)."
    return "\n".join([*lines, "", remark])


def _markdown_figure(one: Delta) -> str:
    figure = f"{100 * one.difference:+.2f}"
    return f"**{figure}**" if one.p_value <= ALPHA else figure


def _deltas_latex(block: Block) -> str:
    goals, table = _pairs(block)
    if not table:
        return ""
    heads = " & ".join(map(tex, ["pair", "method", *(goal or "average" for goal in goals)]))
    lines = ["\\begin{table}", "\\centering", f"\\begin{{tabular}}{{ll{'r' * len(goals)}}}", "\\toprule"]
    lines += [f"{heads} \\\\", "\\midrule"]
    for (pair, method), cells in table.items():
        figures = [_latex_figure(cells[goal]) if goal in cells else "--" for goal in goals]
        lines.append(" & ".join([tex(pair), tex(method), *figures]) + " \\\\")
    remark = f"A model minus the model it was made from; bold: significant at {ALPHA}, Holm's correction."
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", f"\\caption{{{remark}}}", "\\end{table}"])


def _latex_figure(one: Delta) -> str:
    figure = f"{100 * one.difference:+.2f}"
    return f"\\textbf{{{figure}}}" if one.p_value <= ALPHA else figure
