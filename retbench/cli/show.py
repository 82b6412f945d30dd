"""retbench show: all fields of one card; an unknown field is marked `not known`."""

from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import typer

from retbench.cards.model import ModelCard
from retbench.cli.command import AsJson, cli_command, print_json, print_result
from retbench.errors import UsageError


class CardKind(StrEnum):
    """A kind of card."""

    model = "model"
    task = "task"
    suite = "suite"
    method = "method"
    recipe = "recipe"


UNKNOWN_VALUE = "not known"
ABSENT_VALUE = {
    CardKind.method: "none",
    CardKind.recipe: "none",
}  # there an absent field is a choice, not unknown


@cli_command
def show(
    kind: Annotated[CardKind, typer.Argument(help="The kind of card.")],
    name: Annotated[str, typer.Argument(help="Its name or alias, or a path.")],
    text: Annotated[
        str | None, typer.Option(help="For a model: show how it tokenizes this text with each method.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="With --text: only this method; may be repeated.")] = None,
    weights: Annotated[str | None, typer.Option(help="With --text: the folder of the model's tokenizer.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show all fields of a model, task, suite, method or recipe; or how a model tokenizes a text."""
    if text is not None:
        _show_tokenization(kind, name, text, method or [], weights, as_json)
        return
    card = _find_card(kind, name)
    facts = asdict(card)
    if isinstance(card, ModelCard) and card.lexical:
        facts["lexical"] = card.lexical.describe()  # without the settings that its variant does not use
    if kind is CardKind.task:
        facts |= _describe_task(name, facts)
    if as_json:
        print_json(facts)
    else:
        print_result("\n".join(_format_lines(facts, "", ABSENT_VALUE.get(kind, UNKNOWN_VALUE))))


def _show_tokenization(
    kind: CardKind, name: str, text: str, methods: list[str], weights: str | None, as_json: bool
) -> None:
    from retbench.encoders.tokenization_preview import preview_tokenization

    if kind is not CardKind.model:
        raise UsageError(f"--text does not apply to a {kind.value}", "run retbench show model NAME --text TEXT")
    tokenizer, *previews = preview_tokenization(name, text, methods, weights)
    if as_json:
        print_json({"tokenizer": tokenizer, "readings": previews})
        return
    print_result("\n".join(_format_lines(tokenizer, "")))
    for preview in previews:
        print_result(f"\n{preview['method']}, {preview['role']}: {preview.get('skipped') or repr(preview['read'])}")
        if "ids" in preview:
            span = f" from token {preview['pooled_from'] + 1} on" if preview["pooled_from"] else ""
            ids = " ".join(map(str, preview["ids"]))
            print_result(f"  {len(preview['ids'])} ids, pooled: {preview['pooling']}{span}\n  {ids}")


def _find_card(kind: CardKind, name: str) -> Any:
    from retbench.cards import catalog

    if kind is CardKind.model:
        from retbench.engines.weights import find_described_card

        return find_described_card(name)
    if kind is CardKind.task:
        return catalog.find_task_card(name)
    if kind is CardKind.recipe:
        return catalog.find_recipe(name)
    return catalog.load_suites().find(name) if kind is CardKind.suite else catalog.find_method(name)


def _describe_task(name: str, card: dict[str, Any]) -> dict[str, Any]:
    """Add the cached state and the evaluation rules; keep only the source fields that are set."""
    from retbench.cards import catalog
    from retbench.cards.task_rules import describe_task_rules
    from retbench.corpora.cache_status import get_cache_status

    status = get_cache_status(catalog.find_task_card(name))
    cache_state = {"state": status.state, "megabytes": status.megabytes, "origin": status.origin}
    source = {field: value for field, value in card["source"].items() if value is not None}
    counts = {"documents": status.documents, "queries": status.queries}
    return {**counts, "source": source, "here": cache_state, "rules": describe_task_rules(catalog.find_task_card(name))}


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
