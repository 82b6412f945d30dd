"""What changed on the disk is seen, told and done again, or refused with the next step; it is never kept."""

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
from tests.faults.helpers import Make, ended, finish, struck, trained
from tests.test_crash_recovery import TEXTS

pytestmark = pytest.mark.fault

Damage = Callable[[bytes, random.Random], bytes]


def flipped(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ (1 << draw.randrange(8))]) + content[place + 1 :]


DAMAGES: dict[str, Damage] = {
    "one bit": flipped,
    "cut short": lambda content, draw: content[: draw.randrange(len(content))],
    "zeros": lambda content, _: bytes(len(content)),
    "empty": lambda *_: b"",
}
damages = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)


def documents(job: fork_server.Work) -> Path:
    """The folder with the documents' vectors."""
    return max(
        (p.parent for p in Path(job.cache).rglob("plan.json")),
        key=lambda f: ShardStore(f).load_or_create_plan(dict)["rows"],
    )


@damages
@pytest.mark.parametrize("name", ["shard-00003.safetensors", "shard-00003.json", "manifest.json", "plan.json"])
def test_a_damaged_store_gives_the_same_vectors_or_says_what_to_remove(
    server: fork_server.Server, cell: Make, name: str, damage: Damage
) -> None:
    job, draw = cell("done"), random.Random(name)
    wanted = finish(server, job)
    file = documents(job) / name
    file.write_bytes(damage(file.read_bytes(), draw))
    shutil.rmtree(job.out)
    code = ended(server, job)
    assert "Traceback" not in job.said()
    if code:  # a plan that still reads as one, of other batches
        assert name == "plan.json"
        assert "remove that folder and run again" in job.said()
        shutil.rmtree(file.parent)
    assert finish(server, job) == wanted


@damages
@pytest.mark.parametrize("name", ["record.json", "per_query.parquet", "run.trec.gz"])
def test_a_damaged_record_is_told_and_the_cell_run_again(
    server: fork_server.Server, cell: Make, name: str, damage: Damage
) -> None:
    job, draw = cell("done"), random.Random(name)
    wanted = finish(server, job)
    (file,) = Path(job.out).rglob(name)
    before, scores = file.read_bytes(), pq.read_table(file.with_name("per_query.parquet"))
    for _ in range(4):
        file.write_bytes(damage(before, draw))
        report = replace(job, argv=("report", job.out))
        assert ended(server, report) in (0, 1, 4)
        assert "Traceback" not in report.said()
        found = finish(server, job)
        assert pq.read_table(file.with_name("per_query.parquet")).equals(scores)
        assert gzip.decompress(found["run.trec.gz"]) == gzip.decompress(wanted["run.trec.gz"])
    assert job.computed() == TEXTS  # the vectors were still there


@pytest.mark.parametrize("lost", ["threads", "kernel"])
def test_a_store_of_an_earlier_version_is_gone_on_with(server: fork_server.Server, cell: Make, lost: str) -> None:
    wanted, draw, job = finish(server, cell("whole")), random.Random(lost), cell("old", phase="embedding")
    moments, tried = cell("counted", phase="embedding").moments(server), 0
    while not list(Path(job.cache).rglob("shard-*.json")):
        tried += 1
        assert tried < 50
        struck(server, job, moments, draw)
    for file in Path(job.cache).rglob("plan.json"):
        plan = json.loads(file.read_text())
        del plan[lost], plan["seal"]
        file.write_text(json.dumps(plan))
    found = finish(server, job)
    for texts in (*wanted["texts"].values(), *found["texts"].values()):
        texts.pop(lost, None)
    assert found == wanted


@damages
@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_told_and_the_weights_come_out_the_same(
    server: fork_server.Server, training: Make, name: str, damage: Damage
) -> None:
    wanted, draw = trained(server, training("whole")), random.Random(name)
    moments = training("counted", phase="checkpoint").moments(server)
    job = training("damaged", phase="checkpoint")
    while not list(Path(job.out).glob("checkpoint-*[0-9]")):
        struck(server, job, moments, draw)
    (newest,) = sorted(Path(job.out).glob("checkpoint-*[0-9]"))[-1:]
    (newest / name).write_bytes(damage((newest / name).read_bytes(), draw))
    assert trained(server, job) == wanted
    assert "Traceback" not in job.said()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_truncated_weights_are_refused_by_name(
    server: fork_server.Server, cell: Make, tmp_path: Path, name: str, share: float
) -> None:
    folder = tiny_models.build(tmp_path / "cut")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: min(int(len(content) * share), len(content) - 2)])
    job = cell("cut", real=True)
    job = replace(job, argv=tuple(str(folder) if word == job.model else word for word in job.argv))
    assert ended(server, job) == 4, job.said()
    assert "Traceback" not in job.said()
    assert name in job.said()
    assert not list(Path(job.out).rglob("record.json"))
    (folder / name).write_bytes(content)
    assert ended(server, job) == 0, job.said()
