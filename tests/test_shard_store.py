"""The shard store: a shard is complete or absent, damage is detected, two processes never do the same work."""

import errno
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retbench.errors import ResourceError
from retbench.store import shard_store
from retbench.store.digest import compute_digest, to_canonical_json
from retbench.store.shard_store import ShardStore, VectorBlock, write_file_atomically

BLOCK = VectorBlock(np.array([4, 0, 2]), np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32))
FILES = {"shard-00007.safetensors", "shard-00007.json"}


@pytest.fixture
def store(tmp_path: Path) -> ShardStore:
    return ShardStore(tmp_path)


@pytest.fixture
def filled(store: ShardStore) -> ShardStore:
    store.write_shard(7, BLOCK, tokens=12, seconds=1.5)
    return store


def list_file_names(store: ShardStore) -> set[str]:
    return {path.name for path in store.folder.iterdir()}


def test_a_shard_is_read_as_it_was_written(filled: ShardStore) -> None:
    block = filled.read_shard(7)
    assert block is not None
    np.testing.assert_array_equal(block.rows, BLOCK.rows)
    np.testing.assert_array_equal(block.vectors, BLOCK.vectors)
    assert (block.rows.dtype, block.vectors.dtype) == (np.int64, np.float32)
    assert list_file_names(filled) == FILES


def test_an_unwritten_shard_is_none(filled: ShardStore) -> None:
    assert filled.read_shard(8) is None


def test_a_rewritten_shard_is_the_new_one(filled: ShardStore) -> None:
    filled.write_shard(7, VectorBlock(BLOCK.rows, -BLOCK.vectors), tokens=12, seconds=1.5)
    block = filled.read_shard(7)
    assert block is not None
    np.testing.assert_array_equal(block.vectors, -BLOCK.vectors)


# (file, what happens to its bytes)
DAMAGE = {
    "a bit of the vectors": ("shard-00007.safetensors", lambda b: b[:-3] + bytes([b[-3] ^ 1]) + b[-2:]),
    "the end of the vectors": ("shard-00007.safetensors", lambda b: b[:-4]),
    "all of the vectors": ("shard-00007.safetensors", lambda _: b""),
    "a bit of the header": ("shard-00007.safetensors", lambda b: bytes([b[0] ^ 1]) + b[1:]),
    "the end of the note": ("shard-00007.json", lambda b: b[:-9]),
    "all of the note": ("shard-00007.json", lambda _: b""),
    "the note is no text": ("shard-00007.json", lambda _: b"\xff\xfe\x00"),
    "the note has no checksum": ("shard-00007.json", lambda _: b'{"tokens": 3}'),
    "the note is no object": ("shard-00007.json", lambda _: b"[]"),
    "the wrong checksum": ("shard-00007.json", lambda b: b.replace(b'"sha256": "', b'"sha256": "0')),
}


