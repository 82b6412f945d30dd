"""Network failures: a hub that dies, a killed download, a server with every kind of fault."""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from retbench.cards import pins
from retbench.corpora import published_files
from retbench.corpora.open_collection import fetch_collection
from retbench.engines import fingerprints
from tests import fork_server, local_server, small_collection, tiny_models
from tests.faults.helpers import MakeJob, run_job
from tests.faults.job import FaultJob
from tests.test_beir_archives import build_archive, build_card, ignore_status
from tests.test_crash_recovery import read_results

pytestmark = pytest.mark.fault

REVISION = "a" * 40
CHUNK_BYTES = 1000


def compute_git_checksum(content: bytes) -> str:
    """Compute git's blob id of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class ServedFiles:
    """The files of a server: after `last` bytes it closes all connections, after `hang` bytes it stops sending.

    The largest file is sent after the others, so that a lost part is always the end of that file.
    """

    def __init__(self, content: dict[str, bytes], last: int | None = None, hang: int | None = None) -> None:
        self.content, self.last, self.hang = content, last, hang
        self.sent, self.whole = 0, set[str]()
        self.largest = max(content, key=lambda path: len(content[path]))
        self.others = threading.Event()
        self.died, self.go = threading.Event(), threading.Event()

    def listing(self, tree: bool) -> bytes:
        names = {path.rpartition("/")[2]: content for path, content in self.content.items()}
        if tree:
            files = [
                {"type": "file", "path": name, "size": len(content), "oid": compute_git_checksum(content)}
                for name, content in names.items()
            ]
            return json.dumps(files).encode()
        siblings = [{"rfilename": name} for name in names]
        return json.dumps({"id": "org/tiny", "sha": REVISION, "siblings": siblings}).encode()


class Handler(BaseHTTPRequestHandler):
    """The parts of the hub's API that a snapshot needs, or a plain file server."""

    protocol_version = "HTTP/1.1"
    files: ClassVar[ServedFiles]

    def do_HEAD(self) -> None:
        self.answer(head=True)

    def do_GET(self) -> None:
        self.answer(head=False)

    def answer(self, head: bool) -> None:
        if self.path.startswith("/api/models/org/tiny"):
            self.put(200, {"Content-Type": "application/json"}, self.files.listing("/tree/" in self.path), head)
            return
        content = self.files.content.get(self.path)
        if content is None:
            self.put(404, {"X-Error-Code": "EntryNotFound"}, b"", head)
            return
        byte_range = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(byte_range[1]) if byte_range else 0
        headers = {"X-Repo-Commit": REVISION, "ETag": f'"{compute_git_checksum(content)}"'}
        if byte_range:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if not head and self.path == self.files.largest and len(self.files.content) > 1:
            self.files.others.wait(60)
        self.put(206 if byte_range else 200, headers, content[start:], head)
        if not head:
            self.files.whole.add(self.path)
            if self.files.whole | {self.files.largest} == self.files.content.keys():
                self.files.others.set()

    def put(self, status: int, headers: dict[str, str], content: bytes, head: bool) -> None:
        if self.files.died.is_set():
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):  # a killed client does not read the rest
            for start in range(0, 0 if head else len(content), CHUNK_BYTES):
                if self.must_close():
                    return
                self.wfile.write(content[start : start + CHUNK_BYTES])
                self.files.sent += len(content[start : start + CHUNK_BYTES])

    def must_close(self) -> bool:
        """Return whether the connection must end now; wait first if the server hangs."""
        files = self.files
        if files.hang is not None and files.sent >= files.hang:
            files.go.wait()
        elif files.last is None or files.sent < files.last:
            return False
        else:
            files.died.set()
        self.close_connection = True
        return True

    def log_message(self, *_: Any) -> None:
        """Do not log requests."""


@contextmanager
def serve_files(files: ServedFiles) -> Iterator[int]:
    """Serve the files on this machine; yield the port."""
    handler = type("Handler", (Handler,), {"files": files})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield running.server_port
        finally:  # else a failing test would never end
            running.shutdown()
            thread.join()


