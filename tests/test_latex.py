"""LaTeX for a paper: the scores and the costs are two tables, and each row has as many cells as its head."""

import re
from pathlib import Path

from retbench.pipelines.report import build_report
from tests.finished_runs import write_finished_run


def test_costs_are_a_table_of_their_own(tmp_path: Path) -> None:
    """One table of eighteen columns was wider than any page."""
    for model, scores in (("a", [0.9] * 8), ("b", [0.1] * 8)):
        for task in ("t1", "t2"):
            write_finished_run(tmp_path, model, task, scores, cost={"weights_mb": 90.0, "parameters": 2_000_000})
    latex = build_report(tmp_path).format("latex")
    scores, costs = re.findall(r"\\begin\{tabular\}\{([lr]+)\}\n\\toprule\n(.*?)\\bottomrule", latex, re.DOTALL)
    for (alignment, body), last in ((scores, "mean rank"), (costs, r"peak memory (MB)")):
        rows = [line.removesuffix(r" \\").split(" & ") for line in body.splitlines() if "&" in line]
        assert len(rows) == 3
        assert {len(row) for row in rows} == {len(alignment)}
        assert rows[0][-1] == last
    assert costs[1].startswith("model & method & parameters (M)")
    assert latex.count(r"\caption{") == latex.count(r"\begin{table}") == 2
