"""Speed of embedding, by the code path of `retbench run`, against sentence-transformers with the same weights.

Both times include tokenization. Ours also includes writing the shards to disk, as in every run. Each side is warmed up
with an eighth of the texts. sentence-transformers runs with several batch sizes, the usually best first, and the best
one is repeated.
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
from benchmarks.gpu.peer import build_sentence_transformer
from benchmarks.gpu.result_log import ResultLog, compute_median, measure_seconds, release_memory
from retbench.cards import catalog
from retbench.corpora.texts import SCHEMA, Texts
from retbench.encoders.dense_encoder import BackboneEncoder
from retbench.encoders.embed_texts import EmbeddingJob, embed_texts
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.prompt_tokenizer import PromptTokenizer
from retbench.encoders.shard_tasks import InProcessWorker
from retbench.engines import memory
from retbench.engines.backbone import Backbone
from retbench.retrievers import embedding_retriever
from retbench.store.shard_store import ShardStore

EncodeTexts = Callable[[list[str]], np.ndarray]

TOKENS = {"135M": 300_000, "0.5B": 250_000, "7B": 60_000}  # few enough for three repeats of each side
TIME_SHARES = {"7B": 2.0}  # the weight of a shape's time limit; the others have 1
BATCH_SIZES = (128, 512, 32)
REPEATS = 3
MAX_LENGTH = 4096


def measure(log: ResultLog) -> None:
    """Measure every kind of text with every shape."""
    peak = machine.describe_machine(log)
    made: dict[str, Contestants] = {}
    for name, shape in models.get_shapes().items():
        with log.record_errors("embedding", model=name):
            made[name] = Contestants.build(log, name, models.build_model(shape))
    cells = [(name, kind) for kind in models.LENGTHS for name in made]
    weights = [TIME_SHARES.get(name, 1.0) for name, _ in cells]
    for number, (name, kind) in enumerate(cells):
        share = log.seconds_left() * weights[number] / sum(weights[number:])
        if log.seconds_left() < 3:
            log.write_row("skipped", model=name, lengths=kind, why="no time left")
            continue
        with log.record_errors("embedding", model=name, lengths=kind):
            EmbeddingBenchmark(log, name, kind, made[name], peak, time.time() + share).measure()
        release_memory()


@dataclass
class TimedRuns:
    """The times of one side."""

    run: EncodeTexts
    seconds: list[float] = field(default_factory=list)
    peak_mb: float = 0.0

    def run_once(self, texts: list[str]) -> float:
        """Run once and store the seconds and the peak memory."""
        memory.reset_peak_memory()
        self.seconds.append(measure_seconds(lambda: self.run(texts)))
        self.peak_mb = max(self.peak_mb, memory.get_peak_memory_mb())
        return self.seconds[-1]


@dataclass(frozen=True)
class Contestants:
    """One model on both sides. The peer is None if it could not be built, which is a row of its own."""

    model: Any
    ours: EncodeTexts
    peer: Any | None

    @staticmethod
    def build(log: ResultLog, name: str, model: Any) -> "Contestants":
        """Build both sides once for all kinds of text: a vocabulary of 152,000 words takes seconds to load."""
        tokenizer = models.build_tokenizer(int(model.config.vocab_size))
        peer = None
        with log.record_errors("peer", model=name):
            peer = build_sentence_transformer(model, tokenizer, MAX_LENGTH)
        return Contestants(model, build_retbench_run(model, tokenizer), peer)


@dataclass
class EmbeddingBenchmark:
    """One model with one kind of text."""

    log: ResultLog
    name: str
    kind: str
    contestants: Contestants
    peak: float
    deadline: float

    @property
    def model(self) -> Any:
        """The model of both sides."""
        return self.contestants.model

    def measure(self) -> None:
        """Run both sides in turns, then write one row."""
        texts = models.draw_texts(self.kind, TOKENS.get(self.name, 4000), int(self.model.config.vocab_size))
        ours = TimedRuns(self.contestants.ours)
        few = texts[: max(8, len(texts) // 8)]
        ours.run(few)
        self._write_timing("ours", ours.run_once(texts))
        best, batch, tried, near = None, None, {}, None
        with self.log.record_errors("peer", model=self.name, lengths=self.kind):
            tried = self._time_peers(few, texts)
            batch = min(tried, key=lambda size: tried[size].seconds[0], default=None)
            best = tried.get(batch or 0)
            near = compute_min_cosine(ours.run(texts[:8]), best.run(texts[:8])) if best else None
        while time.time() < self.deadline and len(ours.seconds) < REPEATS:
            self._write_timing("ours", ours.run_once(texts))
            if best:
                self._write_timing(f"sentence-transformers {batch}", best.run_once(texts))
        self._write_row(texts, ours, best, batch=batch, least_cosine=near,
                  tried={size: round(side.seconds[0], 3) for size, side in tried.items()})  # fmt: skip

    def _time_peers(self, few: list[str], texts: list[str]) -> dict[int, TimedRuns]:
        """Run sentence-transformers once with each batch size, while there is time."""
        tried: dict[int, TimedRuns] = {}
        for size in BATCH_SIZES if self.contestants.peer else ():
            if tried and time.time() > self.deadline:
                break
            side = TimedRuns(build_sentence_transformers_run(self.contestants.peer, self.model, size))
            try:
                side.run(few)
                self._write_timing(f"sentence-transformers {size}", side.run_once(texts))
                tried[size] = side
            except torch.OutOfMemoryError:
                self._write_timing(f"sentence-transformers {size}", float("inf"))
            release_memory()
        return tried

    def _write_timing(self, side: str, taken: float) -> None:
        self.log.write_row("timing", model=self.name, lengths=self.kind, side=side, seconds=round(taken, 3))

    def _write_row(self, texts: list[str], ours: TimedRuns, best: TimedRuns | None, **facts: Any) -> None:
        tokens = sum(text.count(" ") + 1 for text in texts)
        pace = tokens / compute_median(ours.seconds)
        work = 2 * models.count_linear_weights(self.model)
        found: dict[str, Any] = {
            "model": self.name, "lengths": self.kind, "texts": len(texts), "tokens": tokens, "measured": CUDA,
            "tokens_per_second": round(pace), "share_of_peak": round(pace * work / self.peak, 4),
            "share_is": "of the products of linear layers; attention is not counted",
            "peak_mb": round(ours.peak_mb), "repeats": len(ours.seconds),
            "seconds": [round(one, 3) for one in ours.seconds],
        }  # fmt: skip
        if best:
            theirs = tokens / compute_median(best.seconds)
            found |= {"their_tokens_per_second": round(theirs), "times_theirs": round(pace / theirs, 3),
                      "their_peak_mb": round(best.peak_mb), "their_repeats": len(best.seconds)}  # fmt: skip
        self.log.write_row("embedding", **found, **facts)


def build_retbench_run(model: Any, tokenizer: Any) -> EncodeTexts:
    """Our side: embed into a new shard store, as a run does."""
    method = catalog.find_method("last")
    spec = EncoderSpec("random", method, "", MAX_LENGTH, MAX_LENGTH, "bfloat16")
    backbone = Backbone(model, tokenizer, True, "bfloat16", DEVICE)
    encoder = BackboneEncoder(spec, backbone, PromptTokenizer(tokenizer, method))

    def run(texts: list[str]) -> np.ndarray:
        folder = Path(tempfile.mkdtemp())
        workers = InProcessWorker(lambda: encoder)
        job = EmbeddingJob(
            _store_texts(texts, folder / "texts.arrow"),
            ("text",),
            "document",
            embedding_retriever.compute_token_budget(*workers.device),
        )
        found = np.empty((len(texts), encoder.dimension), dtype=np.float32)
        for block in embed_texts(workers, job, ShardStore(folder / "store"), lambda *_: None):
            found[block.rows] = block.vectors
        shutil.rmtree(folder)
        return found

    return run


def _store_texts(texts: list[str], file: Path) -> Texts:
    columns = {"id": [str(row) for row in range(len(texts))], "title": [""] * len(texts), "text": texts}
    with pa.ipc.new_file(str(file), SCHEMA) as out:
        out.write_table(pa.table(columns, schema=SCHEMA))
    return Texts.open(file, "drawn")


def build_sentence_transformers_run(peer: Any, model: Any, batch: int) -> EncodeTexts:
    """The other side: `SentenceTransformer.encode`, with flash attention if its package is here."""

    def run(texts: list[str]) -> np.ndarray:
        if find_spec("flash_attn"):
            model.set_attn_implementation("flash_attention_2")
        try:
            return np.asarray(peer.encode(texts, batch_size=batch, show_progress_bar=False))
        finally:
            model.set_attn_implementation("sdpa")  # as our side needs it

    return run


def compute_min_cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The smallest cosine of corresponding rows; both matrices are normalised."""
    return round(float((ours * theirs).sum(axis=1).min()), 5)
