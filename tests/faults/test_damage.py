"""Files that changed on disk are detected, reported, and computed again or refused; they are never used."""

import gzip
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from retbench.store.shard_store import ShardStore
from tests import fork_server, tiny_models
from tests.faults.helpers import MakeJob, run_job, run_training, run_until_signal, run_without_fault
from tests.test_crash_recovery import TEXTS

pytestmark = pytest.mark.fault

Damage = Callable[[bytes, random.Random], bytes]


def flip_one_bit(content: bytes, rng: random.Random) -> bytes:
    position = rng.randrange(len(content))
    return content[:position] + bytes([content[position] ^ (1 << rng.randrange(8))]) + content[position + 1 :]


DAMAGES: dict[str, Damage] = {
    "one bit": flip_one_bit,
    "cut short": lambda content, draw: content[: draw.randrange(len(content))],
    "zeros": lambda content, _: bytes(len(content)),
    "empty": lambda *_: b"",
}
damages = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)


def get_document_store(job: fork_server.CellRun) -> Path:
    """The folder with the documents' vectors."""
    return max(
        (p.parent for p in Path(job.cache).rglob("plan.json")),
        key=lambda f: ShardStore(f).load_or_create_plan(dict)["rows"],
    )


@damages
@pytest.mark.parametrize("name", ["shard-00003.safetensors", "shard-00003.json", "manifest.json", "plan.json"])
def test_a_damaged_store_gives_the_same_vectors_or_names_what_to_remove(
    server: fork_server.ForkServer, cell: MakeJob, name: str, damage: Damage
) -> None:
    job, rng = cell("done"), random.Random(name)
    expected = run_without_fault(server, job)
    file = get_document_store(job) / name
    file.write_bytes(damage(file.read_bytes(), rng))
    shutil.rmtree(job.out)
    code = run_job(server, job)
    assert "Traceback" not in job.read_output()
    if code:  # the damaged plan is still valid, but has other batches
        assert name == "plan.json"
        assert "remove that folder and run again" in job.read_output()
        shutil.rmtree(file.parent)
    assert run_without_fault(server, job) == expected


@damages
@pytest.mark.parametrize("name", ["record.json", "per_query.parquet", "run.trec.gz"])
def test_a_damaged_record_is_reported_and_the_cell_run_again(
    server: fork_server.ForkServer, cell: MakeJob, name: str, damage: Damage
) -> None:
    job, rng = cell("done"), random.Random(name)
    expected = run_without_fault(server, job)
    (file,) = Path(job.out).rglob(name)
    original, scores = file.read_bytes(), pq.read_table(file.with_name("per_query.parquet"))
    for _ in range(4):
        file.write_bytes(damage(original, rng))
        report = replace(job, argv=("report", job.out))
        assert run_job(server, report) in (0, 1, 4)
        assert "Traceback" not in report.read_output()
        actual = run_without_fault(server, job)
        assert pq.read_table(file.with_name("per_query.parquet")).equals(scores)
        assert gzip.decompress(actual["run.trec.gz"]) == gzip.decompress(expected["run.trec.gz"])
    assert job.count_computed_texts() == TEXTS  # the vectors came from the cache


@pytest.mark.parametrize("missing_field", ["threads", "kernel"])
def test_a_store_of_an_earlier_version_is_resumed(
    server: fork_server.ForkServer, cell: MakeJob, missing_field: str
) -> None:
    expected, rng, job = (
        run_without_fault(server, cell("whole")),
        random.Random(missing_field),
        cell("old", phase="embedding"),
    )
    moments, attempts = cell("counted", phase="embedding").count_moments(server), 0
    while not list(Path(job.cache).rglob("shard-*.json")):
        attempts += 1
        assert attempts < 50
        run_until_signal(server, job, moments, rng)
    for file in Path(job.cache).rglob("plan.json"):
        plan = json.loads(file.read_text())
        del plan[missing_field], plan["seal"]
        file.write_text(json.dumps(plan))
    actual = run_without_fault(server, job)
    for texts in (*expected["texts"].values(), *actual["texts"].values()):
        texts.pop(missing_field, None)
    assert actual == expected


@damages
@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_reported_and_the_weights_stay_the_same(
    server: fork_server.ForkServer, training: MakeJob, name: str, damage: Damage
) -> None:
    expected, rng = run_training(server, training("whole")), random.Random(name)
    moments = training("counted", phase="checkpoint").count_moments(server)
    job = training("damaged", phase="checkpoint")
    while not list(Path(job.out).glob("checkpoint-*[0-9]")):
        run_until_signal(server, job, moments, rng)
    (newest,) = sorted(Path(job.out).glob("checkpoint-*[0-9]"))[-1:]
    (newest / name).write_bytes(damage((newest / name).read_bytes(), rng))
    assert run_training(server, job) == expected
    assert "Traceback" not in job.read_output()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_truncated_weights_are_refused_by_name(
    server: fork_server.ForkServer, cell: MakeJob, tmp_path: Path, name: str, share: float
) -> None:
    folder = tiny_models.build_model(tmp_path / "cut")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: min(int(len(content) * share), len(content) - 2)])
    job = cell("cut", real=True)
    job = replace(job, argv=tuple(str(folder) if word == job.model else word for word in job.argv))
    assert run_job(server, job) == 4, job.read_output()
    assert "Traceback" not in job.read_output()
    assert name in job.read_output()
    assert not list(Path(job.out).rglob("record.json"))
    (folder / name).write_bytes(content)
    assert run_job(server, job) == 0, job.read_output()
