"""The table at the end of a run: one line for each measurement, and for each one that was skipped."""

from pathlib import Path
from typing import Any

from benchmarks.gpu.result_log import read_rows

Row = dict[str, Any]


def format_table(folder: Path) -> str:
    """The table as markdown."""
    lines = ["| part | what | ours | theirs | times | share of peak | peak MB | repeats | beside |", "|---" * 9 + "|"]
    lines += [
        f"| {' | '.join(map(str, build_cells(row)))} |" for row in read_rows(folder) if row["what"] in CELL_BUILDERS
    ]
    return "\n".join(lines)


def build_cells(row: Row) -> tuple[Any, ...]:
    """The cells of one line."""
    if "error" in row:
        name = " ".join(str(row[key]) for key in ("model", "lengths", "side", "width") if key in row)
        return row["part"], f"{row['what']} {name}", "failed", "", "", "", "", "", row["error"][:160].replace("|", "/")
    return CELL_BUILDERS[row["what"]](row)


def _build_machine_cells(row: Row) -> tuple[Any, ...]:
    told = row["gpu"].get("name") or row["note"]
    return row["part"], "machine", told, "", "", "", "", "", f"{row['versions']['torch']}, CUDA {row['cuda']}"


def _build_peak_cells(row: Row) -> tuple[Any, ...]:
    return row["part"], f"product of {row['size']}", f"{row['tflops']} TFLOP/s", "", "", "", "", row["repeats"], ""


def _build_tests_cells(row: Row) -> tuple[Any, ...]:
    return row["part"], "tests", row["told"], "", "", "", "", "", " ".join(row["failed"])[:400]


def _build_embedding_cells(row: Row) -> tuple[Any, ...]:
    beside = f"batch {row['batch']}, cosine {row['least_cosine']}, their peak {row.get('their_peak_mb')} MB"
    return (row["part"], f"{row['model']}, {row['lengths']}", f"{row['tokens_per_second']:,} tokens/s",
            f"{row.get('their_tokens_per_second', 0):,}", row.get("times_theirs", ""), row["share_of_peak"],
            row["peak_mb"], row["repeats"], beside)  # fmt: skip


def _build_search_cells(row: Row) -> tuple[Any, ...]:
    beside = (f"ids as float64 {row.get('agrees_with_float64')}, copy {row['copy_seconds']} s, "
              f"torch bf16 {row.get('torch_bfloat16')} s, faiss-gpu {row.get('faiss_gpu')}")  # fmt: skip
    times = round(row["torch_float32"] / row["ours"], 3) if row.get("torch_float32") else ""
    return (row["part"], f"{row['rows']:,} x {row['width']}, {row['queries']:,} queries", f"{row['ours']} s",
            f"{row.get('torch_float32')} s", times, "", row["peak_mb"], row["repeats"], beside)  # fmt: skip


def _build_training_cells(row: Row) -> tuple[Any, ...]:
    times = row.get("times_theirs", "")
    return (row["part"], f"{row['model']}, {row['side']}", f"{row['pairs_per_second']} pairs/s", "", times, "",
            row["peak_mb"], row["steps"], f"batch {row['batch']}")  # fmt: skip


def _build_ended_cells(row: Row) -> tuple[Any, ...]:
    return row["part"], "ended", row["how"], "", "", "", "", "", f"{row['seconds']} s"


def _build_skipped_cells(row: Row) -> tuple[Any, ...]:
    name = " ".join(str(row[key]) for key in ("model", "lengths", "side") if key in row)
    return row["part"], name, "not measured", "", "", "", "", "", row["why"]


CELL_BUILDERS = {
    "machine": _build_machine_cells,
    "peak": _build_peak_cells,
    "tests": _build_tests_cells,
    "embedding": _build_embedding_cells,
    "search": _build_search_cells,
    "training": _build_training_cells,
    "ended": _build_ended_cells,
    "skipped": _build_skipped_cells,
    "peer": _build_skipped_cells,
}
