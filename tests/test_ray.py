"""Runs on a real Ray cluster, in its own environment (`make test-ray`); skipped if Ray is not installed.

Two nodes with one CPU each are started on this machine, and one of them is killed in the middle of a run. The run is a
separate process. Its workers wait at a shard in the middle until the test continues, so that a killed worker is always
at work.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: make test-ray")

from tests import small_collection
from tests.test_worker_pool import read_results

ROOT = Path(__file__).parent.parent
RUN = """
import os, sys, time
from functools import partial
from pathlib import Path
from retbench.encoders.shard_tasks import ShardTask
from retbench.pipelines.evaluation import evaluate
from retbench.pipelines.evaluation.request import EvaluationRequest
from retbench.pipelines.models import ray_workers
from retbench.pipelines.models.worker_pool import WorkerState
from retbench.records.phase_timer import NoProgress
from retbench.retrievers import dense_retriever

class WaitingWorkerState(WorkerState):
    def run(self, item):
        if isinstance(item.task, ShardTask) and item.task.shard >= 4:
            import ray
            (folder / ray.get_runtime_context().get_node_id()).write_text(str(os.getpid()))
            while not (folder / "open").exists():
                time.sleep(0.01)
        return super().run(item)

ray_workers.WorkerState = WaitingWorkerState
folder, model, task, devices = Path(sys.argv[1]), *sys.argv[2:]
dense_retriever.DenseRetriever = partial(dense_retriever.DenseRetriever, shard_rows=2)
(cell,) = evaluate.evaluate(
    EvaluationRequest((model,), (task,), ("mean",), out=folder / "results", devices=devices, progress=NoProgress())
)
sys.exit(f"{cell.error}: {cell.next_step}" if cell.error else 0)
"""
BUCKET = "shards"


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_collection.write_folder(tmp_path_factory.mktemp("tasks") / "small")


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An S3 server, and the environment variables that every machine needs for it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import boto3

        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield f"s3://{BUCKET}"
    server.stop()


@pytest.fixture(scope="module")
def cluster(bucket: str) -> Iterator[Any]:
    """Two nodes with one CPU each, which inherit the environment."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        node = {"num_cpus": 1, "object_store_memory": 80 << 20}
        started = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
        try:
            started.add_node(**node)
            yield started
        finally:
            started.shutdown()


def start_run(folder: Path, model: Path, task: Path, devices: str) -> "subprocess.Popen[str]":
    """Start a run with its own cache in a new process."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "RETBENCH_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RUN, *map(str, (folder, model, task)), devices]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_run(process: "subprocess.Popen[str]") -> str:
    """Wait for exit code 0; return stderr."""
    _, stderr = process.communicate()
    assert process.returncode == 0, stderr[-3000:]
    return stderr


def run_to_end(folder: Path, model: Path, task: Path, devices: str = "1") -> str:
    (folder / "open").parent.mkdir(parents=True, exist_ok=True)
    (folder / "open").touch()
    return wait_for_run(start_run(folder, model, task, devices))


@pytest.fixture(scope="module")
def local_results(model: Path, task: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    run_to_end(folder, model, task)
    return read_results(folder / "results")


def wait_until_working(running: "subprocess.Popen[str]", note: Path) -> int:
    """Wait for the file that a worker writes at a shard in the middle; return its process id."""
    while not (note.exists() and note.read_text()):
        assert running.poll() is None, running.communicate()[1][-3000:]
        time.sleep(0.05)
    return int(note.read_text())


def read_worker_logs(folder: Path) -> dict[str, str]:
    """The metadata of every shard: its checksum and its seconds."""
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("shard-*.json")}


def test_a_run_over_s3_equals_a_local_run_and_resumes_on_another_machine(
    cluster: Any, bucket: str, model: Path, task: Path, local_results: dict[str, Any], tmp_path: Path
) -> None:
    on = f"ray:store={bucket}/place,address={cluster.address}"
    run_to_end(tmp_path / "first", model, task, on)
    assert read_results(tmp_path / "first" / "results") == local_results
    run_to_end(
        tmp_path / "second", model, task, on
    )  # with an empty cache every shard is downloaded and none is computed
    assert read_results(tmp_path / "second" / "results") == local_results
    first, second = (read_worker_logs(tmp_path / name / "cache" / "embeddings") for name in ("first", "second"))
    assert len(first) == 12
    assert first == second
    import s3fs

    assert any(name.endswith("record.json") for name in s3fs.S3FileSystem().find(f"{BUCKET}/place/results"))


def test_ray_train_runs_the_same_command_in_two_processes(
    cluster: Any, model: Path, task: Path, tmp_path: Path
) -> None:
    words = ["finetune", str(task), "--model", str(model), "--recipe", "quick"]
    words += ["--set", "split=train", "--set", "batch.contrastive_batch_size=2", "--set", "batch.train_batch_size=2"]
    words += ["--set", "optimizer.max_steps=2"]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address, "RETBENCH_CACHE": str(tmp_path / "cache")}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}  # Ray Train writes its own results to HOME

    def trained(command: list[str], name: str) -> dict[str, Any]:
        command = [*command, *words, "--out", str(tmp_path / name)]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert process.returncode == 0, process.stderr[-3000:]
        from safetensors.numpy import load_file

        files = sorted((tmp_path / name).glob("*.safetensors"))
        assert files
        return {f"{file.name} {key}": tensor for file in files for key, tensor in load_file(file).items()}

    together = trained([sys.executable, str(ROOT / "docs" / "examples" / "ray_train.py"), "2"], "together")
    first = trained([sys.executable, "-m", "retbench"], "one")
    import numpy as np

    assert together.keys() == first.keys()
    for name, tensor in first.items():
        np.testing.assert_allclose(together[name], tensor, atol=1e-5, rtol=1e-4)


def test_killing_one_of_two_nodes_does_not_change_the_run(
    cluster: Any, model: Path, task: Path, local_results: dict[str, Any], tmp_path: Path
) -> None:
    on = f"ray:store={tmp_path / 'shared'},address={cluster.address}"
    running = start_run(tmp_path / "run", model, task, on)
    (second,) = (node for node in cluster.list_all_nodes() if node is not cluster.head_node)
    for node in (cluster.head_node, second):
        wait_until_working(running, tmp_path / "run" / node.node_id)
    cluster.remove_node(second, allow_graceful=False)
    with suppress(ProcessLookupError):  # a worker may outlive its raylet for a moment
        os.kill(wait_until_working(running, tmp_path / "run" / second.node_id), signal.SIGKILL)
    (tmp_path / "run" / "open").touch()
    stderr = wait_for_run(running)
    assert "on the cluster died: another worker computes its shard" in stderr
    assert read_results(tmp_path / "run" / "results") == local_results
    assert (
        json.loads(next((tmp_path / "run" / "cache" / "embeddings").rglob("manifest.json")).read_text())["workers"] == 2
    )
