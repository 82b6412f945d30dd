"""retbench plan: tokens, device hours, disk, network and cost of a corpus of any size, before anything is rented."""

import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer

from retbench.cli.command import AsJson, cli_command, parse_overrides, print_json, print_result

Repeated = list[str] | None


@cli_command
def plan(
    *,
    model: Annotated[list[str], typer.Option(help="A model card; may be repeated.")],
    task: Annotated[str | None, typer.Option(help="A task, for its number of documents and queries.")] = None,
    documents: Annotated[int | None, typer.Option(min=1, help="How many documents; wins over the task's.")] = None,
    queries: Annotated[int | None, typer.Option(min=1, help="How many queries: the task's, else 1,000.")] = None,
    tokens: Annotated[float, typer.Option(min=1, help="Mean tokens of a document, after truncation.")] = 80,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Tokens a second of one device, as a finished run tells.")
    ] = None,
    peak: Annotated[
        float | None, typer.Option(min=0.001, help="Instead of --rate: the device's bf16 peak in TFLOP/s.")
    ] = None,
    share: Annotated[float, typer.Option(min=0.001, max=1, help="The share of the peak that is reached.")] = 0.4,
    devices: Annotated[int, typer.Option(min=1, help="How many devices share the work.")] = 1,
    price: Annotated[float | None, typer.Option(min=0, help="What one device costs an hour.")] = None,
    set_: Annotated[Repeated, typer.Option("--set", help="KEY=VALUE: dimensions, vector_dtype.")] = None,
    as_json: AsJson = False,
) -> None:
    """Work out what embedding and searching a corpus takes; the formulas and assumptions are in docs/scale.md."""
    from retbench.cards import catalog
    from retbench.pipelines import estimate_cost

    texts = estimate_cost.resolve_corpus_size(task, documents, queries, tokens)
    used = estimate_cost.DeviceSpec(devices, rate, peak * 1e12 if peak else None, share, price)
    changed = estimate_cost.check_overrides(parse_overrides(set_, "dimensions=256"))
    bills = [estimate_cost.estimate_cost(catalog.find_model_card(name), texts, used, changed) for name in model]
    if as_json:
        print_json([{**asdict(texts), **asdict(bill)} for bill in bills])
        return
    by = f"{rate:,g} tokens/s a device" if rate else f"{share:.0%} of {peak:g} TFLOP/s"
    many = "1 device" if devices == 1 else f"{devices} devices"
    print_result(f"{texts.documents:,} documents of {tokens:g} tokens, {texts.queries:,} queries; {many}, {by}")
    _print_table(bills)


def _print_table(bills: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from retbench.cards.user_config import load_user_config

    names = (
        "tokens",
        "tokens/s",
        "device hours",
        "hours",
        "disk GB",
        "network GB",
        "search s",
        f"cost {load_user_config().currency}",
    )
    table = Table("model", box=None, header_style="bold")
    for name in names:
        table.add_column(name.strip(), justify="right")
    for bill in bills:
        table.add_row(
            bill.model,
            f"{bill.tokens / 1e9:,.2f} G",
            f"{bill.tokens_per_second:,.0f}",
            f"{bill.device_hours:,.1f}",
            f"{bill.hours:,.1f}",
            f"{bill.disk_bytes / 1e9:,.1f}",
            f"{bill.network_bytes / 1e9:,.1f}",
            "–" if bill.search_seconds is None else f"{bill.search_seconds:,.1f}",
            "–" if bill.cost is None else f"{bill.cost:,.0f}",
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
