"""The worker pool: worker processes give the bits of a single one, and the shards of a dead worker are reassigned."""

import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from retbench.cards import catalog
from retbench.cards.compute_target import LocalTarget, RayTarget, parse_compute_target
from retbench.cards.engine import Engine
from retbench.cards.study import Stage, Study
from retbench.encoders.embed_texts import EmbeddingJob, embed_texts
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.encoders.shard_tasks import EncoderProfile, OnBatch
from retbench.engines import device
from retbench.engines.fingerprints import compute_folder_fingerprint
from retbench.engines.weights import obtain_weights
from retbench.errors import BadVectorError, DataError, ResourceError, ShardNotWrittenError, UsageError
from retbench.pipelines.evaluation import evaluate
from retbench.pipelines.evaluation.request import EvaluationRequest
from retbench.pipelines.models import local_workers, worker_pool
from retbench.pipelines.models.model import ResolvedModel
from retbench.pipelines.models.worker_pool import LostWorkerError, WorkerPool, WorkItem, WorkResult
from retbench.pipelines.reranking.base import ModelResolver
from retbench.pipelines.studies import run as run_module
from retbench.records.phase_timer import GetPeakThroughput, NoProgress
from retbench.retrievers.dense_retriever import DenseRetriever
from retbench.store.shard_store import ShardStore, VectorBlock
from tests import small_collection

ROWS = 40
IGNORED_COSTS = ("peak_memory_mb", "seconds", "workers")


def test_the_devices_option_is_parsed() -> None:
    assert (parse_compute_target("1"), parse_compute_target("8"), parse_compute_target("all")) == (
        LocalTarget(1),
        LocalTarget(8),
        LocalTarget(0),
    )
    expected = parse_compute_target("ray:store=s3://bucket/place,address=ray://head:10001,workers=4")
    assert expected == RayTarget("s3://bucket/place", "ray://head:10001", 4)
    for argument, device_count in {
        "0": "no compute target '0'",
        "gpu": "no compute target",
        "²": "no compute target",
        "ray": "a store that all",
    }.items():
        with pytest.raises(UsageError, match=device_count):
            parse_compute_target(argument)


def test_one_worker_per_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(local_workers, "get_device", lambda: torch.device("cuda"))
    monkeypatch.setenv(local_workers.VISIBLE_DEVICES, "2,GPU-7,5")
    assert [slot.gpu for slot in local_workers.list_device_slots(0)] == ["2", "GPU-7", "5"]
    assert [slot.gpu for slot in local_workers.list_device_slots(2)] == ["2", "GPU-7"]
    with pytest.raises(UsageError, match="has 3 GPUs"):
        local_workers.list_device_slots(4)
    monkeypatch.delenv(local_workers.VISIBLE_DEVICES)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [slot.gpu for slot in local_workers.list_device_slots(0)] == ["0", "1"]


def test_cpu_workers_share_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_workers.memory, "get_thread_count", lambda: 8)
    assert device.get_device().type == "cpu"
    assert [slot.threads for slot in local_workers.list_device_slots(0)] == [8]
    assert [slot.threads for slot in local_workers.list_device_slots(3)] == [2, 2, 2]
    assert [slot.threads for slot in local_workers.list_device_slots(9)] == [1] * 9
    with local_workers.open_worker_pool("1") as alone, local_workers.open_worker_pool("all") as all_devices:
        assert alone is all_devices is None


# The pool with fake workers: deaths, errors, progress


class CountingRows:
    """Generated texts with the interface of a collection's texts."""

    fingerprint = "rows"
    images = None

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> Any:
        return type("Row", (), {"id": f"d{row}", "title": "", "text": "x " * (1 + row % 7)})

    def __iter__(self) -> Iterator[Any]:
        return (self[row] for row in range(ROWS))


@dataclass
class FakeWorker:
    """A worker whose vectors are row numbers; it may die at its n-th work item, and may come back."""

    dies_at: int = -1
    comes_back: bool = False
    answer: Exception | None = None
    waits_for: Event | None = None  # waits for this event before it finishes its first shard
    died: Event = field(default_factory=Event)
    orders: list[int] = field(default_factory=list)

    def run(self, order: WorkItem, tell: OnBatch) -> WorkResult | Exception:
        if isinstance(order.task, TokenizedTexts):
            return WorkResult(EncoderProfile("none", 2, 16, 1), 5.0)
        self.orders.append(order.task.shard)
        if self.waits_for:
            self.waits_for.wait()
        tell(order.task.batch_sizes[0], 1)
        if len(self.orders) - 1 == self.dies_at:
            self.died.set()
            return LostWorkerError("worker x ended with exit code -9")
        if self.answer:
            return self.answer
        assert order.destination
        vectors = np.stack([np.cos(order.task.rows), np.sin(order.task.rows)], axis=1).astype(np.float32)
        order.destination.write_shard(order.task.shard, VectorBlock(order.task.rows, vectors), 1, 0.5)
        tell(len(order.task.rows) - order.task.batch_sizes[0], 1)
        return WorkResult(None, 7.0)

    def wait_for_restart(self) -> bool:
        return self.comes_back

    def close(self) -> None:
        """Do nothing."""


