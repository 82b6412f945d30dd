"""retbench plan: estimate tokens, device hours, disk, network and cost for a corpus of any size."""

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from retbench.cli.command import AsJson, cli_command, parse_overrides, print_json, print_result, print_status
from retbench.cli.complete_names import complete_models, complete_tasks
from retbench.cli.terminal_table import Column, describe_hidden, print_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from retbench.pipelines.estimate_cost import CostEstimate

    Measure = Callable[[CostEstimate], float | None]

Repeated = list[str] | None
DEVICE = "The device"


@cli_command
def plan(
    *,
    model: Annotated[list[str], typer.Option(help="A model card; may be repeated.", autocompletion=complete_models)],
    task: Annotated[
        str | None,
        typer.Option(help="Take the number of documents and queries from this task.", autocompletion=complete_tasks),
    ] = None,
    documents: Annotated[int | None, typer.Option(min=1, help="The number of documents; overrides the task's.")] = None,
    queries: Annotated[
        int | None, typer.Option(min=1, help="The number of queries; default: the task's, else 1,000.")
    ] = None,
    tokens: Annotated[float, typer.Option(min=1, help="Mean tokens per document, after truncation.")] = 80,
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, help="Tokens per second of one device, from a finished run.", rich_help_panel=DEVICE),
    ] = None,
    peak: Annotated[
        float | None,
        typer.Option(min=0.001, help="Instead of --rate: the device's bf16 peak in TFLOP/s.", rich_help_panel=DEVICE),
    ] = None,
    share: Annotated[
        float, typer.Option(min=0.001, max=1, help="The fraction of the peak that is reached.", rich_help_panel=DEVICE)
    ] = 0.4,
    devices: Annotated[int, typer.Option(min=1, help="The number of devices.", rich_help_panel=DEVICE)] = 1,
    price: Annotated[
        float | None, typer.Option(min=0, help="The price of one device per hour.", rich_help_panel=DEVICE)
    ] = None,
    set_: Annotated[
        Repeated,
        typer.Option("--set", help="KEY=VALUE: dimensions, vector_dtype, depth (of a cross-encoder)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate the cost of embedding and searching a corpus, or of reranking. Formulas: docs/scale.md."""
    from retbench.cards import catalog
    from retbench.pipelines import estimate_cost
    from retbench.pipelines.models.overrides import Overrides

    corpus_size = estimate_cost.resolve_corpus_size(task, documents, queries, tokens)
    device_spec = estimate_cost.DeviceSpec(devices, rate, peak * 1e12 if peak else None, share, price)
    cards = [catalog.find_model_card(name) for name in model]
    overrides = estimate_cost.check_overrides(Overrides.parse(parse_overrides(set_, "dimensions=256")), cards)
    estimates = [estimate_cost.estimate_cost(card, corpus_size, device_spec, overrides) for card in cards]
    if as_json:
        print_json([{**asdict(corpus_size), **asdict(estimate)} for estimate in estimates])
        return
    speed = f"{rate:,g} tokens/s per device" if rate else f"{share:.0%} of {peak:g} TFLOP/s"
    device_count = "1 device" if devices == 1 else f"{devices} devices"
    texts = f"{corpus_size.documents:,} documents of {tokens:g} tokens, {corpus_size.queries:,} queries"
    print_result(f"{texts}; {device_count}, {speed}")
    _print_table(estimates)


def choose_digits(values: "Sequence[float | None]", digits: int) -> int:
    """Return the digits after the point; more where all values are so small that they would be printed as 0.0."""
    largest = max(filter(None, values), default=1.0)
    return digits if largest >= 10**-digits else math.ceil(-math.log10(largest)) + 1


def _print_table(estimates: "list[CostEstimate]") -> None:
    from retbench.system.user_config import load_user_config

    def build_column(head: str, room: int, measure: "Measure", digits: int = 1) -> Column:
        values = [measure(estimate) for estimate in estimates]
        shown = choose_digits(values, digits)
        return Column(head, ["–" if value is None else f"{value:,.{shown}f}" for value in values], room)

    columns = [
        Column("model", [estimate.model for estimate in estimates], kind="name"),
        build_column("tokens (G)", 1, lambda one: one.tokens / 1e9, digits=2),
        build_column("tokens/s", 5, lambda one: one.tokens_per_second, digits=0),
        build_column("device hours", 2, lambda one: one.device_hours),
        build_column("hours", 0, lambda one: one.hours),
        build_column("disk GB", 3, lambda one: one.disk_bytes / 1e9),
        build_column("network GB", 6, lambda one: one.network_bytes / 1e9),
        build_column("search s", 4, lambda one: one.search_seconds),
        build_column(f"cost {load_user_config().currency}".strip(), 0, lambda one: one.cost, digits=0),
    ]
    if hidden := print_table(columns):
        print_status(describe_hidden(hidden, "a wider terminal or --json has them"))
