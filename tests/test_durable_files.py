"""Durable files: content reaches the disk before its name does, and a failure leaves the old file."""

import os
from pathlib import Path
from typing import Any

import pytest

from retbench.cards import pins
from retbench.errors import ResourceError
from retbench.pipelines.mteb_bridge import export_results
from retbench.reports.plots import write_plots
from retbench.system import durable_files
from tests import small_collection
from tests.finished_runs import write_finished_run
from tests.test_run import run_command
from tests.test_shard_store import raise_disk_full


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happens on the disk: `flush NAME`, `rename NAME`."""
    happened: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def log_fsync(handle: int) -> None:
        happened.append(f"flush {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        fsync(handle)

    def log_rename(path: Path, target: Path) -> Path:
        happened.append(f"rename {path.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", log_fsync)
    monkeypatch.setattr(Path, "rename", log_rename)
    return happened


def test_a_file_is_flushed_before_it_gets_its_name_and_its_folder_after(tmp_path: Path, events: list[str]) -> None:
    file = tmp_path / "a.json"
    durable_files.write_file_atomically(file, b"{}")
    partial = f"a.json.{os.getpid()}.partial"
    assert events == [f"flush {partial}", f"rename {partial}", f"flush {tmp_path.name}"]
    assert file.read_bytes() == b"{}"


def test_every_file_of_a_folder_is_flushed_before_the_folder_gets_its_name(tmp_path: Path, events: list[str]) -> None:
    work = tmp_path / "work"
    (work / "inner").mkdir(parents=True)
    (work / "inner" / "a").write_bytes(b"a")
    (work / "b").write_bytes(b"b")
    durable_files.move_into_place(work, tmp_path / "done")
    assert sorted(events[:4]) == ["flush a", "flush b", "flush inner", "flush work"]
    assert events[4:] == ["rename work", f"flush {tmp_path.name}"]
    assert (tmp_path / "done" / "inner" / "a").read_bytes() == b"a"


def test_a_pin_is_on_the_disk_when_the_fetch_ends(own_cache: Path, events: list[str]) -> None:
    pins.write_pin("models", "far", pins.Pin("a" * 40, "f" * 64))
    assert [event.split()[0] for event in events] == ["flush", "rename", "flush"]
    assert pins.read_pin("models", "far") == pins.Pin("a" * 40, "f" * 64)
    assert sorted(file.name for file in own_cache.iterdir()) == ["pins.lock", "pins.toml"]


@pytest.mark.parametrize(("owner", "call"), [(os, "fsync"), (Path, "rename"), (Path, "write_bytes")])
def test_a_full_disk_keeps_the_old_pins(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, call: str
) -> None:
    pins.write_pin("models", "far", pins.Pin("a" * 40, "f" * 64))
    with monkeypatch.context() as patch:
        patch.setattr(owner, call, raise_disk_full)
        with pytest.raises(ResourceError, match=r"pins\.toml could not be written: No space left"):
            pins.write_pin("models", "near", pins.Pin("b" * 40, "f" * 64))
    assert pins.read_pin("models", "far") == pins.Pin("a" * 40, "f" * 64)
    assert sorted(file.name for file in own_cache.iterdir()) == ["pins.lock", "pins.toml"]


@pytest.mark.parametrize("name", ["nowhere", "circle", "file/below", "pipe"])
def test_a_folder_that_cannot_be_made_is_refused_before_the_work(name: str, tmp_path: Path) -> None:
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone" / "far")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ResourceError, match=f"{name} cannot be written") as caught:
        durable_files.create_writable_folder(tmp_path / name)
    assert caught.value.next_step == "name another --out"


def test_plots_and_exports_need_a_folder_that_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone" / "far")
    with pytest.raises(ResourceError, match="nowhere cannot be written") as caught:
        write_plots([], tmp_path / "nowhere")
    assert caught.value.next_step == "name another folder for --plots"
    run = write_finished_run(tmp_path / "results", "m", "t", [0.5])
    monkeypatch.setattr(export_results, "_check_exportable", lambda *_: None)  # it would import mteb
    monkeypatch.setattr(export_results, "_get_result_path", lambda _, out: out / "m" / "t.json")
    with pytest.raises(ResourceError, match="nowhere cannot be written"):
        export_results.export_results([str(run)], tmp_path / "nowhere")


@pytest.mark.parametrize("options", [("--objective", "adaptor"), ()])
def test_a_training_asks_for_its_folder_before_it_begins(options: tuple[str, ...], model: Path, tmp_path: Path) -> None:
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone" / "far")
    task = small_collection.write_folder(tmp_path / "pantry")
    words = ("finetune", task, "--model", model, *options, "--out", tmp_path / "nowhere")
    answer = run_command(*words)
    assert answer.exit_code == 5, answer.output
    assert "nowhere cannot be written" in answer.output
    assert "alpha" not in answer.output
