"""The remote store: shards are complete or absent, all machines share one plan, a lost location is an error."""

import json
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from retbench.errors import DataError, ResourceError
from retbench.store.remote_store import RemoteStorage
from retbench.store.shard_store import ShardStore, VectorBlock

BLOCK = VectorBlock(np.array([4, 0, 2]), np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32))


@pytest.fixture(params=["folder", "memory"])
def depot(request: pytest.FixtureRequest, tmp_path: Path) -> RemoteStorage:
    """A folder, and a store of objects that knows no folders."""
    return RemoteStorage(str(tmp_path / "depot") if request.param == "folder" else f"memory://{uuid4().hex}")


def open_store(tmp_path: Path, name: str = "here", planned: object = None) -> ShardStore:
    folder = tmp_path / name / "model" / "key"
    folder.mkdir(parents=True, exist_ok=True)
    found = ShardStore(folder, "fp16")
    if planned:
        found.load_or_create_plan(lambda: {"budget": planned})
    return found


def test_a_shard_written_by_one_machine_is_read_by_another(depot: RemoteStorage, tmp_path: Path) -> None:
    there, here = open_store(tmp_path, "there"), open_store(tmp_path)
    assert depot.open_shard_store(here).download_shard(7, here) is None
    kept = depot.open_shard_store(there).write_shard(7, BLOCK, tokens=12, seconds=1.5)
    brought = depot.open_shard_store(here).download_shard(7, here)
    assert brought is not None
    np.testing.assert_array_equal(brought.vectors, kept.vectors)
    assert here.has_shard(7)
    assert here.compute_total_cost().seconds == 1.5
    assert not there.has_shard(7)  # a worker's own disk keeps nothing


def test_a_truncated_copy_is_ignored(depot: RemoteStorage, tmp_path: Path) -> None:
    here = open_store(tmp_path)
    shelf = depot.open_shard_store(here)
    shelf.write_shard(7, BLOCK, tokens=12, seconds=1.5)
    vectors, note = (f"{shelf.name}/{file.name}" for file in here.get_shard_files(7))
    content = depot.read_file(vectors) or b""
    depot.write_file(vectors, content[:-3])
    assert shelf.download_shard(7, here) is None
    depot.write_file(vectors, content)
    assert shelf.download_shard(7, here) is not None
    (depot.write_file(note, b"{"), here.get_shard_files(7)[1].unlink())
    assert shelf.download_shard(7, here) is None


def test_the_first_batch_plan_is_shared(depot: RemoteStorage, tmp_path: Path) -> None:
    first, second = open_store(tmp_path, "first", planned=64), open_store(tmp_path, "second")
    depot.open_shard_store(first).sync_plan(first)
    depot.open_shard_store(second).sync_plan(second)
    assert second.load_or_create_plan(dict) == {"budget": 64}
    depot.open_shard_store(second).sync_plan(second)
    other = open_store(tmp_path, "other", planned=32)
    with pytest.raises(DataError, match="with a different batch plan"):
        depot.open_shard_store(other).sync_plan(other)


def test_without_a_batch_plan_nothing_is_shared(depot: RemoteStorage, tmp_path: Path) -> None:
    here = open_store(tmp_path)
    depot.open_shard_store(here).sync_plan(here)
    assert not here.has_plan()


def test_a_record_is_copied_last(depot: RemoteStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "results" / "suite" / "task" / "model" / "0123"
    run.mkdir(parents=True)
    for name in ("record.json", "run.trec.gz", "sample.json"):
        (run / name).write_text(json.dumps(name))
    seen: list[str] = []
    put = RemoteStorage.write_file
    monkeypatch.setattr(
        RemoteStorage, "write_file", lambda self, name, content: (seen.append(name), put(self, name, content))
    )
    depot.upload_run(run, tmp_path / "results")
    assert sorted(seen) == [f"results/suite/task/model/0123/{file.name}" for file in sorted(run.iterdir())]
    assert seen[-1].endswith("record.json")
    assert depot.read_file(seen[0]) == (run / "run.trec.gz").read_bytes()


# What cannot be reached
UNUSABLE_LOCATIONS = {"a folder in a file": "{tmp}/file/depot", "a system nobody knows": "nosuch://bucket/depot"}


@pytest.mark.parametrize("address", UNUSABLE_LOCATIONS.values(), ids=UNUSABLE_LOCATIONS)
def test_an_unusable_location_is_an_error(address: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    here = open_store(tmp_path)
    with pytest.raises(ResourceError, match="cannot be used") as caught:
        RemoteStorage(address.format(tmp=tmp_path)).open_shard_store(here).write_shard(7, BLOCK, tokens=1, seconds=1.0)
    assert "docs/cluster.md" in caught.value.next_step
