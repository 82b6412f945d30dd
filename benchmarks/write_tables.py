"""Writes the tables of speed in docs/ from the records of benchmarks/results, so that no figure is copied by hand.

    python -m benchmarks.write_tables

A table stands between `<!-- table NAME -->` and `<!-- end -->`. `tests/test_benchmark_tables.py` compares each with its
record.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGES = [HERE.parent / "docs" / name for name in ("engine.md", "scale.md")]


def format_cpu_tables(records: dict[str, dict[str, Any]]) -> str:
    """A table for each kind of CPU, with the kind above it."""
    return "\n\n".join(f"CPU with {kind}:\n\n{format_cpu_table(found)}" for kind, found in records.items())


def format_cpu_table(found: dict[str, Any]) -> str:
    """The speed of each contestant, and how much faster retbench is in bfloat16."""
    first = found["contestants"].get("retbench bfloat16", {}).get("seconds")  # without it there are no speed-ups
    head = ("contestant", "tokens/s", "share of peak", "seconds", "CPU seconds", "retbench bfloat16 is faster by")
    lines = ["| " + " | ".join((*head, "least cosine to fp32")) + " |", "|---" * 7 + "|"]
    for name, row in found["contestants"].items():
        factor = f"{row['seconds'] / first:.2f}x" if first else "–"
        cosine = f"{row['min_cosine_to_fp32']:.5f}" if "min_cosine_to_fp32" in row else "–"
        share = f"{row['share_of_peak']:.0%}" if "share_of_peak" in row else "–"
        lines.append(
            f"| {name} | {row['tokens_per_second']:,.0f} | {share} | {row['seconds']:.1f} | "
            f"{row['cpu_seconds']:.1f} | {factor} | {cosine} |"
        )
    peaks, settings = found["peak_gflops"], found["settings"]
    lines.append(
        f"\n{found.get('processor', 'processor not noted')}: {settings['documents']} documents, {settings['tokens']:,} "
        f"tokens, {settings['threads']} threads, rounds: {settings['rounds']}. Matrix products alone: "
        f"{format_peak(peaks['bfloat16'])} in bfloat16, {format_peak(peaks['float32'])} in float32."
    )
    lines += [f"\nNot measured: {name}, {reason.rstrip('.')}." for name, reason in found.get("left_out", {}).items()]
    return "\n".join(lines)


def format_peak(gflops: float) -> str:
    """The speed of products; it is 0 where other processes disturbed the timing."""
    return f"{gflops:,.0f} GFLOP/s" if gflops else "not measured"


def format_search_table(found: dict[str, Any]) -> str:
    """The time of exact search and of faiss' flat index for each shape."""
    lines = [
        "| documents | queries | width | threads | retbench s | faiss flat s | faster | by CPU time | other ids |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['documents']:,} | {row['queries']:,} | {row['width']} | {row['threads']} | "
        f"{row['retbench']['seconds']:.3f} | {row['faiss']['seconds']:.3f} | {row['faster']:.2f}x | "
        f"{row['faster_by_cpu']:.2f}x | {row['queries_with_other_ids']} |"
        for row in found["shapes"]
    ]
    return "\n".join(lines)


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "cpu_encoder": format_cpu_tables,
    "cpu_decoder": format_cpu_tables,
    "search": format_search_table,
}


def format_record(name: str) -> str:
    """The table of a record, or a line that says that there is none."""
    file = HERE / "results" / f"{name}.json"
    return TABLES[name](json.loads(file.read_text())) if file.exists() else "Not measured yet; `make bench` does it."


def fill_tables(page: str) -> str:
    """The page with the tables of today's records."""
    return re.sub(
        r"(<!-- table (\w+) -->\n\n).*?(\n\n<!-- end -->)",
        lambda found: found[1] + format_record(found[2]) + found[3],
        page,
        flags=re.DOTALL,
    )


def main() -> None:
    for page in PAGES:
        page.write_text(fill_tables(page.read_text()))


if __name__ == "__main__":
    main()
