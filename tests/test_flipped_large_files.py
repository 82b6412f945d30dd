"""A flipped bit in a large file whose checksum was cached: size, time and inode are those of before."""

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from retbench.corpora.open_collection import open_collection
from retbench.engines import fingerprints, weights_cache
from retbench.errors import DataError
from retbench.system import checksums
from tests import small_collection
from tests.test_flipped_bits import flip_bit

LONG_AGO = (10**9, 10**9)


@pytest.fixture
def every_file_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "MIN_CACHED_BYTES", 1)


@pytest.mark.usefixtures("every_file_is_large")
def test_a_flip_in_a_large_compiled_file_is_found(
    tmp_path: Path, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    card = small_collection.build_card(small_collection.write_folder(tmp_path))
    texts = list(open_collection(card).corpus)
    (folder,) = (path for path in (own_cache / "collections").iterdir() if path.is_dir())
    files = sorted(folder.glob("*.arrow"))
    assert {"corpus.arrow", "queries.arrow", "judgments-0.arrow"} <= {file.name for file in files}
    for file in files:
        os.utime(file, LONG_AGO)
    open_collection(card)
    for file in files:
        flip_bit(file, 8 * (file.stat().st_size // 2))
        assert list(open_collection(card).corpus) == texts
        assert f"{file.name} changed since it was stored" in caplog.text


@pytest.mark.usefixtures("every_file_is_large")
@pytest.mark.parametrize("name", ["model.safetensors", "1_Dense/model.safetensors"])
def test_a_flip_in_large_weights_of_an_own_folder_is_found(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    (tmp_path / "config.json").write_text("{}")
    save_file({"weight": np.ones(100, dtype=np.float32)}, file)
    os.utime(file, LONG_AGO)
    checksums.cached_sha256(file)
    weights_cache.verify_files(tmp_path)
    flip_bit(file, 1800)
    with pytest.raises(DataError, match=r"model\.safetensors is damaged: its bytes changed on disk, and its size"):
        weights_cache.verify_files(tmp_path)
    file.touch()  # the change was meant
    fingerprint = fingerprints.compute_folder_fingerprint(tmp_path)
    weights_cache.verify_files(tmp_path)
    assert fingerprint == fingerprints.compute_folder_fingerprint(tmp_path)


def test_a_flip_is_found_where_the_transformer_has_a_folder_of_its_own(own_cache: Path) -> None:
    """The manifest is in the folder of the model; only the folder inside it is loaded."""
    folder = own_cache / "weights" / "routed"

    def create(work: Path) -> weights_cache.PreparedWeights:
        inner = weights_cache.create_empty_folder(work / "folder" / "document_0_MLMTransformer")
        save_file({"weight": np.ones(100, dtype=np.float32)}, inner / "model.safetensors")
        return weights_cache.PreparedWeights(work / "folder", "hub a/b", "f" * 64)

    weights_cache.get_or_create(folder, lambda _: True, create)
    (inner,) = (path for path in folder.iterdir() if path.is_dir())
    weights_cache.verify_files(inner)
    flip_bit(inner / "model.safetensors", 1800)
    with pytest.raises(DataError, match=r"model\.safetensors is damaged: its bytes changed on disk"):
        weights_cache.verify_files(inner)