@pytest.mark.parametrize(("file", "change"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_shard_is_ignored(filled: ShardStore, file: str, change: Any) -> None:
    path = filled.folder / file
    path.write_bytes(change(path.read_bytes()))
    assert filled.read_shard(7) is None
    filled.write_shard(7, BLOCK, tokens=12, seconds=1.5)
    assert filled.read_shard(7) is not None


@pytest.mark.parametrize("file", sorted(FILES))
def test_a_truncated_shard_is_ignored(filled: ShardStore, file: str) -> None:
    (filled.folder / file).unlink()
    assert filled.read_shard(7) is None


def test_two_swapped_shard_files_are_ignored(filled: ShardStore) -> None:
    filled.write_shard(8, VectorBlock(BLOCK.rows + 10, BLOCK.vectors), tokens=12, seconds=1.0)
    (filled.folder / "shard-00007.safetensors").replace(filled.folder / "shard-00008.safetensors")
    assert filled.read_shard(8) is None


def test_the_first_batch_plan_is_kept(store: ShardStore) -> None:
    assert store.load_or_create_plan(lambda: {"budget": 4096}) == {"budget": 4096}
    assert store.load_or_create_plan(lambda: {"budget": 1}) == {"budget": 4096}
    assert ShardStore(store.folder).load_or_create_plan(dict) == {"budget": 4096}


def test_a_store_is_complete_only_when_finished(filled: ShardStore) -> None:
    assert not filled.is_complete()
    filled.write_manifest({"peak_memory_mb": 3.5})
    assert filled.is_complete()
    assert filled.read_manifest() == {"peak_memory_mb": 3.5}


def test_seconds_add_up_over_shards(filled: ShardStore) -> None:
    filled.write_shard(8, BLOCK, tokens=1, seconds=0.25)
    assert filled.compute_total_cost().seconds == 1.75


def raise_disk_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# Where a full disk may show itself: while the bytes are flushed, or at the last moment
FAULTS = {"at fsync": (os, "fsync"), "at rename": (Path, "rename")}


@pytest.mark.parametrize(("owner", "call"), FAULTS.values(), ids=FAULTS)
def test_a_full_disk_leaves_no_files(store: ShardStore, monkeypatch: pytest.MonkeyPatch, owner: Any, call: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(owner, call, raise_disk_full)
        with pytest.raises(ResourceError) as caught:
            store.write_shard(7, BLOCK, tokens=12, seconds=1.5)
    assert "shard-00007.safetensors could not be written: No space left on device" in caught.value.cause
    assert "run the same command" in caught.value.next_step
    assert list_file_names(store) == set()
    assert store.read_shard(7) is None


def test_a_full_disk_keeps_the_existing_shard(filled: ShardStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", raise_disk_full)
        with pytest.raises(ResourceError):
            filled.write_shard(8, BLOCK, tokens=12, seconds=1.5)
    assert list_file_names(filled) == FILES
    assert filled.read_shard(7) is not None


def test_a_shard_without_metadata_is_ignored(store: ShardStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(file: Path, content: bytes) -> None:
        if file.suffix == ".json":
            raise KeyboardInterrupt
        write_file_atomically(file, content)

    with monkeypatch.context() as patch:
        patch.setattr(shard_store, "write_file_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            store.write_shard(7, BLOCK, tokens=12, seconds=1.5)
    assert list_file_names(store) == {"shard-00007.safetensors"}
    assert store.read_shard(7) is None


def test_writing_to_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="No such file or directory"):
        write_file_atomically(tmp_path / "nowhere" / "file", b"x")


def _run_second_process(folder: Path, pipe: Connection) -> None:
    pipe.send("ready")
    pipe.recv()
    pipe.send("trying")
    with ShardStore(folder).lock():
        pipe.send((folder / "done").exists())


def test_a_second_process_waits_until_the_first_is_done(store: ShardStore) -> None:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    second = context.Process(target=_run_second_process, args=(store.folder, there))
    second.start()
    assert here.recv() == "ready"
    with store.lock():
        here.send("go")
        assert here.recv() == "trying"
        time.sleep(0.2)  # time for a second that does not wait to be caught at it
        (store.folder / "done").touch()
    assert here.recv() is True
    second.join()
    assert second.exitcode == 0


def test_the_lock_is_released_after_an_error(store: ShardStore) -> None:
    with pytest.raises(ZeroDivisionError), store.lock():
        raise ZeroDivisionError
    with store.lock():
        pass


facts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), facts, max_size=5), st.randoms())
def test_a_digest_does_not_depend_on_the_order_of_keys(facts: dict[str, Any], shuffle: Any) -> None:
    items = list(facts.items())
    shuffle.shuffle(items)
    assert compute_digest(dict(items)) == compute_digest(facts)


# One thing differs, however small
PAIRS = [
    ({"prompt": "Query:"}, {"prompt": "Query: "}),
    ({"length": 512}, {"length": "512"}),
    ({"title": None}, {"title": ""}),
    ({"fields": ["title", "text"]}, {"fields": ["text", "title"]}),
    ({"a": {"b": 1}}, {"a": {"b": 1, "c": None}}),
]


@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_a_digest_changes_with_every_value(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert compute_digest(one) != compute_digest(other)


def test_canonical_json_is_fixed() -> None:
    assert to_canonical_json({"b": [1, 2.5, None], "a": "ß"}) == '{"a":"ß","b":[1,2.5,null]}'
    assert compute_digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