def test_a_hub_that_dies_during_a_fetch_exits_with_3_and_the_fetch_resumes(tmp_path: Path, own_cache: Path) -> None:
    folder = tiny_models.build_model(tmp_path / "tiny")
    content = {f"/org/tiny/resolve/{REVISION}/{file.name}": file.read_bytes() for file in folder.iterdir()}
    whole = sum(map(len, content.values()))
    cards = tmp_path / "cards" / "model_cards"
    cards.mkdir(parents=True)
    (cards / "far.toml").write_text('name = "far"\n[weights]\nsource = "hub"\nrepo = "org/tiny"\n')

    def fetched(port: int) -> subprocess.CompletedProcess[str]:
        environment = {
            "HF_ENDPOINT": f"http://127.0.0.1:{port}",
            "RETBENCH_CARDS": str(cards.parent),
            "HF_HUB_DISABLE_XET": "1",
        }
        command = [sys.executable, "-m", "retbench", "fetch", "far"]
        return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)

    dying = ServedFiles(content, last=whole // 2)
    with serve_files(dying) as port:
        broken = fetched(port)
    assert dying.died.is_set()
    assert broken.returncode == 3, broken.stderr
    assert "Traceback" not in broken.stderr
    assert "next:" in broken.stderr
    assert pins.read_pin("models", "far") is None
    assert not list((own_cache / "weights").glob("*/weights.json"))
    healthy = ServedFiles(content)
    healthy.others.set()
    with serve_files(healthy) as port:
        ended = fetched(port)
    assert ended.returncode == 0, ended.stderr
    assert healthy.whole == {healthy.largest}  # the files fetched before the fault were kept
    assert pins.read_pin("models", "far") == pins.Pin(REVISION, fingerprints.compute_folder_fingerprint(folder))


DOWNLOAD = """
import json, sys
from retbench.cards.task import SourceSpec, TaskCard
from retbench.corpora.open_collection import fetch_collection
fetch_collection(TaskCard("small-archive", SourceSpec(**json.loads(sys.argv[1]))), print)
"""


def test_a_killed_download_resumes(tmp_path: Path) -> None:
    content = build_archive(tmp_path, {"more": random.Random(1).randbytes(4 * published_files.CHUNK_BYTES)})
    files = ServedFiles({"/small.zip": content}, hang=3 * published_files.CHUNK_BYTES)
    with serve_files(files) as port:
        expected = build_card(f"http://127.0.0.1:{port}/small.zip", content)
        archive = published_files.PublishedFile(str(expected.source.url), "md5", str(expected.source.md5)).file
        partial = archive.with_suffix(".partial")
        source = {key: getattr(expected.source, key) for key in ("kind", "url", "md5", "member")}
        running = subprocess.Popen([sys.executable, "-c", DOWNLOAD, json.dumps(source)], stdout=subprocess.DEVNULL)
        while not partial.exists() or partial.stat().st_size < published_files.CHUNK_BYTES:
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL
        downloaded_bytes, files.hang, files.sent = partial.stat().st_size, None, 0
        files.go.set()
        assert len(fetch_collection(expected, ignore_status).corpus) == len(small_collection.DOCUMENTS)
        assert files.sent <= len(content) - downloaded_bytes
        assert not partial.exists()


# A server of embeddings


def not_a_number(body: dict[str, Any]) -> local_server.Answer:
    status, headers, content = local_server.answer_embeddings(body)
    facts = json.loads(content)
    facts["data"][0]["embedding"][0] = float("nan")
    return status, headers, json.dumps(facts).encode()


TEXTS = 23  # 20 documents and the 3 judged queries
FINAL_FAULTS: dict[str, tuple[Callable[[dict[str, Any]], Any], int, str]] = {
    "no more answers": (local_server.answer_with_error(503, "gone"), 5, "the endpoint failed 1 times"),
    "the key was taken back": (local_server.answer_with_error(401, "no"), 3, "RETBENCH_ENDPOINT_KEY"),
    "half an answer": (local_server.answer_half, 5, "no complete answer"),
    "too few vectors": (local_server.answer_too_few, 5, "vectors of one width"),
    "another width": (local_server.answer_narrow, 4, "vectors of width 12, not 24"),
    "not a number": (not_a_number, 4, "zero or not a number"),
}


def run_with_server(job: FaultJob, address: str, collection: Path, engine: str) -> FaultJob:
    words = ("run", "--model", "a/b", "--engine", engine, "--task", str(collection), "--out", job.out)
    return replace(job, argv=words, environment={"RETBENCH_ENDPOINT": address}, keep_encoder=True)


@pytest.mark.parametrize("name", FINAL_FAULTS)
def test_a_server_that_fails_during_a_run_stops_it_with_an_error(
    server: fork_server.ForkServer, cell: MakeJob, tmp_path: Path, name: str
) -> None:
    collection = small_collection.write_folder(tmp_path / "pantry")
    fault, code, headers = FINAL_FAULTS[name]

    with local_server.start_server() as running:
        engine = "endpoint:batch_size=2,max_attempts=1"
        whole, broken = (
            run_with_server(cell(name), running.address, collection, engine) for name in ("whole", "broken")
        )
        assert run_job(server, whole) == 0, whole.read_output()
        expected, byte_range = read_results(whole), len(running.requests)
        running.faults = [local_server.answer_embeddings] * (byte_range // 2) + [fault]
        assert run_job(server, broken) == code, broken.read_output()
        assert headers in broken.read_output()
        assert "Traceback" not in broken.read_output()
        before = len(running.requests)
        assert run_job(server, broken) == 0, broken.read_output()
        assert read_results(broken) == expected
        assert len(running.requests) - before < byte_range  # answered requests were not repeated
        assert sum(len(body["input"]) for body in running.requests[byte_range:]) <= TEXTS + 2 * fork_server.SHARD_ROWS


def test_temporary_server_errors_change_nothing(server: fork_server.ForkServer, cell: MakeJob, tmp_path: Path) -> None:
    collection, faults = (
        small_collection.write_folder(tmp_path / "pantry"),
        (local_server.answer_with_error(500), local_server.answer_half, local_server.answer_too_few),
    )

    def run(name: str) -> dict[str, Any]:
        job = run_with_server(cell(name), running.address, collection, "endpoint:batch_size=2")
        assert run_job(server, job) == 0, job.read_output()
        return read_results(job)

    with local_server.start_server() as running:
        smooth = run("smooth")
        running.faults = [answer for fault in faults for answer in (local_server.answer_embeddings, fault)]
        assert run("rough") == smooth
        assert running.faults == []
