"""The grid: a block as plain columns and cells, once, for every format to print in its own way."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from retbench.cards.user_config import load_user_config
from retbench.reports.leaderboard import Block, Row
from retbench.reports.published_tables import Published
from retbench.reports.ranks import ALPHA
from retbench.reports.seed_variation import ONE_SEED, draws, one_seed
from retbench.reports.suite_average import entries

NOTHING = "–"
MARKS = {"seen": "*", "unknown": "?", "unseen": ""}
PUBLISHED = "†"


@dataclass(frozen=True)
class Cell:
    """One cell: what a reader sees and what a program sorts by."""

    text: str
    value: float | str | None
    mark: str = ""
    task: str | None = None


@dataclass(frozen=True)
class Line:
    """One line of the grid: a row of ours, or a published one."""

    cells: list[Cell]
    row: Row | None = None
    published: Published | None = None


@dataclass(frozen=True)
class Grid:
    """Heads, lines, and the remarks a reader needs to believe them."""

    heads: list[str]
    lines: list[Line]
    remarks: list[str]


Cost = tuple[str, Callable[[Row], float | None], str]


def _largest(name: str) -> Callable[[Row], float | None]:
    return lambda row: max(row.cost(name), default=None)


def _mean(name: str) -> Callable[[Row], float | None]:
    return lambda row: fmean(values) if (values := row.cost(name)) else None


def _parameters(row: Row) -> float | None:
    largest = max(row.cost("parameters"), default=None)
    return None if largest is None else largest / 1e6


def price(row: Row) -> float | None:
    """What a million documents cost at the rates in retbench.toml; none where the machine has no rate."""
    rates, costs = load_user_config().prices or {}, []
    for run in row.runs.values():
        machine, speed = run.record.machine, run.record.cost.get("documents_per_second")
        rate = rates.get(str(machine.get("gpu"))) or rates.get(str(machine.get("cpu")))
        if rate is None or not speed:
            return None
        costs.append(rate * 1e6 / speed / 3600)
    return fmean(costs) if costs else None


COSTS: dict[str, Cost] = {
    "parameters": ("parameters (M)", _parameters, ",.0f"),
    "weights": ("weights (MB)", _largest("weights_mb"), ",.0f"),
    "tokens_per_second": ("tokens/s", _mean("tokens_per_second"), ",.0f"),
    "documents_per_second": ("docs/s", _mean("documents_per_second"), ",.0f"),
    "peak_memory": ("peak memory (MB)", _largest("peak_memory_mb"), ",.0f"),
    "price": ("price per 1M docs", price, ",.2f"),
}


def costs(block: Block) -> dict[str, Cost]:
    """The cost columns for which some row has a figure."""
    return {name: cost for name, cost in COSTS.items() if any(cost[1](row) is not None for row in block.rows)}


def grid(block: Block, members: bool = False) -> Grid:
    """A block as columns; a group of tasks is one column, followed by its members where they are asked for."""
    shown = costs(block)
    goals: list[str | None] = [None] if block.goal is None else []
    for name, tasks in block.entries.items():
        goals += [name, *tasks] if members and tasks != (name,) else [name]
    heads = [
        "rank",
        "letters",
        "model",
        "method",
        *("average" if goal is None else goal for goal in goals),
        "95% interval",
    ]
    lines = [_line(block, row, goals, shown) for row in block.rows]
    lines += [_published(block, one, goals, len(shown)) for one in block.references]
    return Grid([*heads, *(title for title, _, _ in shown.values())], lines, _remarks(block))


def _line(block: Block, row: Row, goals: list[str | None], shown: dict[str, Cost]) -> Line:
    place = block.place(row, block.goal)
    rank = Cell(str(place.rank), place.rank) if place else Cell(NOTHING, None)
    letters = Cell(place.letters, place.letters) if place else Cell(NOTHING, None)
    names = [Cell(row.model, row.model, ONE_SEED if one_seed(block, row) else ""), Cell(row.label, row.label)]
    scores = [_score(block, row, goal) for goal in goals]
    figures = []
    for _, measure, form in shown.values():
        value = measure(row)
        figures.append(Cell(NOTHING if value is None else format(value, form), value))
    return Line([rank, letters, *names, *scores, _interval(place), *figures], row)


def _interval(place: Any) -> Cell:
    if place is None:
        return Cell(NOTHING, None)
    low, high = place.interval
    return Cell(f"{100 * low:.1f}–{100 * high:.1f}", f"{100 * low:.4f}–{100 * high:.4f}")


def _score(block: Block, row: Row, goal: str | None) -> Cell:
    score = block.score(row, goal)
    if score is not None:
        seen = {row.seen(task) for task in block.entries.get(goal, (goal,))} if goal else {"unseen"}
        return Cell(f"{100 * score:.2f}", 100 * score, "".join(MARKS[one] for one in sorted(seen)), goal)
    if goal in row.failures:
        return Cell(row.failures[goal].status, None, task=goal)
    return Cell(NOTHING, None, task=goal)


def _published(block: Block, one: Published, goals: list[str | None], width: int) -> Line:
    scores = [
        one.average(block.suite, block.tasks) if goal is None else one.score(goal, block.entries.get(goal, (goal,)))
        for goal in goals
    ]
    cells = [Cell(NOTHING if x is None else f"{100 * x:.2f}", None if x is None else 100 * x) for x in scores]
    names = [Cell(one.model, one.model, PUBLISHED), Cell(f"published: {one.table.name}", one.table.name)]
    nothing = Cell(NOTHING, None)
    return Line([nothing, nothing, *names, *cells, nothing, *[nothing] * width], published=one)


def _remarks(block: Block) -> list[str]:
    """What the figures are, how they were tested, and what is not there."""
    terms = "; ".join(f"{name} {value}" for name, value in block.terms.items())
    remarks = [f"{block.metric} × 100. {terms}."]
    if block.apart:
        remarks.append(
            f"Not comparable with the first block of {block.title}: another {', another '.join(block.apart)}."
        )
    if block.older:
        remarks.append(f"Older runs left out, because the same cell was run again: {block.older}.")
    remarks += [_family(block), *_partial(block), _fidelity(block), *_seeds(block), *_seen(block), *_failures(block)]
    tables = {one.table.name: one.table for one in block.references}.values()
    for table in tables:
        said = f"{table.title}; published figures, not ranked or tested. Source: {table.source}."
        remarks.append(" ".join(filter(None, (f"{PUBLISHED} {table.name}: {said}", table.caveat))))
    return [remark for remark in remarks if remark]


def _family(block: Block) -> str:
    ranked = [place for row in block.rows if (place := block.place(row, block.goal))]
    if len(ranked) < 2:
        return "Fewer than two full rows: nothing to test."
    queries = sum({t: len(run.values) for row in block.rows for t, run in row.runs.items()}.values())
    pairs = len(ranked) * (len(ranked) - 1) // 2
    text = (
        "rank = 1 + the rows significantly better; rows that share a letter do not differ. Paired randomisation test "
        f"over {queries:,} queries, Holm's correction over {pairs} pairs, alpha {ALPHA}."
    )
    if block.goal is None and ranked[0].over_tasks is None:
        text += f" {len(block.tasks)} tasks are too few to test over tasks."
    elif block.goal is None:
        text += (
            " Ranks over tasks as units, in this order: " + ", ".join(str(place.over_tasks) for place in ranked) + "."
        )
    return text


def _partial(block: Block) -> list[str]:
    whole = entries(block.suite)
    if block.goal is not None or set(block.entries) == set(whole) or not whole:
        return []
    return [f"The average is over {len(block.entries)} of the {len(whole)} entries of {block.suite}."]


def over_seeds(block: Block) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the trainings that were run with several seeds: mean and range."""
    found = draws(block)
    goals = list(dict.fromkeys(goal for one in found for goal in one.spreads))
    heads = ["trained", "method", "seeds", *("average" if goal is None else goal for goal in goals)]
    return heads, [
        [one.name, one.label, str(one.seeds), *(str(one.spreads.get(goal, NOTHING)) for goal in goals)] for one in found
    ]


