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
from retbench.store.shard_store import ShardStore, VectorBlock
from retbench.system.durable_files import write_file_atomically

BLOCK = VectorBlock(np.array([4, 0, 2]), np.array([[1, 0], [0, 1], [0.6, 0.8]], dtype=np.float32))
FILES = {"shard-00007.safetensors", "shard-00007.json"}


@pytest.fixture
def store(tmp_path: Path) -> ShardStore:
    return ShardStore(tmp_path)


@pytest.fixture
def store_with_shard(store: ShardStore) -> ShardStore:
    store.write_shard(7, BLOCK, tokens=12, seconds=1.5)
    return store


def list_file_names(store: ShardStore) -> set[str]:
    return {path.name for path in store.folder.iterdir()}


def test_a_shard_is_read_as_it_was_written(store_with_shard: ShardStore) -> None:
    block = store_with_shard.read_shard(7)
    assert block is not None
    np.testing.assert_array_equal(block.rows, BLOCK.rows)
    np.testing.assert_array_equal(block.vectors, BLOCK.vectors)
    assert (block.rows.dtype, block.vectors.dtype) == (np.int64, np.float32)
    assert list_file_names(store_with_shard) == FILES


def test_texts_with_several_vectors_and_with_terms_are_read_as_they_were_written(store: ShardStore) -> None:
    draw = np.random.default_rng(4)
    offsets = np.array([0, 3, 3, 5])
    tokens = VectorBlock(BLOCK.rows, draw.random((5, 4), dtype=np.float32), offsets)
    terms = VectorBlock(BLOCK.rows, draw.random(5, dtype=np.float32), offsets, np.array([2, 9, 30521, 0, 1]))
    for shard, block in enumerate((tokens, terms)):
        written, read = store.write_shard(shard, block, tokens=5, seconds=1.0), store.read_shard(shard)
        assert read is not None
        for found in (written, read):
            assert all(
                np.array_equal(actual, wanted)
                for actual, wanted in zip(found, block, strict=True)
                if wanted is not None
            )
            assert [part is None for part in found] == [part is None for part in block]


def test_an_unwritten_shard_is_none(store_with_shard: ShardStore) -> None:
    assert store_with_shard.read_shard(8) is None


def test_a_rewritten_shard_is_the_new_one(store_with_shard: ShardStore) -> None:
    store_with_shard.write_shard(7, VectorBlock(BLOCK.rows, -BLOCK.vectors), tokens=12, seconds=1.5)
    block = store_with_shard.read_shard(7)
    assert block is not None
    np.testing.assert_array_equal(block.vectors, -BLOCK.vectors)


# (file, change of its bytes)
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
def test_a_damaged_shard_is_ignored(store_with_shard: ShardStore, file: str, change: Any) -> None:
    path = store_with_shard.folder / file
    path.write_bytes(change(path.read_bytes()))
    assert store_with_shard.read_shard(7) is None
    store_with_shard.write_shard(7, BLOCK, tokens=12, seconds=1.5)
    assert store_with_shard.read_shard(7) is not None


@pytest.mark.parametrize("file", sorted(FILES))
def test_a_truncated_shard_is_ignored(store_with_shard: ShardStore, file: str) -> None:
    (store_with_shard.folder / file).unlink()
    assert store_with_shard.read_shard(7) is None


def test_two_swapped_shard_files_are_ignored(store_with_shard: ShardStore) -> None:
    store_with_shard.write_shard(8, VectorBlock(BLOCK.rows + 10, BLOCK.vectors), tokens=12, seconds=1.0)
    (store_with_shard.folder / "shard-00007.safetensors").replace(store_with_shard.folder / "shard-00008.safetensors")
    assert store_with_shard.read_shard(8) is None


def test_the_first_batch_plan_is_kept(store: ShardStore) -> None:
    assert store.load_or_create_plan(lambda: {"budget": 4096}) == {"budget": 4096}
    assert store.load_or_create_plan(lambda: {"budget": 1}) == {"budget": 4096}
    assert ShardStore(store.folder).load_or_create_plan(dict) == {"budget": 4096}


def test_a_store_is_complete_only_when_finished(store_with_shard: ShardStore) -> None:
    assert not store_with_shard.is_complete()
    store_with_shard.write_manifest({"peak_memory_mb": 3.5})
    assert store_with_shard.is_complete()
    assert store_with_shard.read_manifest() == {"peak_memory_mb": 3.5}


def test_seconds_add_up_over_shards(store_with_shard: ShardStore) -> None:
    store_with_shard.write_shard(8, BLOCK, tokens=1, seconds=0.25)
    assert store_with_shard.compute_total_cost().seconds == 1.75


def raise_disk_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# Calls that fail on a full disk: the flush, or the final rename
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


def test_a_full_disk_keeps_the_existing_shard(store_with_shard: ShardStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", raise_disk_full)
        with pytest.raises(ResourceError):
            store_with_shard.write_shard(8, BLOCK, tokens=12, seconds=1.5)
    assert list_file_names(store_with_shard) == FILES
    assert store_with_shard.read_shard(7) is not None


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
    parent_pipe, child_pipe = context.Pipe()
    second = context.Process(target=_run_second_process, args=(store.folder, child_pipe))
    second.start()
    assert parent_pipe.recv() == "ready"
    with store.lock():
        parent_pipe.send("go")
        assert parent_pipe.recv() == "trying"
        time.sleep(0.2)  # long enough to detect a second process that does not wait
        (store.folder / "done").touch()
    assert parent_pipe.recv() is True
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


# Pairs that differ in one small detail
PAIRS = [
    ({"prompt": "Query:"}, {"prompt": "Query: "}),
    ({"length": 512}, {"length": "512"}),
    ({"title": None}, {"title": ""}),
    ({"fields": ["title", "text"]}, {"fields": ["text", "title"]}),
    ({"a": {"b": 1}}, {"a": {"b": 1, "c": None}}),
]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_a_digest_changes_with_every_value(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert compute_digest(first) != compute_digest(second)


def test_canonical_json_is_fixed() -> None:
    assert to_canonical_json({"b": [1, 2.5, None], "a": "ß"}) == '{"a":"ß","b":[1,2.5,null]}'
    assert compute_digest({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
