"""On a GPU a thread computes the next shard while the last one is stored and searched; a CPU stands in here."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retbench.cards import catalog
from retbench.encoders import embed_texts as embed_module
from retbench.encoders import shard_tasks
from retbench.encoders.embed_texts import EmbeddingJob, embed_texts
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.encoders.shard_tasks import InProcessWorker
from retbench.engines import device as devices
from retbench.errors import DataError, ResourceError
from retbench.store.shard_store import ShardStore, VectorBlock

ROWS, SHARD_ROWS, BUDGET = 24, 6, 12
SHARDS = ROWS // SHARD_ROWS
TIMEOUT = 20  # seconds until a wait counts as a failure


@dataclass
class RecordingEncoder:
    """Vectors from token ids, and a list of what happened: begun, finished."""

    spec: EncoderSpec = field(
        default_factory=lambda: EncoderSpec("w", catalog.find_method("mean"), "", 9, 9, "float32")
    )
    dimension: int = 2
    kernel: str = "none"
    computed_dtype: str = "float32"
    shard_tokens: int | None = None
    room: int = 100  # texts that fit into memory
    bad_row: int | None = None
    events: list[tuple[str, int]] = field(default_factory=list)

    def tokenize(self, texts: object, role: str) -> TokenizedTexts:
        lengths = 1 + np.arange(ROWS) % 4
        return TokenizedTexts(np.repeat(np.arange(ROWS), lengths).astype(np.int32), np.r_[0, lengths.cumsum()], 0, 0)

    def encode(self, batch: TokenizedTexts) -> np.ndarray:
        return self.start_encoding(batch)()

    def start_encoding(self, batch: TokenizedTexts) -> Callable[[], np.ndarray]:
        if len(batch) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        number = sum(event == "begun" for event, _ in self.events)
        self.events.append(("begun", number))
        rows = np.array([ids[0] for ids in batch])
        vectors = np.stack([1 + rows, np.where(rows == self.bad_row, np.nan, rows)], axis=1).astype(np.float32)

        def finish() -> np.ndarray:
            self.events.append(("finished", number))
            return vectors

        return finish

    def peak_throughput(self) -> None:
        """Unknown."""


class NumberedTexts:
    """Texts whose ids are their rows."""

    fingerprint, images, prefers_images = "rows", None, False

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> object:
        return type("Row", (), {"id": f"d{row}", "title": "", "text": ""})

    def __iter__(self) -> object:
        return (self[row] for row in range(ROWS))


JOB = EmbeddingJob(NumberedTexts(), ("text",), "document", BUDGET, SHARD_ROWS)  # type: ignore[arg-type]


def ignore_progress(*_: int) -> None:
    pass


def refuse_to_load() -> Any:
    raise AssertionError("a complete store needs no model")


def embed(encoder: RecordingEncoder, folder: Path) -> list[VectorBlock]:
    return list(embed_texts(InProcessWorker(lambda: encoder), JOB, ShardStore(folder), ignore_progress))  # type: ignore[arg-type,return-value]


@pytest.fixture
def overlapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_tasks, "OVERLAPPED_DEVICES", ("cpu",))


def read_shards(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}


def test_the_shards_are_those_of_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = embed(RecordingEncoder(), tmp_path / "plain")
    monkeypatch.setattr(shard_tasks, "OVERLAPPED_DEVICES", ("cpu",))
    ahead = embed(RecordingEncoder(), tmp_path / "ahead")
    assert [block.rows.tolist() for block in ahead] == [block.rows.tolist() for block in plain]
    assert read_shards(tmp_path / "ahead") == read_shards(tmp_path / "plain")


def test_the_next_shard_is_computed_while_one_is_read(overlapped: None, tmp_path: Path) -> None:
    encoder, store = RecordingEncoder(), ShardStore(tmp_path / "store")
    blocks = embed_texts(InProcessWorker(lambda: encoder), JOB, store, ignore_progress)  # type: ignore[arg-type,return-value]
    next(blocks)  # the reader now writes nothing and waits
    deadline = time.monotonic() + TIMEOUT
    batches_of_two_shards = 2 * count_batches(store)
    while count_finished(encoder) < batches_of_two_shards and time.monotonic() < deadline:
        time.sleep(0.002)
    assert count_finished(encoder) == batches_of_two_shards, "the second shard, and not the third"
    assert not store.has_shard(1), "it is stored by the thread that reads it"
    assert sum(len(block.rows) for block in blocks) == ROWS - SHARD_ROWS


def count_batches(store: ShardStore) -> int:
    """The batches of each shard, which are the same for all: lengths are dealt out evenly."""
    lengths = np.sort(1 + np.arange(ROWS) % 4)[::-1][::SHARDS]
    count = start = 0
    while start < len(lengths):
        start += max(1, BUDGET // int(lengths[start]))
        count += 1
    return count


def count_finished(encoder: RecordingEncoder) -> int:
    return sum(event == "finished" for event, _ in encoder.events)


def test_a_batch_begins_before_the_last_one_has_arrived(overlapped: None, tmp_path: Path) -> None:
    encoder = RecordingEncoder()
    embed(encoder, tmp_path / "store")
    assert encoder.events[:3] == [("begun", 0), ("begun", 1), ("finished", 0)]
    assert count_finished(encoder) == len(encoder.events) / 2


def test_a_cpu_waits_for_each_batch(tmp_path: Path) -> None:
    encoder = RecordingEncoder()
    embed(encoder, tmp_path / "store")
    assert encoder.events[:3] == [("begun", 0), ("finished", 0), ("begun", 1)]


def test_memory_that_runs_out_halves_the_batch(overlapped: None, tmp_path: Path) -> None:
    embed(RecordingEncoder(), tmp_path / "plain")
    embed(RecordingEncoder(room=2), tmp_path / "halved")
    assert read_shards(tmp_path / "halved") == read_shards(tmp_path / "plain")
    assert ShardStore(tmp_path / "halved").compute_total_cost().split_batches > 0
    with pytest.raises(ResourceError, match="does not fit into memory"):
        embed(RecordingEncoder(room=0), tmp_path / "none")


def test_a_bad_vector_is_named_and_the_thread_stops(overlapped: None, tmp_path: Path) -> None:
    encoder = RecordingEncoder(bad_row=3)
    with pytest.raises(DataError, match="the vector of document 'd3'"):
        embed(encoder, tmp_path / "store")
    done = len(encoder.events)
    time.sleep(0.02)
    assert len(encoder.events) == done


def test_a_reader_that_stops_ends_the_thread_after_its_batch(overlapped: None, tmp_path: Path) -> None:
    before, encoder = threading.active_count(), RecordingEncoder()
    blocks = embed_texts(InProcessWorker(lambda: encoder), JOB, ShardStore(tmp_path / "s"), ignore_progress)  # type: ignore[arg-type,return-value]
    next(blocks)
    blocks.close()
    done = len(encoder.events)
    wait_for_threads(before)
    assert len(encoder.events) == done
    assert len(embed(RecordingEncoder(), tmp_path / "s")) == SHARDS


def wait_for_threads(count: int) -> None:
    """The executor's thread ends when nobody holds the executor any more."""
    deadline = time.monotonic() + TIMEOUT
    while threading.active_count() > count and time.monotonic() < deadline:
        time.sleep(0.002)
    assert threading.active_count() <= count


