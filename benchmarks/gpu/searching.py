"""Exact search from the host's memory, against brute force in torch with everything already on the device."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.models import CUDA, DEVICE
from benchmarks.gpu.sheet import Sheet, free, median, seconds
from retbench.engines import memory
from retbench.retrievers import exact_search
from retbench.retrievers.ranking import Ranking
from retbench.store.shard_store import VectorBlock

ROWS, QUERIES, WIDTHS = (1_000_000, 6980, (896, 3584)) if CUDA else (3000, 70, (64, 96))
DEPTH = 100
BLOCK = 2048  # rows of a stored shard
PILOT = 65_536 if CUDA else 1024
TILE, QUERY_TILE = 131_072, 1024
SAMPLE = 64  # queries whose ids are compared
REPEATS = 3


def measure(sheet: Sheet) -> None:
    """The narrow width first, which shows whether the wide one fits into the time."""
    for number, width in enumerate(WIDTHS):
        with sheet.caught("search", width=width):
            share = sheet.left() * (0.35 if number == 0 else 1.0)
            Bench(sheet, width, time.time() + share).measure()
        free()


class Bench:
    """One width."""

    def __init__(self, sheet: Sheet, width: int, ends: float) -> None:
        self.sheet, self.width, self.ends = sheet, width, ends
        self.queries = unit(QUERIES, width, 1).cpu().numpy()
        self.documents = np.empty((ROWS, width), dtype=np.float32)
        self.rows = 0
        self.found: list[float] = []

    def measure(self) -> None:
        """A pilot decides how many rows there is time for."""
        generated = seconds(lambda: self.generate(PILOT))
        self.ours(PILOT)  # kernels are loaded, pages are touched
        pace = (seconds(lambda: self.ours(PILOT)) + generated) / PILOT
        self.sheet.row("timing", side="pilot", width=self.width, rows=PILOT, seconds=round(pace * PILOT, 3))
        room = int((self.ends - time.time()) * 0.4 / pace)
        rows = min(ROWS, max(PILOT, room // PILOT * PILOT if room < ROWS else ROWS))
        self.generate(rows)
        memory.reset_peak_memory()
        ranking: list[Ranking] = []
        self.found.append(seconds(lambda: ranking.append(self.ours(rows))))
        self.sheet.row("timing", side="ours", width=self.width, rows=rows, seconds=round(self.found[0], 3))
        peak_mb, copied = memory.get_peak_memory_mb(), seconds(lambda: self.copy(rows))
        facts: dict[str, Any] = {"measured": CUDA, "width": self.width, "rows": rows, "wanted_rows": ROWS,
                                 "queries": QUERIES, "k": DEPTH, "peak_mb": round(peak_mb),
                                 "copy_seconds": round(copied, 3)}  # fmt: skip
        with self.sheet.caught("peer", width=self.width):
            facts |= self.peers(rows, ranking[0])
        while time.time() + self.found[0] < self.ends and len(self.found) < REPEATS:
            self.found.append(seconds(lambda: self.ours(rows)))
        facts |= {"seconds": [round(one, 3) for one in self.found], "repeats": len(self.found)}
        self.sheet.row("search", ours=round(median(self.found), 3), **facts)

    def generate(self, rows: int) -> None:
        """Fill the host's memory from the device."""
        for start in range(self.rows, rows, PILOT):
            end = min(start + PILOT, rows)
            torch.from_numpy(self.documents[start:end]).copy_(unit(end - start, self.width, 10 + start))
        self.rows = max(self.rows, rows)

    def ours(self, rows: int) -> Ranking:
        """What a run does with stored vectors."""
        return exact_search.search_exactly(self.queries, self.blocks(rows), DEPTH)

    def blocks(self, rows: int) -> Iterator[VectorBlock]:
        """As the store hands them on."""
        for start in range(0, rows, BLOCK):
            end = min(start + BLOCK, rows)
            yield VectorBlock(np.arange(start, end), self.documents[start:end])

    def copy(self, rows: int) -> None:
        """What bringing the vectors to the device costs by itself."""
        for block in self.blocks(rows):
            torch.from_numpy(block.vectors).to(DEVICE)

    def peers(self, rows: int, ranking: Ranking) -> dict[str, Any]:
        """torch with the whole corpus on the device, and how many ids agree."""
        documents = torch.from_numpy(self.documents[:rows]).to(DEVICE)
        queries = torch.from_numpy(self.queries).to(DEVICE)
        sample = queries[:SAMPLE]
        ids = np.stack(ranking.rows[:SAMPLE])
        found: dict[str, Any] = {
            "sample": len(sample),
            "agrees_with_float64": agreement(ids, brute(sample, documents, torch.float64)),
            "agrees_with_float32": agreement(ids, brute(sample, documents, torch.float32)),
        }
        timings = {"torch_float32": (queries, documents)}
        found |= {key: round(best(*sides), 3) for key, sides in timings.items()}
        short = documents.bfloat16()
        del documents
        found["torch_bfloat16"] = round(best(queries.bfloat16(), short), 3)
        found["bfloat16_agrees_with_ours"] = agreement(ids, brute(queries[:SAMPLE].bfloat16(), short, torch.bfloat16))
        found["faiss_gpu"] = self.faiss(rows)
        return found

    def faiss(self, rows: int) -> Any:
        """Seconds of its flat index, where it is here."""
        try:
            import faiss
        except ImportError:
            return "not present"
        if not hasattr(faiss, "StandardGpuResources"):
            return "not present"
        index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), self.width)
        index.add(self.documents[:rows])
        return round(seconds(lambda: index.search(self.queries, DEPTH)), 3)


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    """Random directions, the same at every call."""
    made = torch.Generator(device=DEVICE).manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, width, device=DEVICE, generator=made), dim=1)


def best(queries: torch.Tensor, documents: torch.Tensor) -> float:
    """The better of two."""
    return min(seconds(lambda: brute(queries, documents, queries.dtype)) for _ in range(2))


def brute(queries: torch.Tensor, documents: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Products tile by tile and a running top-k."""
    tile = TILE // 4 if dtype == torch.float64 else TILE
    return torch.cat([_tile(part.to(dtype), documents, tile) for part in torch.split(queries, QUERY_TILE)])


def _tile(queries: torch.Tensor, documents: torch.Tensor, tile: int) -> torch.Tensor:
    scores, rows = None, None
    for start in range(0, len(documents), tile):
        part = queries @ documents[start : start + tile].to(queries.dtype).T
        values, places = part.topk(min(DEPTH, part.shape[1]), dim=1)
        places = places + start
        if scores is not None and rows is not None:
            values, places = torch.cat((scores, values), dim=1), torch.cat((rows, places), dim=1)
        scores, chosen = values.topk(DEPTH, dim=1)
        rows = places.gather(1, chosen)
    assert rows is not None
    return rows


def agreement(ids: np.ndarray, rows: torch.Tensor) -> float:
    """The share of ids that both have among their best, by query on average."""
    other = rows.cpu().numpy()
    return round(float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(ids, other, strict=True)])), 6)
