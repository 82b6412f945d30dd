"""retbench show: one card, whole; a field that is not known is said to be so."""

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import typer

from retbench.cli.command import AsJson, put, put_json, verb
from retbench.errors import UsageError


class Kind(StrEnum):
    """What can be shown."""

    model = "model"
    task = "task"
    suite = "suite"
    method = "method"
    recipe = "recipe"


NOT_KNOWN = "not known"
NOTHING_SAID = {Kind.method: "none", Kind.recipe: "none"}  # there a field left out is a choice, not a gap in knowledge


@verb
def show(
    kind: Annotated[Kind, typer.Argument(help="The kind of card.")],
    name: Annotated[str, typer.Argument(help="Its name or alias, or a path.")],
    text: Annotated[str | None, typer.Option(help="For a model: what it reads of this text under each method.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="With --text: only this method; may be repeated.")] = None,
    weights: Annotated[str | None, typer.Option(help="With --text: where the model's tokenizer lies.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show one model, task, suite or method with every fact its card holds; or what a model reads of a text."""
    if text is not None:
        _readings(kind, name, text, method or [], weights, as_json)
        return
    facts = asdict(_card(kind, name))
    if kind is Kind.task:
        facts |= _task(name, facts)
    if as_json:
        put_json(facts)
    else:
        put("\n".join(_lines(facts, "", NOTHING_SAID.get(kind, NOT_KNOWN))))


def _readings(kind: Kind, name: str, text: str, methods: list[str], weights: str | None, as_json: bool) -> None:
    from retbench.encoders.tokenization_preview import readings

    if kind is not Kind.model:
        raise UsageError(f"a {kind.value} reads no text", "give retbench show model NAME --text TEXT")
    facts, *found = readings(name, text, methods, weights)
    if as_json:
        put_json({"tokenizer": facts, "readings": found})
        return
    put("\n".join(_lines(facts, "")))
    for one in found:
        put(f"\n{one['method']}, {one['role']}: {one.get('skipped') or repr(one['read'])}")
        if "ids" in one:
            span = f" from the {one['pooled_from'] + 1}th token on" if one["pooled_from"] else ""
            put(f"  {len(one['ids'])} ids, pooled: {one['pooling']}{span}\n  {' '.join(map(str, one['ids']))}")


def _card(kind: Kind, name: str) -> Any:
    from retbench.cards import catalog

    if kind is Kind.model:
        return catalog.model(name)
    if kind is Kind.task:
        return catalog.task(name)
    if kind is Kind.recipe:
        return catalog.recipe(name)
    return catalog.suites().find(name) if kind is Kind.suite else catalog.method(name)


def _task(name: str, card: dict[str, Any]) -> dict[str, Any]:
    """What of it lies here, and its protocol in sentences; of the source only what its kind has."""
    from retbench.cards import catalog
    from retbench.cards.task_rules import protocol
    from retbench.corpora.cache_status import stock

    found = stock(catalog.task(name))
    here = {"state": found.state, "megabytes": found.megabytes, "origin": found.origin}
    source = {field: value for field, value in card["source"].items() if value is not None}
    counts = {"documents": found.documents, "queries": found.queries}
    return {**counts, "source": source, "here": here, "rules": protocol(catalog.task(name))}


def _lines(facts: dict[str, Any], indent: str, absent: str = NOT_KNOWN) -> list[str]:
    lines: list[str] = []
    for key, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_lines(value, indent + "  ", absent)]
        elif isinstance(value, list | tuple):
            lines += [
                f"{indent}{key}: {'none' if not value else ''}".rstrip(),
                *(f"{indent}  - {item}" for item in value),
            ]
        else:
            lines.append(f"{indent}{key}: {absent if value is None else value}")
    return lines
