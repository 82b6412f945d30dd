"""Crash recovery: killed, out of disk, out of memory, damaged or started twice, a run has the same result."""

import dataclasses
import errno
import gzip
import json
import logging
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retbench.cards import catalog
from retbench.encoders.dense_encoder import DenseEncoder
from retbench.encoders.embed_texts import EmbeddingJob, embed_texts
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.encoders.shard_tasks import InProcessWorker
from retbench.engines import memory
from retbench.errors import DataError, ResourceError
from retbench.store.shard_store import ShardStore
from retbench.store.vector_formats import compute_row_bytes
from tests import fork_server, tiny_models

DOCUMENTS, QUERIES = 44, 6
TEXTS = DOCUMENTS + QUERIES
COMPARED_FILES = ("per_query.parquet", "run.trec.gz")
MEASURED = ("seconds", "peak_memory_mb", "most_in_flight")  # facts of a record that differ from run to run
METHOD = catalog.find_method("mean")


def write_collection(folder: Path) -> Path:
    """Write documents of many lengths, and queries with one relevant document each."""
    (folder / "qrels").mkdir(parents=True)
    rng = random.Random(5)
    words = " ".join(tiny_models.SENTENCES).split()
    lines = [{"_id": f"d{i}", "title": "", "text": " ".join(rng.choices(words, k=1 + i))} for i in range(DOCUMENTS)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    query_rows = [{"_id": f"q{i}", "text": " ".join(rng.choices(words, k=4))} for i in range(QUERIES)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in query_rows))
    judged = "".join(f"q{i}\td{rng.randrange(DOCUMENTS)}\t1\n" for i in range(QUERIES))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}")
    return folder


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_collection(tmp_path_factory.mktemp("tasks") / "killed")


@pytest.fixture
def work(model: Path, task: Path, tmp_path: Path) -> Callable[..., fork_server.CellRun]:
    def make(name: str, **changes: Any) -> fork_server.CellRun:
        cache = str(tmp_path / f"cache-{name}")
        return fork_server.CellRun(
            str(model), str(task), str(tmp_path / name), cache, str(tmp_path / f"{name}.log"), **changes
        )

    return make


def read_results(work: fork_server.CellRun) -> dict[str, Any]:
    """Read the results of a finished run that must not depend on kills."""
    (record,) = Path(work.out).rglob("record.json")
    facts = json.loads(record.read_text())
    texts = {
        role: {key: value for key, value in about.items() if key not in MEASURED} if isinstance(about, dict) else about
        for role, about in facts["texts"].items()
    }
    files = {name: (record.parent / name).read_bytes() for name in COMPARED_FILES}
    return {"scores": facts["scores"], "texts": texts, "settings": facts["settings_id"], **files}


def assert_seconds_add_up(work: fork_server.CellRun) -> None:
    """Check that a phase took at least the seconds of its shards, also of those that earlier processes computed."""
    (record,) = Path(work.out).rglob("record.json")
    facts = json.loads(record.read_text())
    assert facts["cost"]["seconds"]["embed and search documents"] >= facts["texts"]["document"]["seconds"] > 0
    assert facts["texts"]["document"]["seconds"] >= work.delay * DOCUMENTS / fork_server.SHARD_ROWS


def run_to_end(server: fork_server.ForkServer, work: fork_server.CellRun) -> None:
    server.start(work)
    assert server.wait_for_exit() == 0


def kill_until_finished(
    server: fork_server.ForkServer, work: fork_server.CellRun, rng: random.Random, longest: float
) -> int:
    """Kill a run at random moments until it finishes; return the number of kills."""
    kills = 0
    while server.start_and_kill(work, rng.uniform(0, longest)):
        kills += 1
        assert (
            work.count_computed_texts() <= TEXTS + kills * fork_server.SHARD_ROWS
        )  # each kill loses at most one shard
        assert kills < 100
    return kills


