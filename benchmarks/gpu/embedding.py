"""Texts to stored vectors, by the path of `retbench run`, against sentence-transformers around the same weights.

Both sides pay for tokenising. Ours also writes its shards to the disk, as every run does. Each is warmed by an eighth
of the texts; sentence-transformers is tried with several batch sizes and the best one is repeated.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.gpu import machine, models
from benchmarks.gpu.models import CUDA, DEVICE
from benchmarks.gpu.peer import assembled
from benchmarks.gpu.sheet import Sheet, free, median, seconds
from retbench.cards import catalog
from retbench.corpora.texts import SCHEMA, Texts
from retbench.encoders.dense_encoder import BackboneEncoder
from retbench.encoders.embed_texts import EmbeddingJob, embed_texts
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.encoders.shard_tasks import InProcessWorker
from retbench.engines import memory
from retbench.engines.backbone import Backbone
from retbench.retrievers import dense_retriever
from retbench.store.shard_store import ShardStore

Run = Callable[[list[str]], np.ndarray]

TOKENS = {"135M": 200_000, "0.5B": 150_000, "7B": 60_000}  # few enough for three repeats of every side
SHARE = {"7B": 2.0}  # of the time, against one for the others
BATCHES = (32, 128, 512)
REPEATS = 3
LIMIT = 4096


def measure(sheet: Sheet) -> None:
    """Every kind of text by every shape."""
    peak = machine.describe(sheet)
    made: dict[str, Any] = {}
    for name, shape in models.shapes().items():
        with sheet.caught("embedding", model=name):
            made[name] = models.made(shape)
    cells = [(name, kind) for kind in models.LENGTHS for name in made]
    weights = [SHARE.get(name, 1.0) for name, _ in cells]
    for number, (name, kind) in enumerate(cells):
        share = sheet.left() * weights[number] / sum(weights[number:])
        if sheet.left() < 3:
            sheet.row("skipped", model=name, lengths=kind, why="the time was over")
            continue
        with sheet.caught("embedding", model=name, lengths=kind):
            Cell(sheet, name, kind, made[name], peak, time.time() + share).measure()
        free()


@dataclass
class Timed:
    """The runs of one side."""

    run: Run
    seconds: list[float] = field(default_factory=list)
    peak_mb: float = 0.0

    def once(self, texts: list[str]) -> float:
        """Run, and remember what it took."""
        memory.reset_peak_memory()
        self.seconds.append(seconds(lambda: self.run(texts)))
        self.peak_mb = max(self.peak_mb, memory.get_peak_memory_mb())
        return self.seconds[-1]


@dataclass
class Cell:
    """One model over one kind of text."""

    sheet: Sheet
    name: str
    kind: str
    model: Any
    peak: float
    ends: float

    def measure(self) -> None:
        """Both sides in turns, then one row."""
        vocabulary = int(self.model.config.vocab_size)
        tokenizer = models.tokenizer_of(vocabulary)
        texts = models.drawn(self.kind, TOKENS.get(self.name, 4000), vocabulary)
        ours = Timed(by_retbench(self.model, tokenizer))
        few = texts[: max(8, len(texts) // 8)]
        ours.run(few)
        self._tell("ours", ours.once(texts))
        best, batch, tried, near = None, None, {}, None
        with self.sheet.caught("peer", model=self.name, lengths=self.kind):
            tried = self._peers(tokenizer, few, texts)
            batch = min(tried, key=lambda size: tried[size].seconds[0])
            best = tried[batch]
            near = cosine(ours.run(texts[:8]), best.run(texts[:8]))
        while time.time() < self.ends and len(ours.seconds) < REPEATS:
            self._tell("ours", ours.once(texts))
            if best:
                self._tell(f"sentence-transformers {batch}", best.once(texts))
        self._row(texts, ours, best, batch=batch, least_cosine=near,
                  tried={size: round(side.seconds[0], 3) for size, side in tried.items()})  # fmt: skip

    def _peers(self, tokenizer: Any, few: list[str], texts: list[str]) -> dict[int, Timed]:
        """sentence-transformers, once at each batch size as long as there is time."""
        model = assembled(self.model, tokenizer, LIMIT, flash=find_spec("flash_attn") is not None)
        tried: dict[int, Timed] = {}
        for size in BATCHES:
            if tried and time.time() > self.ends:
                break
            side = Timed(by_sentence_transformers(model, size))
            try:
                side.run(few)
                self._tell(f"sentence-transformers {size}", side.once(texts))
                tried[size] = side
            except torch.OutOfMemoryError:
                self._tell(f"sentence-transformers {size}", float("inf"))
            free()
        return tried

    def _tell(self, side: str, taken: float) -> None:
        self.sheet.row("timing", model=self.name, lengths=self.kind, side=side, seconds=round(taken, 3))

    def _row(self, texts: list[str], ours: Timed, best: Timed | None, **facts: Any) -> None:
        tokens = sum(text.count(" ") + 1 for text in texts)
        pace = tokens / median(ours.seconds)
        work = 2 * models.linear_weights(self.model)
        found: dict[str, Any] = {
            "model": self.name, "lengths": self.kind, "texts": len(texts), "tokens": tokens, "measured": CUDA,
            "tokens_per_second": round(pace), "share_of_peak": round(pace * work / self.peak, 4),
            "share_is": "of the products of linear layers; attention is not counted",
            "peak_mb": round(ours.peak_mb), "repeats": len(ours.seconds),
            "seconds": [round(one, 3) for one in ours.seconds],
        }  # fmt: skip
        if best:
            theirs = tokens / median(best.seconds)
            found |= {"their_tokens_per_second": round(theirs), "times_theirs": round(pace / theirs, 3),
                      "their_peak_mb": round(best.peak_mb), "their_repeats": len(best.seconds)}  # fmt: skip
        self.sheet.row("embedding", **found, **facts)


def by_retbench(model: Any, tokenizer: Any) -> Run:
    """Shards in a store of their own, as a run makes them."""
    method = catalog.find_method("last")
    spec = EncoderSpec("random", method, "", LIMIT, LIMIT, "bfloat16")
    backbone = Backbone(model, tokenizer, True, "bfloat16", DEVICE)
    encoder = BackboneEncoder(spec, backbone, PromptTokenizer(tokenizer, method))

    def run(texts: list[str]) -> np.ndarray:
        folder = Path(tempfile.mkdtemp())
        workers = InProcessWorker(lambda: encoder)
        job = EmbeddingJob(
            _stored(texts, folder / "texts.arrow"),
            ("text",),
            "document",
            dense_retriever.compute_token_budget(*workers.device),
        )
        found = np.empty((len(texts), encoder.dimension), dtype=np.float32)
        for block in embed_texts(workers, job, ShardStore(folder / "store"), lambda *_: None):
            found[block.rows] = block.vectors
        shutil.rmtree(folder)
        return found

    return run


def _stored(texts: list[str], file: Path) -> Texts:
    columns = {"id": [str(row) for row in range(len(texts))], "title": [""] * len(texts), "text": texts}
    with pa.ipc.new_file(str(file), SCHEMA) as out:
        out.write_table(pa.table(columns, schema=SCHEMA))
    return Texts.open(file, "drawn")


def by_sentence_transformers(model: Any, batch: int) -> Run:
    """The library's own `encode`."""
    return lambda texts: np.asarray(model.encode(texts, batch_size=batch, show_progress_bar=False))


def cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The least over some texts; both are of length one."""
    return round(float((ours * theirs).sum(axis=1).min()), 5)
