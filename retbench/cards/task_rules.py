"""The evaluation rules of a task in sentences, for `retbench show task`."""

from retbench.cards import catalog
from retbench.cards.task import TaskCard

IMAGE_RULES = {
    "prefer": "Of a row with an image, a model that reads images reads only the image; other models read the text.",
    "ignore": "Images are not read.",
}


def describe_task_rules(card: TaskCard) -> list[str]:
    """List the rules: the text, the lengths, what is ranked, what is scored and how the score is averaged."""
    same_id = "is removed before the cut" if card.same_id == "drop" else "is ranked like any other"
    lines = [
        f"A document is read as its {' and '.join(card.fields)}, joined by a space; a query as its text.",
        f"Truncation: a query at {_format_limit(card.lengths.query)}, "
        f"a document at {_format_limit(card.lengths.document)}.",
        f"A document with the query's own id {same_id}.",
    ]
    if card.images in IMAGE_RULES:
        lines.insert(1, IMAGE_RULES[card.images])
    if card.excluded == "drop":
        lines.append("Documents that the collection excludes for a query are removed before the cut.")
    lines += [
        f"Rankings are cut at {card.depth}; ties keep the order of the corpus.",
        f"Every query of the split {card.split!r} with a judgment counts; a query without a hit scores 0.",
        f"A grade of {card.relevant_from} or more is relevant; nDCG uses every grade above 0 as its gain.",
        f"The main metric is {card.metric}.",
    ]
    if card.kinds_in_ids:
        lines.append("Ids begin with the kind of the row (code:...); reports also score each kind of query by itself.")
    return [*lines, *(_describe_averaging(suite, card.name) for suite in _list_suites_with(card.name))]


def _format_limit(limit: int) -> str:
    return f"{limit:,} tokens or the model's limit" if limit else "the model's limit"


def _list_suites_with(name: str) -> list[str]:
    return [suite.name for suite in catalog.load_suites() if name in suite.expand_tasks()]


def _describe_averaging(suite: str, name: str) -> str:
    groups = catalog.load_suites().find(suite).groups or {}
    for group, members in groups.items():
        if name in members:
            return f"In the suite {suite} it is one of {len(members)} tasks of the group {group}, averaged as one task."
    return f"In the suite {suite} it is one of {len(catalog.load_suites().find(suite).tasks)} averaged tasks."