@pytest.mark.parametrize(("real", "min_texts"), [(False, 15), (True, 3)], ids=["fake", "decoder"])
def test_a_killed_run_resumes_to_the_same_result(
    server: fork_server.ForkServer, work: Callable[..., fork_server.CellRun], real: bool, min_texts: int
) -> None:
    uninterrupted = work("whole", real=real)
    run_to_end(server, work("warm", real=real))
    started = time.monotonic()
    run_to_end(server, uninterrupted)
    longest = time.monotonic() - started
    assert uninterrupted.count_computed_texts() == TEXTS
    expected, rng, attempts = read_results(uninterrupted), random.Random(11), 0
    kills = halfway = 0  # halfway: runs in which a shard was lost and computed again
    while kills < min_texts or not halfway:
        attempts += 1
        assert attempts < 60
        broken = work(f"broken{attempts}", real=real)
        kills += kill_until_finished(server, broken, rng, longest)
        run_to_end(server, broken)
        assert read_results(broken) == expected
        assert_seconds_add_up(broken)
        halfway += broken.count_computed_texts() > TEXTS


def test_two_processes_share_the_work(work: Callable[..., fork_server.CellRun], server: fork_server.ForkServer) -> None:
    first, second = work("one"), work("two")
    second = dataclasses.replace(second, cache=first.cache, log=first.log)
    server.start(first)
    server.start(second)
    assert (server.wait_for_exit(), server.wait_for_exit()) == (0, 0)
    assert first.count_computed_texts() == TEXTS  # each text was computed once, by one of the two processes
    assert read_results(first) == read_results(second)


def open_document_store(work: fork_server.CellRun) -> ShardStore:
    """Open the finished store with a cell's documents."""
    stores = [ShardStore(plan.parent) for plan in Path(work.cache).rglob("plan.json")]
    return max(stores, key=lambda store: store.load_or_create_plan(dict)["rows"])


def test_a_damaged_shard_is_reported_and_computed_again(
    work: Callable[..., fork_server.CellRun], server: fork_server.ForkServer, tmp_path: Path
) -> None:
    done = work("done")
    run_to_end(server, done)
    expected = read_results(done)
    store = open_document_store(done)
    file = store.folder / "shard-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    shutil.rmtree(done.out)
    run_to_end(server, done)
    assert read_results(done) == expected
    assert done.count_computed_texts() == TEXTS + fork_server.SHARD_ROWS


# One store, in this process


class GeneratedRows:
    """Texts that are generated on access."""

    def __init__(self, count: int) -> None:
        self.count, self.fingerprint, self.images = count, "rows", None

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return iter(self[row] for row in range(self.count))

    def __getitem__(self, row: int) -> Any:
        from retbench.corpora.rows import TextRow

        return TextRow(f"d{row}", "", "word " * (1 + row % 7))


class MemoryLimitedEncoder(fork_server.HashEncoder):
    """An encoder without a tokenizer and with a memory limit per batch."""

    room = 1000

    def tokenize(self, texts: Any, role: Any) -> TokenizedTexts:
        rows = [np.arange(len(text.split()), dtype=np.int32) for text in texts]
        offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
        return TokenizedTexts(np.concatenate(rows), offsets, 0, 0)

    def encode(self, batch: TokenizedTexts) -> np.ndarray:
        if len(batch) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return super().encode(batch)


@pytest.fixture
def job() -> EmbeddingJob:
    return EmbeddingJob(GeneratedRows(20), ("text",), "document", 16, shard_rows=5)  # type: ignore[arg-type]


def build_encoder_factory(room: int = 1000) -> Callable[[], DenseEncoder]:
    encoder = MemoryLimitedEncoder(EncoderSpec("w", METHOD, "", 9, 9, "float32"), None)
    object.__setattr__(encoder, "room", room)
    return lambda: encoder  # type: ignore[return-value]


def embed_to_matrix(job: EmbeddingJob, store: ShardStore, make: Callable[[], DenseEncoder]) -> np.ndarray:
    matrix = np.zeros((len(job.texts), fork_server.WIDTH), dtype=np.float32)
    for block in embed_texts(InProcessWorker(make), job, store, lambda *_: None):
        matrix[block.rows] = block.vectors
    return matrix


