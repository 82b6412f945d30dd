"""retbench show: one card, whole; a field that is not known is said to be so."""

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import typer

from retbench.cli.command import AsJson, cli_command, print_json, print_result
from retbench.errors import UsageError


class CardKind(StrEnum):
    """What can be shown."""

    model = "model"
    task = "task"
    suite = "suite"
    method = "method"
    recipe = "recipe"


UNKNOWN_VALUE = "not known"
ABSENT_VALUE = {
    CardKind.method: "none",
    CardKind.recipe: "none",
}  # there a field left out is a choice, not a gap in knowledge


@cli_command
def show(
    kind: Annotated[CardKind, typer.Argument(help="The kind of card.")],
    name: Annotated[str, typer.Argument(help="Its name or alias, or a path.")],
    text: Annotated[str | None, typer.Option(help="For a model: what it reads of this text under each method.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="With --text: only this method; may be repeated.")] = None,
    weights: Annotated[str | None, typer.Option(help="With --text: where the model's tokenizer lies.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show one model, task, suite or method with every fact its card holds; or what a model reads of a text."""
    if text is not None:
        _show_tokenization(kind, name, text, method or [], weights, as_json)
        return
    facts = asdict(_find_card(kind, name))
    if kind is CardKind.task:
        facts |= _describe_task(name, facts)
    if as_json:
        print_json(facts)
    else:
        print_result("\n".join(_format_lines(facts, "", ABSENT_VALUE.get(kind, UNKNOWN_VALUE))))


def _show_tokenization(
    kind: CardKind, name: str, text: str, methods: list[str], weights: str | None, as_json: bool
) -> None:
    from retbench.encoders.tokenization_preview import readings

    if kind is not CardKind.model:
        raise UsageError(f"a {kind.value} reads no text", "give retbench show model NAME --text TEXT")
    facts, *found = readings(name, text, methods, weights)
    if as_json:
        print_json({"tokenizer": facts, "readings": found})
        return
    print_result("\n".join(_format_lines(facts, "")))
    for one in found:
        print_result(f"\n{one['method']}, {one['role']}: {one.get('skipped') or repr(one['read'])}")
        if "ids" in one:
            span = f" from the {one['pooled_from'] + 1}th token on" if one["pooled_from"] else ""
            print_result(f"  {len(one['ids'])} ids, pooled: {one['pooling']}{span}\n  {' '.join(map(str, one['ids']))}")


def _find_card(kind: CardKind, name: str) -> Any:
    from retbench.cards import catalog

    if kind is CardKind.model:
        return catalog.find_model_card(name)
    if kind is CardKind.task:
        return catalog.find_task_card(name)
    if kind is CardKind.recipe:
        return catalog.find_recipe(name)
    return catalog.load_suites().find(name) if kind is CardKind.suite else catalog.find_method(name)


def _describe_task(name: str, card: dict[str, Any]) -> dict[str, Any]:
    """What of it lies here, and its protocol in sentences; of the source only what its kind has."""
    from retbench.cards import catalog
    from retbench.cards.task_rules import describe_task_rules
    from retbench.corpora.cache_status import get_cache_status

    found = get_cache_status(catalog.find_task_card(name))
    here = {"state": found.state, "megabytes": found.megabytes, "origin": found.origin}
    source = {field: value for field, value in card["source"].items() if value is not None}
    counts = {"documents": found.documents, "queries": found.queries}
    return {**counts, "source": source, "here": here, "rules": describe_task_rules(catalog.find_task_card(name))}


def _format_lines(facts: dict[str, Any], indent: str, absent: str = UNKNOWN_VALUE) -> list[str]:
    lines: list[str] = []
    for key, value in facts.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}:", *_format_lines(value, indent + "  ", absent)]
        elif isinstance(value, list | tuple):
            lines += [
                f"{indent}{key}: {'none' if not value else ''}".rstrip(),
                *(f"{indent}  - {item}" for item in value),
            ]
        else:
            lines.append(f"{indent}{key}: {absent if value is None else value}")
    return lines
