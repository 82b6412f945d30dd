"""`retbench doctor`: every problem it detects, created for real, or with a fake torch where a GPU is needed."""

import json
import shutil
import socket
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from threading import Thread

import pytest
import torch
from typer.testing import CliRunner

from retbench.cli.main import app
from retbench.pipelines import doctor
from retbench.pipelines.doctor import DoctorCheck, run_checks
from tests import local_server

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _offline(monkeypatch: Patch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("HF_ENDPOINT", raising=False)


def find_check(name: str) -> DoctorCheck:
    (check,) = [one for one in run_checks() if one.name == name]
    return check


def find_failed_check(name: str) -> DoctorCheck:
    check = find_check(name)
    assert not check.ok
    assert check.next_step
    return check


def test_all_checks_are_printed_and_written_as_json() -> None:
    answer = CliRunner().invoke(app, ["doctor"])
    assert answer.exit_code == 0
    as_json = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    names = [check["name"] for check in as_json]
    assert {"torch", "threads", "cache", "downloads", "cards", "card folders", "extras", "hub"} <= set(names)
    assert all(name in answer.stdout for name in names)
    assert answer.stdout.count("    next: ") == sum(not check["ok"] for check in as_json)


class Cuda:
    """Make torch look like that of a machine with the given GPU."""

    def __init__(self, patch: Patch, cuda: str | None, usable: bool, gpu: tuple[int, int], built: list[str]) -> None:
        patch.setattr(doctor, "_has_nvidia_gpu", lambda: True)
        patch.setattr(torch.version, "cuda", cuda)
        patch.setattr(torch.cuda, "is_available", lambda: usable)
        patch.setattr(torch.cuda, "get_device_capability", lambda: gpu)
        patch.setattr(torch.cuda, "get_arch_list", lambda: built)


# (CUDA of the build, works with the driver, the GPU's sm, sm of the build, part of the message; None: no problem)
BUILDS: dict[str, tuple[str | None, bool, tuple[int, int], list[str], str | None]] = {
    "for CPUs": (None, False, (9, 0), [], "is a CPU build, but this machine has an NVIDIA GPU"),
    "too new for the driver": ("13.0", False, (9, 0), ["sm_90"], "does not work with the GPU driver"),
    "too old for the GPU": ("12.1", True, (12, 0), ["sm_80", "sm_90"], "supports sm_80, sm_90; this GPU is sm_120"),
    "too new for the GPU": ("13.0", True, (6, 1), ["sm_75", "compute_75"], "this GPU is sm_61"),
    "right": ("13.0", True, (9, 0), ["sm_80", "sm_90a"], None),
    "of the same generation": ("12.1", True, (8, 9), ["sm_80"], None),
    "translated": ("12.8", True, (12, 0), ["sm_90", "compute_90"], None),
}


@pytest.mark.parametrize(("cuda", "usable", "gpu", "built", "message"), BUILDS.values(), ids=BUILDS)
def test_a_torch_build_that_does_not_support_the_gpu(
    cuda: str | None, usable: bool, gpu: tuple[int, int], built: list[str], message: str | None, monkeypatch: Patch
) -> None:
    Cuda(monkeypatch, cuda, usable, gpu, built)
    check = doctor._check_torch()
    assert check.ok is (message is None)
    if message:
        assert message in check.finding
        assert "install" in check.next_step


def test_without_a_gpu_a_cpu_build_of_torch_is_fine(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "NVIDIA_FOLDER", tmp_path / "none")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert doctor._check_torch().ok
    (tmp_path / "gpus" / "0000:01").mkdir(parents=True)
    monkeypatch.setattr(doctor, "NVIDIA_FOLDER", tmp_path / "gpus")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert not doctor._check_torch().ok


def test_a_missing_extra_is_reported(monkeypatch: Patch) -> None:
    version = metadata.version

    def lacking(name: str) -> str:
        if name == "beir":
            raise metadata.PackageNotFoundError(name)
        return "1" if name == "vllm" else version(name)

    monkeypatch.setattr(metadata, "version", lacking)
    check = find_failed_check("extras")
    assert "verify lacks beir" in check.finding
    assert "verify" in check.next_step.partition("[")[2].partition("]")[0].split(",")
    monkeypatch.setattr(metadata, "version", lambda _: "1")
    assert find_check("extras").ok


def write_cached_weights(cache: Path, name: str, tokenizer: str) -> Path:
    """Write the files of cached weights that doctor reads."""
    folder = cache / "weights" / name
    folder.mkdir(parents=True)
    (folder / "tokenizer_config.json").write_text(tokenizer)
    sizes = {"tokenizer_config.json": len(tokenizer)}
    manifest = {"source": "x", "fingerprint": "f", "sha256": None, "revision": None, "label": None, "files": sizes}
    (folder / "weights.json").write_text(json.dumps(manifest))
    return folder


def test_a_tokenizer_without_a_pad_token_is_reported(own_cache: Path) -> None:
    write_cached_weights(own_cache, "has", '{"pad_token": "<pad>"}')
    folder = write_cached_weights(own_cache, "org%2Fhas-not", '{"eos_token": "</s>", "pad_token": null}')
    assert [check.name for check in run_checks() if check.name.startswith("tokenizer")] == ["tokenizer org/has-not"]
    check = find_failed_check("tokenizer org/has-not")
    assert check.finding == "no padding token"
    assert "--weights" in check.next_step
    (folder / "special_tokens_map.json").write_text('{"pad_token": "</s>"}')
    assert not [check for check in run_checks() if check.name.startswith("tokenizer")]
    write_cached_weights(own_cache, "broken", "{")
    assert "not valid JSON" in find_failed_check("tokenizer broken").finding


@pytest.mark.parametrize("subfolder", ["weights/org%2Fhalf.partial", "collections/half-1a2b.3c4d.partial"])
def test_an_incomplete_cache_is_reported(subfolder: str, own_cache: Path) -> None:
    assert find_check("downloads").ok
    (own_cache / subfolder).mkdir(parents=True)
    check = find_failed_check("downloads")
    assert "half" in check.finding
    assert "retbench fetch" in check.next_step


def test_weights_with_a_missing_file_are_reported(own_cache: Path) -> None:
    (write_cached_weights(own_cache, "lost", "{}") / "tokenizer_config.json").unlink()
    check = find_failed_check("downloads")
    assert "tokenizer_config.json is missing or truncated" in check.finding
    assert "fetch it again" in check.next_step


def test_an_unreachable_hub_is_reported(monkeypatch: Patch) -> None:
    assert find_check("hub").ok
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with socket.socket() as bound:  # a bound port without a listener
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{bound.getsockname()[1]}")
        check = find_failed_check("hub")
    assert "does not respond" in check.finding
    assert "HTTPS_PROXY" in check.next_step
    monkeypatch.setenv("HF_ENDPOINT", "no address")
    assert not find_check("hub").ok
    with local_server.start_server() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        assert find_check("hub").ok


def test_a_server_that_does_not_speak_http_is_reported(monkeypatch: Patch) -> None:
    def answer(listening: socket.socket) -> None:
        reached, _ = listening.accept()
        with reached:
            reached.recv(4096)
            reached.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
        thread = Thread(target=answer, args=(listening,), daemon=True)
        thread.start()
        check = find_failed_check("hub")
        thread.join()
    assert "SSH-2.0" in check.finding


def test_too_little_disk_space_is_reported(monkeypatch: Patch) -> None:
    for free, ok in ((doctor.MIN_FREE_GB * 1e9 + 1, True), (doctor.MIN_FREE_GB * 1e9 - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: shutil._ntuple_diskusage(0, 0, free))  # type: ignore[attr-defined]
        assert find_check("cache").ok is ok
    assert "free disk space" in find_failed_check("cache").next_step


# (cpu.max of the container or None, threads of torch, cores, whether doctor accepts it)
QUOTAS: dict[str, tuple[str | None, int, int, bool]] = {
    "as many as cores": (None, 4, 4, True),
    "more than cores": (None, 5, 4, False),
    "a container of two": ("200000 100000\n", 3, 2, False),
    "a container without a limit": ("max 100000\n", 4, 4, True),
    "a container of half a core": ("50000 100000\n", 1, 1, True),
}


@pytest.mark.parametrize(("quota", "threads", "cores", "ok"), QUOTAS.values(), ids=QUOTAS)
def test_more_threads_than_cores_are_reported(
    quota: str | None, threads: int, cores: int, ok: bool, monkeypatch: Patch, tmp_path: Path
) -> None:
    if quota:
        (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(doctor, "CPU_QUOTA_FILE", tmp_path / "cpu.max")
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    check = find_check("threads")
    assert check.ok is ok
    assert f"{threads} of {cores} cores" in check.finding
    assert f"OMP_NUM_THREADS to {cores}" in check.next_step


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "is not a folder"),
        (lambda folder: folder.mkdir(), "has none of model_cards"),
    ],
    ids=["not there", "without cards"],
)
def test_an_ignored_card_folder_is_reported(
    make: Callable[[Path], object], message: str, monkeypatch: Patch, tmp_path: Path
) -> None:
    make(tmp_path / "own")
    monkeypatch.setenv("RETBENCH_CARDS", str(tmp_path / "own"))
    assert message in find_failed_check("card folders").finding


def test_an_unreadable_card_is_reported(monkeypatch: Patch, tmp_path: Path, fresh_catalog: Callable[[], None]) -> None:
    (tmp_path / "model_cards").mkdir()
    (tmp_path / "model_cards" / "mine.toml").write_text("name = 3")
    monkeypatch.setenv("RETBENCH_CARDS", str(tmp_path))
    fresh_catalog()
    check = find_failed_check("cards")
    assert "mine.toml:1" in check.finding