def test_damage_in_an_unfinished_store_is_reported(
    job: EmbeddingJob, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uninterrupted = embed_to_matrix(job, ShardStore(tmp_path / "whole"), build_encoder_factory())
    store = ShardStore(tmp_path / "broken")
    blocks = embed_texts(InProcessWorker(build_encoder_factory()), job, store, lambda *_: None)
    next(blocks), next(blocks)
    blocks.close()
    (store.folder / "shard-00001.safetensors").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "retbench"):
        assert np.array_equal(embed_to_matrix(job, store, build_encoder_factory()), uninterrupted)
    assert [record.getMessage() for record in caplog.records] == ["shard 1 of broken is damaged: it is computed again"]


def test_a_batch_that_does_not_fit_is_halved_and_reported(job: EmbeddingJob, tmp_path: Path) -> None:
    uninterrupted = embed_to_matrix(job, ShardStore(tmp_path / "whole"), build_encoder_factory())
    halved_store = ShardStore(tmp_path / "halved")
    assert np.array_equal(embed_to_matrix(job, halved_store, build_encoder_factory(room=2)), uninterrupted)
    assert halved_store.compute_total_cost().split_batches > 0
    assert ShardStore(tmp_path / "whole").compute_total_cost().split_batches == 0


def test_a_single_text_that_does_not_fit_is_an_error(job: EmbeddingJob, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="one document of 7 tokens does not fit into memory") as caught:
        embed_to_matrix(job, ShardStore(tmp_path / "store"), build_encoder_factory(room=0))
    assert "max_length" in caught.value.next_step


