"""A fork that runs one retbench command and injects a fault at a chosen moment of a chosen phase.

A moment is the number of Python calls, returns and calls into C since the phase began. A run without a fault counts
them, so a test can draw one of them, and the fault happens exactly there without a clock: between two files, between a
write and its rename, inside a step. SIGKILL cannot be caught.
"""

import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import huggingface_hub
import numpy as np

from retbench.cli import report as report_verb
from retbench.cli.main import app
from retbench.corpora import collection_cache
from retbench.encoders import embed_texts
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.pipelines import push
from retbench.pipelines.finetuning import train_adaptor
from retbench.pipelines.models import model, search
from retbench.pipelines.mteb_bridge import export_results
from retbench.pipelines.reranking import chain
from retbench.pipelines.runs import build_record
from retbench.pipelines.studies import status
from retbench.records import results_folder
from retbench.retrievers import exact_search, inverted_index
from retbench.scoring import metrics
from retbench.training import checkpoint, save_model, search_adaptor, sentence_transformers_export, train_loop
from tests import fork_server

PHASES: dict[str, Callable[..., Any]] = {
    "collection": collection_cache.compile_collection,
    "embedding": embed_texts.embed_texts,
    "search": exact_search.ExactSearch.add_block,
    "inverted index": inverted_index.InvertedIndex.add_block,
    "sparse search": inverted_index.InvertedIndex.search,
    "retrieval by words": search.LexicalRetriever.rank,
    "scoring": metrics.score_run,
    "record": results_folder.ResultsFolder.write_run,
    "training": train_loop.TrainLoop._train_step,
    "checkpoint": checkpoint.save_checkpoint,
    "model": save_model.save_model,
    "note": status.write_note,
    "report": report_verb.report.__wrapped__,  # type: ignore[attr-defined]
    "rerank": chain.rerank_queries,
    "adaptor training": search_adaptor.search_loss_weights,
    "adaptor file": train_adaptor._write_adaptor,
    "sentence-transformers": sentence_transformers_export.export_sentence_transformers,
    "mteb": export_results._save_result,
    "push": push.push_model,
}


YEAR = 365 * 24 * 3600.0  # seconds


class MomentCounter:
    """Counts the moments of a phase, and sends the process a signal at one of them."""

    def __init__(self, phase: str, moment: int | None, number: int) -> None:
        self.code: CodeType = PHASES[phase].__code__  # type: ignore[attr-defined]
        self.signal_at, self.number = moment, number
        self.depth = self.count = 0

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        in_phase = frame.f_code is self.code
        self.depth += in_phase and event == "call"
        if self.depth:
            self.count += 1
            if self.count == self.signal_at:
                os.kill(os.getpid(), self.number)
        self.depth -= in_phase and event == "return"


@dataclass(frozen=True)
class MemoryHungryEncoder:
    """An encoder that allocates memory in proportion to the batch."""

    encoder: Any
    bytes_per_text: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def encode(self, batch: TokenizedTexts) -> np.ndarray:
        import torch

        torch.empty(len(batch) * self.bytes_per_text, dtype=torch.uint8)
        vectors: np.ndarray = self.encoder.encode(batch)
        return vectors


@dataclass(frozen=True)
class FaultJob(fork_server.CellRun):
    """A command and its fault. Its output goes to `<log>.said`, the count of moments to `<log>.moments`."""

    argv: tuple[str, ...] = ()
    environment: dict[str, str] | None = None
    phase: str = ""
    signal_at: int | None = None
    signal: int = signal.SIGKILL
    memory_headroom: int = 0  # bytes of memory above those of the forked process
    bytes_per_text: int = 0  # bytes that the encoder allocates per text
    open_files: int = 0  # the most files that may be open
    file_bytes: int = 0  # the largest size of a file that is written
    clock_seed: int = 0  # the seed of a jumping clock
    keep_encoder: bool = False  # use the encoder of the command

    def run(self) -> int:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # the process group may ignore it
        output = os.open(f"{self.log}.said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1), os.dup2(output, 2)
        self.install_encoder()
        os.environ.update(self.environment or {})
        tempfile.tempdir = None  # so that TMPDIR is read again
        if endpoint := os.environ.get("HF_ENDPOINT"):  # the library has read the environment before the fork
            huggingface_hub.constants.ENDPOINT, huggingface_hub.constants.HF_HUB_OFFLINE = endpoint, False
        if self.phase:
            moments = MomentCounter(self.phase, self.signal_at, self.signal)
            sys.setprofile(moments)
        try:
            app(list(self.argv))
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            sys.setprofile(None)
            sys.stdout.flush(), sys.stderr.flush()
        if self.phase and self.signal_at is None:
            Path(f"{self.log}.moments").write_text(str(moments.count))
        return code

    def install_encoder(self) -> None:
        load_encoder = model.ResolvedModel.load_encoder
        super().install_encoder()
        if self.keep_encoder:
            model.ResolvedModel.load_encoder = load_encoder  # type: ignore[method-assign]
        if self.bytes_per_text:
            install_memory_hungry_encoder(self.bytes_per_text)
        if self.clock_seed:
            install_jumping_clock(random.Random(self.clock_seed))
        if self.memory_headroom:
            limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + self.memory_headroom
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        if self.open_files:
            resource.setrlimit(resource.RLIMIT_NOFILE, (self.open_files, self.open_files))
        if self.file_bytes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_bytes, self.file_bytes))

    def count_moments(self, server: fork_server.ForkServer) -> int:
        """Count the moments of the phase in a run without a fault."""
        server.start(replace(self, signal_at=None))
        assert server.wait_for_exit() == 0, self.read_output()
        return int(Path(f"{self.log}.moments").read_text())

    def read_output(self) -> str:
        return Path(f"{self.log}.said").read_text()


def install_memory_hungry_encoder(bytes_per_text: int) -> None:
    load = model.ResolvedModel.load_encoder

    def encoder(self: model.ResolvedModel, spec: EncoderSpec) -> MemoryHungryEncoder:
        return MemoryHungryEncoder(load(self, spec), bytes_per_text)

    model.ResolvedModel.load_encoder = encoder  # type: ignore[method-assign,assignment]


def install_jumping_clock(rng: random.Random) -> None:
    """Make every reading of the wall clock jump by one to two years, forwards or back."""
    now = time.time

    def jumped() -> float:
        return now() + rng.choice((-1, 1)) * rng.uniform(1, 2) * YEAR

    class Jumping(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(jumped(), tz)

    time.time = jumped
    time.time_ns = lambda: int(jumped() * 1e9)
    build_record.datetime = Jumping  # type: ignore[misc]


if __name__ == "__main__":
    fork_server.serve_forks(FaultJob)
