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
def remote_storage(request: pytest.FixtureRequest, tmp_path: Path) -> RemoteStorage:
    """Remote storage in a folder, and in an object store without folders."""
    return RemoteStorage(str(tmp_path / "depot") if request.param == "folder" else f"memory://{uuid4().hex}")


def open_store(tmp_path: Path, name: str = "here", planned: object = None) -> ShardStore:
    folder = tmp_path / name / "model" / "key"
    folder.mkdir(parents=True, exist_ok=True)
    shard_store = ShardStore(folder, "fp16")
    if planned:
        shard_store.load_or_create_plan(lambda: {"budget": planned})
    return shard_store


def test_a_shard_written_by_one_machine_is_read_by_another(remote_storage: RemoteStorage, tmp_path: Path) -> None:
    second_store, first_store = open_store(tmp_path, "there"), open_store(tmp_path)
    assert remote_storage.open_shard_store(first_store).download_shard(7, first_store) is None
    written_block = remote_storage.open_shard_store(second_store).write_shard(7, BLOCK, tokens=12, seconds=1.5)
    downloaded_block = remote_storage.open_shard_store(first_store).download_shard(7, first_store)
    assert downloaded_block is not None
    np.testing.assert_array_equal(downloaded_block.vectors, written_block.vectors)
    assert first_store.has_shard(7)
    assert first_store.compute_total_cost().seconds == 1.5
    assert not second_store.has_shard(7)  # a worker keeps nothing on its own disk


def test_a_truncated_copy_is_ignored(remote_storage: RemoteStorage, tmp_path: Path) -> None:
    first_store = open_store(tmp_path)
    shard_store = remote_storage.open_shard_store(first_store)
    shard_store.write_shard(7, BLOCK, tokens=12, seconds=1.5)
    vectors, note = (f"{shard_store.name}/{file.name}" for file in first_store.get_shard_files(7))
    content = remote_storage.read_file(vectors) or b""
    remote_storage.write_file(vectors, content[:-3])
    assert shard_store.download_shard(7, first_store) is None
    remote_storage.write_file(vectors, content)
    assert shard_store.download_shard(7, first_store) is not None
    (remote_storage.write_file(note, b"{"), first_store.get_shard_files(7)[1].unlink())
    assert shard_store.download_shard(7, first_store) is None


def test_the_first_batch_plan_is_shared(remote_storage: RemoteStorage, tmp_path: Path) -> None:
    first, second = open_store(tmp_path, "first", planned=64), open_store(tmp_path, "second")
    remote_storage.open_shard_store(first).sync_plan(first)
    remote_storage.open_shard_store(second).sync_plan(second)
    assert second.load_or_create_plan(dict) == {"budget": 64}
    remote_storage.open_shard_store(second).sync_plan(second)
    third = open_store(tmp_path, "other", planned=32)
    with pytest.raises(DataError, match="with a different batch plan"):
        remote_storage.open_shard_store(third).sync_plan(third)


def test_without_a_batch_plan_nothing_is_shared(remote_storage: RemoteStorage, tmp_path: Path) -> None:
    first_store = open_store(tmp_path)
    remote_storage.open_shard_store(first_store).sync_plan(first_store)
    assert not first_store.has_plan()


def test_a_record_is_copied_last(
    remote_storage: RemoteStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "results" / "suite" / "task" / "model" / "0123"
    run.mkdir(parents=True)
    for name in ("record.json", "run.trec.gz", "sample.json"):
        (run / name).write_text(json.dumps(name))
    seen: list[str] = []
    put = RemoteStorage.write_file
    monkeypatch.setattr(
        RemoteStorage, "write_file", lambda self, name, content: (seen.append(name), put(self, name, content))
    )
    remote_storage.upload_run(run, tmp_path / "results")
    assert sorted(seen) == [f"results/suite/task/model/0123/{file.name}" for file in sorted(run.iterdir())]
    assert seen[-1].endswith("record.json")
    assert remote_storage.read_file(seen[0]) == (run / "run.trec.gz").read_bytes()


# Locations that cannot be used
UNUSABLE_LOCATIONS = {"a folder in a file": "{tmp}/file/depot", "a system nobody knows": "nosuch://bucket/depot"}


@pytest.mark.parametrize("address", UNUSABLE_LOCATIONS.values(), ids=UNUSABLE_LOCATIONS)
def test_an_unusable_location_is_an_error(address: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    first_store = open_store(tmp_path)
    with pytest.raises(ResourceError, match="cannot be used") as caught:
        RemoteStorage(address.format(tmp=tmp_path)).open_shard_store(first_store).write_shard(
            7, BLOCK, tokens=1, seconds=1.0
        )
    assert "docs/cluster.md" in caught.value.next_step