def test_finished_shards_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another thread, and no further than the number of readers allows: memory holds few shards."""
    embed(RecordingEncoder(), tmp_path / "store")
    monkeypatch.setattr(embed_module, "READERS", 1)
    reads: list[tuple[int, bool]] = []
    read_shard = ShardStore.read_shard

    def record_read(store: ShardStore, shard: int) -> VectorBlock | None:
        reads.append((shard, threading.current_thread() is threading.main_thread()))
        return read_shard(store, shard)

    monkeypatch.setattr(ShardStore, "read_shard", record_read)
    blocks = embed_texts(InProcessWorker(refuse_to_load), JOB, ShardStore(tmp_path / "store"), ignore_progress)
    next(blocks)
    deadline = time.monotonic() + TIMEOUT
    while len(reads) < 2 and time.monotonic() < deadline:
        time.sleep(0.002)
    assert reads == [(0, False), (1, False)]
    assert len(list(blocks)) == SHARDS - 1
    assert reads == [(shard, False) for shard in range(SHARDS)]


def test_copies_need_no_gpu() -> None:
    """On a CPU the helpers change nothing; on a GPU tests/cuda compares the vectors that they carry."""
    tensor = torch.arange(6.0).view(2, 3)
    assert devices.copy_to_device(tensor, torch.device("cpu")) is tensor
    np.testing.assert_array_equal(devices.start_copy_to_host(tensor)(), tensor.numpy())
    with devices.use_search_stream():
        assert not torch.cuda.is_initialized()
