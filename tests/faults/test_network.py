"""Network failures: a hub that dies, a killed download, a server with every kind of fault."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retbench.cards import pins
from retbench.corpora import published_files
from retbench.corpora.open_collection import fetch_collection
from retbench.engines import fingerprints
from tests import fork_server, local_server, small_collection, tiny_models
from tests.faults.file_server import REVISION, ServedFiles, serve_files
from tests.faults.helpers import MakeJob, run_job
from tests.faults.job import FaultJob
from tests.test_beir_archives import build_archive, build_card, ignore_status
from tests.test_crash_recovery import read_results

pytestmark = pytest.mark.fault


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
        engine = "endpoint:batch_size=2,max_attempts=1,max_in_flight=4"
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
        most_lost = 4 * fork_server.SHARD_ROWS  # the shards in flight, which may all be half done on a slow machine
        assert sum(len(body["input"]) for body in running.requests[byte_range:]) <= TEXTS + most_lost


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
