"""retbench show: the fields of one card as two columns; those that are not known are named in one line."""

from dataclasses import asdict
from enum import StrEnum
from textwrap import wrap
from typing import Annotated, Any

import typer

from retbench.cards.int8_scores import describe_int8_scores
from retbench.cards.model import ModelCard
from retbench.cli.command import AsJson, cli_command, find_kind, print_json, print_result, print_status
from retbench.cli.complete_names import complete_cards
from retbench.cli.terminal_table import get_terminal_width
from retbench.errors import RetbenchError, UsageError


class CardKind(StrEnum):
    """A kind of card."""

    model = "model"
    task = "task"
    suite = "suite"
    method = "method"
    prompts = "prompts"
    recipe = "recipe"


HAVE_UNKNOWN_FIELDS = (CardKind.model, CardKind.task)  # elsewhere an absent field is a choice, not unknown
OPTIONAL_PARTS = ("lexical", "pixels", "training", "adapted", "pair_prompt")  # most models do not have them
GAP, PIPED_WIDTH = 2, 120


def _complete_kind(incomplete: str) -> list[str]:
    return [kind for kind in CardKind if kind.startswith(incomplete)]


def _complete_name(ctx: typer.Context, incomplete: str) -> list[str]:
    return complete_cards(str(ctx.params.get("kind_name")), incomplete)


@cli_command
def show(
    kind_name: Annotated[
        str, typer.Argument(metavar="kind", help=f"One of {', '.join(CardKind)}.", autocompletion=_complete_kind)
    ],
    name: Annotated[str, typer.Argument(help="Its name or alias, or a path.", autocompletion=_complete_name)],
    text: Annotated[
        str | None, typer.Option(help="For a model: show how it tokenizes this text with each method.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="With --text: only this method; may be repeated.")] = None,
    weights: Annotated[str | None, typer.Option(help="With --text: the folder of the model's tokenizer.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show all fields of a model, task, suite, method, prompt set or recipe; or how a model tokenizes a text."""
    kind = find_kind(kind_name, CardKind)
    if text is not None:
        _show_tokenization(kind, name, text, method or [], weights, as_json)
        return
    card = _find_card(kind, name)
    facts, name_unknown = asdict(card), kind in HAVE_UNKNOWN_FIELDS
    if isinstance(card, ModelCard) and card.lexical:
        facts["lexical"] = card.lexical.describe()  # without the settings that its variant does not use
        name_unknown = False  # it has no weights, and nothing about them to know
    if isinstance(card, ModelCard):
        facts |= _count_parameters(card)
    if kind is CardKind.task:
        facts |= _describe_task(name, facts)
    if as_json:
        print_json(facts)
    else:
        _print_card(card, facts, name_unknown)


def _print_card(card: Any, facts: dict[str, Any], name_unknown: bool) -> None:
    """Print the fields of a card, and for a hub id the card that describes its repository."""
    from retbench.cards.catalog import suggest_card

    shown = {name: value for name, value in facts.items() if value is not None or name not in OPTIONAL_PARTS}
    if isinstance(card, ModelCard) and card.int8_scores:
        shown["int8_scores"] = describe_int8_scores(card.name, card.int8_scores)
    print_result(_format_facts(shown, name_unknown))
    if isinstance(card, ModelCard) and (suggestion := suggest_card(card)):
        print_status(suggestion)


def _show_tokenization(
    kind: CardKind, name: str, text: str, methods: list[str], weights: str | None, as_json: bool
) -> None:
    from retbench.encoders.tokenization_preview import preview_tokenization

    if kind is not CardKind.model:
        raise UsageError(f"--text does not apply to a {kind.value}", "run retbench show model NAME --text TEXT")
    tokenizer, *previews = preview_tokenization(name, text, methods, weights, print_status)
    if as_json:
        print_json({"tokenizer": tokenizer, "readings": previews})
        return
    print_result(_format_facts(tokenizer, name_unknown=False))
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
    if kind is CardKind.prompts:
        return catalog.find_prompt_set(name)
    if kind is CardKind.recipe:
        return catalog.find_recipe(name)
    return catalog.load_suites().find(name) if kind is CardKind.suite else catalog.find_method(name)


def _count_parameters(card: ModelCard) -> dict[str, Any]:
    """Count the weights that are here; of others only the embedding table is known, from the card's shape."""
    from retbench.engines.weight_sizes import count_parameters_by_use
    from retbench.engines.weights import find_local_weights

    try:
        local = find_local_weights(card) if card.weights else None
        counts = count_parameters_by_use(local.folder) if local else None
    except RetbenchError:  # a card is shown also where its weights are missing or damaged; `run` names the reason
        counts = None
    if counts is None:
        table = card.shape and card.shape.vocabulary * card.shape.width
        return {"embedding_parameters": table, "active_parameters": None} if card.kind != "lexical" else {}
    return {
        "parameters": card.parameters or counts.total,
        "embedding_parameters": counts.embedding,
        "active_parameters": counts.active,
    }


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


def _format_facts(facts: dict[str, Any], name_unknown: bool) -> str:
    """Format the fields that have a value as two columns; the names of the others are one line."""
    fields, unknown = _flatten_fields(facts)
    if unknown and name_unknown:
        fields.append(("not known", ", ".join(unknown)))
    width = max((len(name) for name, _ in fields), default=0) + GAP
    return "\n".join(line for name, value in fields for line in _format_field(name, value, width))


def _flatten_fields(facts: dict[str, Any], prefix: str = "") -> tuple[list[tuple[str, Any]], list[str]]:
    """Split fields by their dotted names into those with a value and the names of those without."""
    known: list[tuple[str, Any]] = []
    unknown: list[str] = []
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            inner_known, inner_unknown = _flatten_fields(value, f"{prefix}{key}.")
            known += inner_known
            unknown += [f"{prefix}{key}"] if not inner_known else inner_unknown
        elif value is None:
            unknown.append(f"{prefix}{key}")
        elif value not in ((), [], {}, ""):
            known.append((f"{prefix}{key}", value))
    return known, unknown


def _format_field(name: str, value: Any, head_width: int) -> list[str]:
    """Format a field: its name, and its values below each other, wrapped to the terminal."""
    width = max(20, (get_terminal_width() or PIPED_WIDTH) - head_width)
    values = value if isinstance(value, list | tuple) else [value]
    lines = [line for one in values for line in _format_value(one).split("\n")]
    wrapped = [part for line in lines for part in wrap(line, width, break_on_hyphens=False) or [""]]
    heads = [name, *[""] * (len(wrapped) - 1)]
    return [f"{head:<{head_width}}{part}" for head, part in zip(heads, wrapped, strict=True)]


def _format_value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items() if one is not None)
    return f"{value:,}" if type(value) is int else str(value)