SPREAD = "Over seeds: the mean, and from the lowest to the highest. A difference inside a range may be the draw's."


def _fidelity(block: Block) -> str:
    """How near each method is to its source, as the record's own card of it says."""
    records = [run.record for row in block.rows for run in row.runs.values()]
    kinds = {record.method: record.cards["method"]["fidelity"] for record in records if record.cards.get("method")}
    told = [
        f"{kind}: {', '.join(names)}"
        for kind in ("exact", "reconstructed", "ours")
        if (names := sorted(name for name, own in kinds.items() if own == kind))
    ]
    return f"Fidelity of the methods to their sources: {'; '.join(told)}." if told else ""


def _seeds(block: Block) -> list[str]:
    if not any(one_seed(block, row) for row in block.rows):
        return []
    return [f"{ONE_SEED} trained with one seed: a difference that is significant over queries may still be the seed's."]


def _seen(block: Block) -> list[str]:
    kinds = {row.seen(task) for row in block.rows for task in row.runs}
    texts = {
        "seen": "* the model was trained on this collection.",
        "unknown": "? what the model was trained on is not known.",
    }
    return [text for kind, text in texts.items() if kind in kinds]


def _failures(block: Block) -> list[str]:
    causes: dict[tuple[str, str], list[str]] = {}
    for row in block.rows:
        for task, failure in row.failures.items():
            causes.setdefault((failure.status, failure.error), []).append(f"{row.model} on {task}")
    remarks = [f"{status}: {', '.join(cells)}: {error}." for (status, error), cells in causes.items()]
    missing = sum(t not in row.runs and t not in row.failures for row in block.rows for t in block.tasks)
    return [*remarks, f"{NOTHING} not run ({missing} cells); no average over missing cells."] if missing else remarks
