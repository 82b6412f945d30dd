"""retbench study show: the paper's table with our cells beside each figure, what is missing here, and the price."""

from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retbench.cli.command import AsJson, ResultsOut, cli_command, print_json, print_result, print_status
from retbench.cli.complete_names import complete_studies
from retbench.cli.terminal_table import Column, describe_hidden, print_table

if TYPE_CHECKING:
    from retbench.pipelines.estimate_cost import DeviceSpec
    from retbench.pipelines.studies.overview import StudyOverview
    from retbench.pipelines.studies.requirements import MissingItem
    from retbench.reports.reproduction import ReproductionTable

# bf16 products measured on one H200: docs/scale.md
DEFAULT_PEAK = 788.0
MAX_LISTED = 12  # missing items of one kind in the text; --json has all


@cli_command
def show(
    *,
    name: Annotated[
        str, typer.Argument(help="A study (retbench study list) or a TOML file.", autocompletion=complete_studies)
    ],
    out: ResultsOut,
    peak: Annotated[
        float, typer.Option(min=0.001, help="The device's bf16 peak in TFLOP/s (default: one H200, measured).")
    ] = DEFAULT_PEAK,
    share: Annotated[float, typer.Option(min=0.001, max=1, help="The fraction of the peak that is reached.")] = 0.4,
    devices: Annotated[int, typer.Option(min=1, help="The number of devices.")] = 1,
    price: Annotated[float | None, typer.Option(min=0, help="The price of one device per hour.")] = None,
    tokens: Annotated[
        float | None, typer.Option(min=1, help="Mean tokens per document (default: measured, else assumed).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show a study before it is run: the paper's figures and our cells, what is missing on this machine, the price."""
    from retbench.cards import catalog
    from retbench.pipelines.estimate_cost import DeviceSpec
    from retbench.pipelines.studies.cost import CostEstimator
    from retbench.pipelines.studies.overview import build_overview

    device = DeviceSpec(devices, peak=peak * 1e12, utilization=share, price=price)
    overview = build_overview(catalog.find_study(name), out, CostEstimator(device, tokens))
    if as_json:
        print_json(overview.to_json())
        return
    _print_heading(overview)
    for table in overview.tables:
        _print_table(table)
    print_result(_format_missing(overview.missing, overview.study.name))
    _print_stages(overview, device)


def _print_heading(overview: "StudyOverview") -> None:
    study = overview.study
    lines = [
        study.title,
        *([study.paper] if study.paper else []),
        *(f"{n}. {q}" for n, q in enumerate(study.questions, 1)),
    ]
    print_result("\n".join(lines))


def _print_table(table: "ReproductionTable") -> None:
    heads, lines = table.format_lines()
    heads = [*heads[:2], *_drop_common_parts(heads[2:-1]), heads[-1]]
    print_result(f"\n{table.table.title}  ({table.table.name})")
    _print_fitted_table(heads, lines, left=(0, 1, len(heads) - 1))
    print_result("\n".join(table.describe()))


def _drop_common_parts(names: list[str]) -> list[str]:
    """The names without the words that all of them begin or end with: bright-, -titled."""
    words = [name.split("-") for name in names]
    shortest = min(map(len, words), default=1)
    first = next((n for n in range(shortest) if len({parts[n] for parts in words}) > 1), 0) if len(names) > 1 else 0
    last = next((n for n in range(shortest) if len({parts[-1 - n] for parts in words}) > 1), 0) if len(names) > 1 else 0
    return ["-".join(parts[first : len(parts) - last]) or "-".join(parts) for parts in words]


def _format_missing(missing: "list[MissingItem]", study: str) -> str:
    if not missing:
        return "\nNothing is missing on this machine."
    lines = ["\nMissing on this machine:"]
    for kind, group in groupby(sorted(missing, key=lambda item: item.kind), key=lambda item: item.kind):
        items = list(group)
        shown = [f"{item.name} ({item.detail})" if item.detail else item.name for item in items[:MAX_LISTED]]
        more = [f"and {len(items) - MAX_LISTED} more (--json lists all)"] if len(items) > MAX_LISTED else []
        lines.append(f"  {kind}: {'; '.join([*shown, *more])}")
    if any(item.fetch for item in missing):
        lines.append(f"  next: retbench fetch {study}   (on a machine with a network; then copy its cache here)")
    return "\n".join(lines)


def _print_stages(overview: "StudyOverview", device: "DeviceSpec") -> None:
    speed = f"{device.utilization:.0%} of {(device.peak or 0) / 1e12:g} TFLOP/s"
    count = "one device" if device.count == 1 else f"{device.count} devices"
    print_result(f"\nThe price on {count} at {speed}, from the cards alone (docs/studies.md says how):")
    heads = ["stage", "cells", "done", "trainings", "tokens", "written", "hours", "memory GB", "cost"]
    lines = [_format_stage(stage.to_json(), device) for stage in overview.stages]
    _print_fitted_table(heads, lines, left=(0,))
    stages = [stage for stage in overview.stages if not stage.stage.optional]
    known = [stage.work.seconds for stage in stages if stage.work.seconds is not None]
    notes = [f"All stages: {sum(known) / 3600:,.1f} hours."]
    if unknown := sum(stage.unknown for stage in stages):
        notes.append(f"{unknown} cells and trainings are not in it: their data or model sizes are not known yet.")
    if any(stage.work.written_tokens for stage in stages):
        notes.append("The time of written tokens is not in it.")
    if len(stages) < len(overview.stages):
        notes.append("Optional stages are not in it (study run --stage NAME).")
    print_result(f"{' '.join(notes)}\nnext: retbench study run {overview.study.name} --dry-run")


def _format_stage(facts: dict[str, Any], device: "DeviceSpec") -> list[str]:
    name = facts["stage"] + (" (optional)" if facts["optional"] else "")
    hours = facts["seconds"] / 3600 if "seconds" in facts else None
    costs = [facts["served_price"]] if "served_price" in facts else []
    costs += [hours * device.price * device.count] if hours and device.price is not None else []
    least = "at least " if "unknown" in facts else ""
    is_served = facts.get("served_tokens") and not hours  # its speed is not known here
    written = f"{facts['written_tokens'] / 1e6:,.1f} M" if "written_tokens" in facts else "–"
    return [
        name, str(facts["cells"]), str(facts["done"]), str(facts["trainings"] or "–"),
        f"{facts['tokens'] / 1e6:,.1f} M", written,
        "not known" if hours is None else "server" if is_served else least + f"{hours:,.1f}",
        f"{facts['memory_bytes'] / 1e9:,.1f}" if "memory_bytes" in facts else "–",
        f"{sum(costs):,.0f}" if costs else "–",
    ]  # fmt: skip


def _print_fitted_table(heads: list[str], lines: list[list[str]], left: tuple[int, ...]) -> None:
    columns = [
        Column(head, [line[at] for line in lines], 0 if at in left else at, "name" if at in left else "number")
        for at, head in enumerate(heads)
    ]
    if hidden := print_table(columns):
        print_status(describe_hidden(hidden, "a wider terminal or --json has them"))
