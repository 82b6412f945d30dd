"""Fixtures of every test: one thread, no network, a cache folder per test, and no settings of the developer."""

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from retbench.cards import catalog
from retbench.system.user_config import get_cache_folder
from tests import small_collection

if TYPE_CHECKING:
    from tests import fork_server

KEPT = ("RETBENCH_SHARED", "RETBENCH_ANCHORS_REQUIRED")  # the collections of anchors, and whether one may be skipped
for name in [name for name in os.environ if name.startswith("RETBENCH_") and name not in KEPT]:
    del os.environ[name]
# Until a fixture gives each test its own: tests are parametrised by cards, and the developer's cache may have some too.
EMPTY_CACHE = tempfile.TemporaryDirectory(prefix="retbench-tests-")
os.environ["RETBENCH_CACHE"] = EMPTY_CACHE.name
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")  # torch is not loaded yet

hypothesis.settings.register_profile("retbench", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("retbench")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=("cpu", "cuda"), help="the device under test in tests/cuda")


def pytest_configure(config: pytest.Config) -> None:
    expected = config.getoption("--device")
    if expected != "cpu" or Path("/dev/nvidiactl").exists():  # without a GPU retbench finds the CPU itself
        os.environ["RETBENCH_DEVICE"] = expected


LOCAL = {"localhost", "127.0.0.1", "::1", None}


class NetworkUsedError(RuntimeError):
    """Not an OSError, because code for machines without network would catch it."""


def _guarded(call: Callable[..., Any], host: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if host(*args) not in LOCAL:
            raise NetworkUsedError(f"a test used the network: {host(*args)}")
        return call(*args, **kwargs)

    return guarded


def _peer(peer: socket.socket, address: Any, *_: Any) -> Any:
    return None if peer.family == socket.AF_UNIX else address[0]


@pytest.fixture(scope="session", autouse=True)
def _block_network_and_isolate_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for method in ("connect", "connect_ex"):
            patch.setattr(socket.socket, method, _guarded(getattr(socket.socket, method), _peer))
        patch.setattr(socket, "getaddrinfo", _guarded(socket.getaddrinfo, lambda host, *_: host))
        patch.setenv(
            "RETBENCH_CACHE", str(tmp_path_factory.mktemp("cache"))
        )  # for fixtures of session and module scope
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("RETBENCH_CACHE", str(folder))
    return folder


@pytest.fixture
def user_weights(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the weights in the user's cache, so that they are fetched once; embeddings go to the cache of the test."""
    monkeypatch.delenv("RETBENCH_CACHE")
    users = get_cache_folder() / "weights"
    users.mkdir(parents=True, exist_ok=True)
    (own_cache / "weights").symlink_to(users)
    monkeypatch.setenv("RETBENCH_CACHE", str(own_cache))


@pytest.fixture
def real_model_environment(user_weights: None) -> None:
    """Use real weights, and the threads of the machine that other test processes leave."""
    import torch

    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))


@pytest.fixture(scope="session")
def built_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import tiny_models  # here because it imports torch, which some environments of the matrix do not have

    return tiny_models.build_model(tmp_path_factory.mktemp("built") / "tiny")


@pytest.fixture(scope="module")
def model(built_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny decoder in a folder that the tests of one file may change."""
    return Path(shutil.copytree(built_model, tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="session")
def server() -> Iterator["fork_server.ForkServer"]:
    """The server of killable runs: one for all files, because it imports for seconds."""
    from tests import fork_server  # it imports torch too

    with fork_server.start_fork_server() as started:
        yield started


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return small_collection.write_folder(tmp_path / "pantry")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def fresh_catalog() -> Iterator[Callable[[], None]]:
    """Return a function that clears the caches of the catalog, for tests that change the card folders."""

    def forget() -> None:
        for shelf in (catalog.load_model_cards, catalog.load_task_cards, catalog.load_suites, catalog.load_methods):
            shelf.cache_clear()

    forget()
    yield forget
    forget()