@dataclass
class CountingEncoder(worker_pool.PooledEncoder):
    """A pooled encoder that counts words instead of tokens."""

    def tokenize(self, texts: Any, role: Any) -> TokenizedTexts:
        rows = [np.arange(len(text.split()), dtype=np.int32) for text in texts]
        return TokenizedTexts(np.concatenate(rows), np.concatenate(([0], np.cumsum([len(row) for row in rows]))), 0, 0)


def embed_with_workers(
    folder: Path, *workers: FakeWorker, told: Callable[..., None] = lambda *_: None
) -> list[VectorBlock]:
    job = EmbeddingJob(CountingRows(), ("text",), "document", 16, shard_rows=4)  # type: ignore[arg-type]
    with WorkerPool([partial(lambda first: first, player) for player in workers], "cpu", 1) as pool:
        shared = CountingEncoder(pool, None, EncoderSpec("w", catalog.find_method("mean"), "", 9, 9, "float32"))
        return list(embed_texts(shared, job, ShardStore(folder), told))


def is_complete(blocks: list[VectorBlock]) -> bool:
    return sorted(int(row) for block in blocks for row in block.rows) == list(range(ROWS))


def test_the_shards_of_a_dead_worker_are_reassigned(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[tuple[int, int]] = []
    dying = FakeWorker(dies_at=1)
    surviving = FakeWorker(waits_for=dying.died)
    blocks = embed_with_workers(
        tmp_path / "s", dying, surviving, told=lambda done, total, *_: seen.append((done, total))
    )
    assert is_complete(blocks)
    assert len(dying.orders) == 2
    assert dying.orders[1] in surviving.orders
    assert "exit code -9: another worker computes its shard" in caplog.text
    assert sum(done for done, _ in seen) == ROWS  # the progress of the dead worker's shard is taken back
    assert {total for _, total in seen} == {ROWS}
    assert ShardStore(tmp_path / "s").read_manifest() == {"peak_memory_mb": 7.0, "workers": 2}


@dataclass(frozen=True)
class FailingTask:
    """A work item whose device fails."""

    message: str

    def raise_error(self, *_: Any) -> None:
        raise RuntimeError(self.message)


@pytest.mark.parametrize(
    ("message", "is_lost"),
    [
        ("CUDA error: an illegal memory access was encountered\nCompile with ...", True),
        ("CUDA error: uncorrectable ECC error encountered", True),
        ("CUDA error: out of memory", False),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_a_worker_whose_gpu_fails_is_lost(monkeypatch: pytest.MonkeyPatch, message: str, is_lost: bool) -> None:
    state = worker_pool.WorkerState(1)
    monkeypatch.setattr(state, "_run_item", FailingTask(message).raise_error)
    result = state.run(None)  # type: ignore[arg-type]  # the item is not read
    assert isinstance(result, LostWorkerError) is is_lost
    assert isinstance(result, ResourceError) is (not is_lost and ("memory" in message or "ALLOC" in message))
    assert isinstance(result, Exception)


def test_shards_are_returned_in_order(tmp_path: Path) -> None:
    first = embed_with_workers(tmp_path / "one", FakeWorker())
    second = embed_with_workers(tmp_path / "other", FakeWorker(), FakeWorker())
    for left, right in zip(first, second, strict=True):
        np.testing.assert_array_equal(left.rows, right.rows)
        np.testing.assert_array_equal(left.vectors, right.vectors)


def test_without_workers_the_run_stops_and_keeps_finished_shards(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="no worker is left") as caught:
        embed_with_workers(tmp_path / "s", FakeWorker(dies_at=2), FakeWorker(dies_at=2))
    assert "finished shards are kept" in caught.value.next_step
    assert len(list((tmp_path / "s").glob("shard-*.json"))) == 4
    new_worker = FakeWorker()
    assert is_complete(embed_with_workers(tmp_path / "s", new_worker))
    assert len(new_worker.orders) == ROWS // 4 - 4


def test_a_restarted_worker_continues(tmp_path: Path) -> None:
    only = FakeWorker(dies_at=3, comes_back=True)
    assert is_complete(embed_with_workers(tmp_path / "s", only))
    assert len(only.orders) == ROWS // 4 + 1


# (error of a worker, error class and message of the pool)
PROBLEMS = {
    "a bad vector": (BadVectorError(6), DataError, "the vector of document 'd6' is zero or not a number"),
    "no room": (ShardNotWrittenError("s could not be written", ""), ResourceError, "s could not be written"),
    "expected": (ResourceError("one document of 7 tokens", "smaller"), ResourceError, "one document of 7 tokens"),
    "a bug": (RuntimeError("in a worker:\nTraceback"), RuntimeError, "in a worker:\nTraceback"),
}


@pytest.mark.parametrize(("answer", "kind", "words"), PROBLEMS.values(), ids=PROBLEMS)
def test_an_error_in_a_worker_is_raised_in_the_run(
    answer: Exception, kind: type[Exception], words: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=words):
        embed_with_workers(tmp_path / "s", FakeWorker(answer=answer), FakeWorker())


def test_a_bug_in_a_worker_is_raised_with_its_traceback() -> None:
    results = worker_pool.WorkerState(1).run(WorkItem(None, None, None))  # type: ignore[arg-type]
    assert isinstance(results, RuntimeError)
    assert "AttributeError" in str(results)


# Real worker processes


def read_results(results: Path) -> dict[str, Any]:
    """Read the results of a run that must not depend on the workers."""
    (file,) = results.rglob("record.json")
    record = json.loads(file.read_text())
    texts = {
        role: {k: v for k, v in about.items() if k not in IGNORED_COSTS} for role, about in record["texts"].items()
    }
    files = {name: (file.parent / name).read_bytes() for name in ("per_query.parquet", "run.trec.gz")}
    return {"scores": record["scores"], "id": record["settings_id"], "texts": texts, **files}


def run_cell(
    model: Path, task: Path, out: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> dict[str, Any]:
    monkeypatch.setenv("RETBENCH_CACHE", str(cache))
    (cell,) = evaluate.evaluate(EvaluationRequest((str(model),), (str(task),), ("mean",), out=out, **options))
    assert cell.error is None
    return read_results(out)


class KillWorkerDuringPhase(NoProgress):
    """Kill the first worker process at the first progress of the documents, when most shards are still open."""

    def __init__(self) -> None:
        self.phase, self.killed = "", 0

    def begin_phase(self, phase: str, unit: str, peak_throughput: GetPeakThroughput) -> None:
        self.phase = phase

    def advance(self, done: int, total: int, tokens: int = 0, left: int = 0) -> None:
        if "documents" in self.phase and tokens and not self.killed:
            child = multiprocessing.active_children()[0]
            self.killed = child.pid or 0
            os.kill(self.killed, signal.SIGKILL)


def test_two_processes_give_the_bits_of_one_even_if_one_is_killed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("retbench.retrievers.dense_retriever.DenseRetriever", partial(DenseRetriever, shard_rows=2))
    task = small_collection.write_folder(tmp_path / "small")
    alone = run_cell(model, task, tmp_path / "one", tmp_path / "c1", monkeypatch)
    show = KillWorkerDuringPhase()
    both = run_cell(model, task, tmp_path / "two", tmp_path / "c2", monkeypatch, devices="2", progress=show)
    assert both == alone
    assert show.killed
    assert "exit code -9: another worker computes its shard" in caplog.text
    manifests = [json.loads(file.read_text()) for file in (tmp_path / "c2" / "embeddings").rglob("manifest.json")]
    assert [facts["workers"] for facts in manifests] == [2, 2]
    results = run_cell(
        model, task, tmp_path / "three", tmp_path / "c2", monkeypatch, devices="2"
    )  # everything is cached: no worker is started
    assert results == alone


def test_the_endpoint_engine_refuses_devices(model: Path, tmp_path: Path) -> None:
    candidate = ResolvedModel(catalog.find_model_card(str(model)), None, Engine("endpoint"))
    with pytest.raises(UsageError, match="endpoint distributes its work itself"):
        worker_pool.attach_worker_pool(candidate, WorkerPool([FakeWorker], "cpu", 1))


def test_vllm_uses_the_pool_unless_one_model_needs_several_gpus(model: Path) -> None:
    pool, card = WorkerPool([FakeWorker], "cpu", 1), catalog.find_model_card(str(model))
    attached = worker_pool.attach_worker_pool(ResolvedModel(card, None, Engine("vllm")), pool)
    assert attached.create_workers is not None
    with pytest.raises(UsageError, match="tensor_parallel_size"):
        worker_pool.attach_worker_pool(ResolvedModel(card, None, Engine("vllm", tensor_parallel_size=2)), pool)


def test_a_study_passes_its_devices_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: list[str] = []
    monkeypatch.setattr(run_module, "evaluate", lambda request: iter(options.append(request.devices) or ()))
    stage = Stage("words", ("bm25",), tasks=(str(small_collection.write_folder(tmp_path / "small")),))
    assert list(run_module.run_study(Study("s", "s", (stage,)), tmp_path / "r", devices="all")) == []
    assert options == ["all"]


def test_reranker_models_use_the_worker_pool(model: Path) -> None:
    with WorkerPool([FakeWorker], "cpu", 1) as pool:
        results = ModelResolver(lambda _: None, partial(worker_pool.attach_worker_pool, pool=pool)).resolve(str(model))
        assert results.create_workers is not None
    assert ModelResolver(lambda _: None).resolve(str(model)).create_workers is None


def test_other_weights_on_a_workers_machine_are_refused(model: Path) -> None:
    card = catalog.find_model_card(str(model))
    local = obtain_weights(card)
    assert worker_pool.WorkerModel(card, local, Engine(), compute_folder_fingerprint(model)).resolve().weights == local
    with pytest.raises(DataError, match="are not the weights of this machine"):
        worker_pool.WorkerModel(card, local, Engine(), "another").resolve()
