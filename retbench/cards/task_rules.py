"""The protocol of a task in sentences: everything that decides its figure, so that nobody has to guess a rule."""

from retbench.cards import catalog
from retbench.cards.task import TaskCard


def describe_task_rules(card: TaskCard) -> list[str]:
    """What is read, what may be ranked, what counts, and how it enters the averages."""
    same = "is never ranked: it is removed before the cut" if card.same_id == "drop" else "is ranked like any other"
    lines = [
        f"A document is read as its {' and '.join(card.fields)}, a space between; a query as its text.",
        f"A query is cut at {_format_limit(card.lengths.query)}, a document at {_format_limit(card.lengths.document)}.",
        f"A document with the query's own id {same}.",
    ]
    if card.excluded == "drop":
        lines.append("The documents that the collection forbids for a query are removed before the cut.")
    lines += [
        f"Rankings are cut at {card.depth}; equal scores stand in the order of the corpus.",
        f"Every query of the split {card.split!r} that has a judgment counts; one that finds nothing counts as 0.",
        f"Relevant is a grade of {card.relevant_from} or more; nDCG takes every grade above 0 as its gain.",
        f"The main figure is {card.metric}.",
    ]
    return [*lines, *(_describe_averaging(suite, card.name) for suite in _list_suites_with(card.name))]


def _format_limit(limit: int) -> str:
    return f"{limit:,} tokens or the model's own limit" if limit else "the model's own limit"


def _list_suites_with(name: str) -> list[str]:
    return [suite.name for suite in catalog.load_suites() if name in suite.expand_tasks()]


def _describe_averaging(suite: str, name: str) -> str:
    groups = catalog.load_suites().find(suite).groups or {}
    for group, members in groups.items():
        if name in members:
            return f"In the suite {suite} it is one of {len(members)} that count as one, {group}."
    return f"In the suite {suite} it counts as one of {len(catalog.load_suites().find(suite).tasks)}."