# (exception, whether it means out of memory)
PROBLEMS = {
    "cuda": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), True),
    "cpu": (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"), True),
    "python": (MemoryError(), True),
    "cuda itself": (
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        True,
    ),
    "cublas": (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
    "a shape": (RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"), False),
    "an index": (RuntimeError("index out of range in self"), False),
    "cuda, but no memory": (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
}


@pytest.mark.parametrize(("problem", "expected"), PROBLEMS.values(), ids=PROBLEMS)
def test_only_out_of_memory_errors_split_a_batch(
    problem: Exception, expected: bool, job: EmbeddingJob, tmp_path: Path
) -> None:
    assert memory.is_out_of_memory(problem) is expected
    calls = []

    class Failing(MemoryLimitedEncoder):
        def encode(self, batch: TokenizedTexts) -> np.ndarray:
            calls.append(len(batch))
            raise problem

    encoder = Failing(EncoderSpec("w", METHOD, "", 9, 9, "float32"), None)
    with pytest.raises(ResourceError if expected else type(problem)):
        embed_to_matrix(job, ShardStore(tmp_path / "store"), lambda: encoder)  # type: ignore[arg-type,return-value]
    assert (len(calls) > 1) is expected


@pytest.mark.parametrize(("longest", "budget"), [(100, 300), (3_000, 3_000), (9_000, 9_000)])
def test_a_memory_probe_out_of_memory_runs_long_texts_alone(
    longest: int, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fake GPU holds 5,000 tokens of 1 MB each; the token budget allows 20,000."""
    monkeypatch.setattr(memory, "get_device_type", lambda: "cuda")
    held = {"max_memory_allocated": 0, "memory_reserved": 0, "memory_allocated": 0}
    for name in held:
        monkeypatch.setattr(torch.cuda, name, partial(held.get, name))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (375_000_000, 0))
    for name in ("reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)

    def run(count: int) -> None:
        if count * longest > 5_000:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        held["max_memory_allocated"] = count * longest * 1_000_000

    assert memory.compute_token_budget(run, longest, 20_000) == budget


def test_too_little_disk_space_is_refused_before_embedding(
    job: EmbeddingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 20 * compute_row_bytes(fork_server.WIDTH, "fp32")
    for free, fits in ((needed - 1, False), (needed, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: shutil._ntuple_diskusage(free, 0, free))  # type: ignore[attr-defined]
        store = ShardStore(tmp_path / str(free))
        if fits:
            assert embed_to_matrix(job, store, build_encoder_factory()).any()
        else:
            with pytest.raises(ResourceError, match=r"GB free and this needs .* GB"):
                embed_to_matrix(job, store, build_encoder_factory())
            assert not list(store.folder.glob("shard-*"))


def test_a_full_disk_reports_what_is_kept_and_needed(
    job: EmbeddingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted, store = (
        embed_to_matrix(job, ShardStore(tmp_path / "whole"), build_encoder_factory()),
        ShardStore(tmp_path / "full"),
    )
    fsync, remaining_syncs = os.fsync, iter(range(10))  # enough for the plan and two shards

    def filling(handle: int) -> None:
        if next(remaining_syncs, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", filling)
        with pytest.raises(ResourceError, match="No space left on device") as caught:
            embed_to_matrix(job, store, build_encoder_factory())
    assert caught.value.next_step.endswith("then run the same command: 2 of 4 shards are kept")
    assert not list(store.folder.glob("*.partial"))
    assert np.array_equal(embed_to_matrix(job, store, build_encoder_factory()), uninterrupted)


def test_temporary_files_of_a_killed_writer_are_removed(job: EmbeddingJob, tmp_path: Path) -> None:
    store = ShardStore(tmp_path / "store")
    store.folder.mkdir()
    (store.folder / "shard-00000.safetensors.123.partial").write_bytes(b"half")
    embed_to_matrix(job, store, build_encoder_factory())
    assert not list(store.folder.glob("*.partial"))


def test_a_plan_keeps_its_budget_and_threads(
    job: EmbeddingJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, used = ShardStore(tmp_path / "store"), []
    blocks = embed_texts(InProcessWorker(build_encoder_factory()), job, store, lambda *_: None)
    next(blocks)
    blocks.close()
    plan = json.loads((store.folder / "plan.json").read_text())
    assert (plan["budget"], plan["threads"]) == (16, torch.get_num_threads())
    del plan["seal"]
    (store.folder / "plan.json").write_text(json.dumps({**plan, "threads": 3}))
    monkeypatch.setattr(torch, "set_num_threads", used.append)
    embed_to_matrix(dataclasses.replace(job, budget=1000), store, build_encoder_factory())
    assert set(used) == {3}
    assert store.load_or_create_plan(dict)["budget"] == 16


def test_a_plan_for_other_tokens_is_refused(job: EmbeddingJob, tmp_path: Path) -> None:
    store = ShardStore(tmp_path / "store")
    next(embed_texts(InProcessWorker(build_encoder_factory()), job, store, lambda *_: None))
    with pytest.raises(DataError, match="was planned for other tokens"):
        embed_to_matrix(dataclasses.replace(job, texts=GeneratedRows(21)), store, build_encoder_factory())  # type: ignore[arg-type]


def test_a_run_file_does_not_depend_on_the_time(
    work: Callable[..., fork_server.CellRun], server: fork_server.ForkServer
) -> None:
    first, second = work("one"), work("two")
    run_to_end(server, first)
    time.sleep(1.1)  # gzip stores the time in seconds
    run_to_end(server, second)
    assert read_results(first) == read_results(second)
    assert gzip.decompress(read_results(first)["run.trec.gz"]).decode().startswith("q0 Q0 d")


def test_a_small_collection_keeps_its_finished_shards(job: EmbeddingJob, tmp_path: Path) -> None:
    """One stripe holds all 20 texts; the encoder's estimate cuts it, and no vector depends on the cut."""
    whole = embed_to_matrix(
        dataclasses.replace(job, shard_rows=2048), ShardStore(tmp_path / "whole"), build_encoder_factory()
    )
    load_encoder = build_encoder_factory()
    object.__setattr__(load_encoder(), "shard_tokens", 16)
    store = ShardStore(tmp_path / "cut")
    blocks = embed_texts(
        InProcessWorker(load_encoder), dataclasses.replace(job, shard_rows=2048), store, lambda *_: None
    )
    next(blocks), next(blocks)
    blocks.close()
    plan = store.load_or_create_plan(dict)
    assert (plan["shard_tokens"], plan["shards"] > 3) == (16, True)
    written = {file: file.read_bytes() for file in store.folder.glob("shard-*")}
    assert len(written) == 4  # two shards and their metadata
    assert np.array_equal(
        embed_to_matrix(dataclasses.replace(job, shard_rows=2048), store, build_encoder_factory()), whole
    )
    assert {file: file.read_bytes() for file in written} == written
