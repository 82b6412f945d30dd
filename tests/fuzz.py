"""Fuzzes every parser with damaged input: the result must be a value or a retbench error, nothing else.

    python -m tests.fuzz --minutes 10       new inputs every time, counts appended to benchmarks/results/fuzz.jsonl
    python -m tests.fuzz --seed N           the inputs of an earlier run again

Each target has valid samples. Hypothesis damages them (bytes removed, doubled, moved, replaced by strings that broke
other parsers) and shrinks every failing input. `test_fuzz.py` runs a few inputs of each with every `make test`.
"""

import argparse
import atexit
import faulthandler
import gzip
import json
import math
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import hypothesis
import numpy as np
from hypothesis import strategies as st

from retbench.cards import pins
from retbench.cards.engine import Engine
from retbench.cards.method import Method
from retbench.cards.model import ModelCard
from retbench.cards.recipe import Recipe
from retbench.cards.study import Study
from retbench.cards.task import TaskCard
from retbench.corpora import folder_source as layout
from retbench.corpora.collection_cache import compile_collection, read_manifest
from retbench.engines import gguf
from retbench.engines.embeddings_client import EmbeddingsClient
from retbench.engines.fingerprints import read_json_object
from retbench.engines.http_client import EndpointServer, TransientError
from retbench.errors import RetbenchError
from retbench.records.failure import Failure, read_failure
from retbench.records.load_run import read_scored_trec_run
from retbench.records.mteb_results import read_mteb_results_below
from retbench.records.results_folder import RECORD_FILE, read_record
from retbench.records.scored_run import PER_QUERY_FILE, load_scored_run
from retbench.reports import published_tables
from retbench.rerankers.llm_prompts import parse_order
from retbench.system import checksums, toml_parser, user_config
from tests import fuzz_structures as structures
from tests import small_collection

ROOT = Path(__file__).parent.parent
LOG = ROOT / "benchmarks" / "results" / "fuzz.jsonl"
INPUTS_PER_TURN = 60  # inputs of one parser before the next parser is tried
SLOW_INPUTS_PER_TURN = 15  # of a target that runs a command
MAX_TURN_SECONDS = 600  # about ten times what they take
MAX_ADDRESS_SPACE = 8 << 30  # limit of the address space, in bytes

INSERTIONS = (
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"\n", b"\t", b"\\", b'"', b"%", b"../", b"[" * 2000, b'{"a":' * 2000,
    b"9" * 5000, b"-1", b"1e999", b"NaN", b"Infinity", b"null", b"true", b"[]", b"{}", b'""', b"\\ud83d", b"1.5",
    "\u2028".encode(), "\u0661".encode(), b"[1] > [2]", b"<think>", b"</think>", b"\x1f\x8b", b"[[a]]", b"a = 1\n",
)  # fmt: skip


@dataclass(frozen=True)
class Target:
    """One parser: the name of its file, valid contents, and a function that calls it."""

    name: str
    samples: Callable[[], list[bytes]]
    call: Callable[[Path], object]
    damage: Callable[[list[bytes]], st.SearchStrategy[bytes]] | None = None  # instead of changes of single bytes
    quick: int = 25  # inputs of a unit test


@st.composite
def damage_content(draw: st.DrawFn, samples: list[bytes]) -> bytes:
    """Damage a valid file up to four times."""
    content = draw(st.sampled_from(samples))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + draw(st.sampled_from([0, 1, 8, 200, 1 << 20])))))
        new = draw(st.sampled_from(INSERTIONS) | st.binary(max_size=6) | st.just(content[start:end] * 2))
        content = content[:start] + new + content[end:]
    return content


def _make_temporary_path(name: str) -> Path:
    """Return a path in a temporary folder, which is removed when this process ends."""
    folder = tempfile.TemporaryDirectory(prefix="fuzz")
    atexit.register(folder.cleanup)
    return Path(folder.name) / name


def _compile_damaged(name: str, packed: bool, file: Path) -> None:
    """Replace a file of a collection by the damaged one, and compile the collection as a run does."""
    folder = file.parent / "collection"
    shutil.copytree(_write_plain_collection(), folder)
    (folder / name).unlink()
    shutil.copy(file, folder / (f"{name}.gz" if packed else name))
    compile_collection(layout.read_folder(folder), file.parent / "stored")
    read_manifest(file.parent / "stored")


@cache
def _write_plain_collection() -> Path:
    return small_collection.write_folder(_make_temporary_path("small"))


def _read_sample(name: str, packed: bool) -> list[bytes]:
    content = (_write_plain_collection() / name).read_bytes()
    return [gzip.compress(content, mtime=0) if packed else content]


def _compile_damaged_passages(file: Path) -> None:
    """Compile a folder in MS MARCO's layout that has the damaged file."""
    folder = file.parent / "passages"
    folder.mkdir()
    for name, content in PASSAGES.items():
        (folder / name).write_bytes(content)
    shutil.copy(file, folder)
    compile_collection(layout.read_folder(folder), file.parent / "stored")


def _read_cards(pattern: str, count: int = 6) -> list[bytes]:
    """Read the longest shipped cards that match a pattern."""
    files = sorted(
        (file for file in ROOT.glob(pattern) if file.name != "suite.toml"),
        key=lambda file: (-file.stat().st_size, file),
    )
    return [file.read_bytes() for file in files[:count]]


@cache
def _compile_plain() -> Path:
    folder = _make_temporary_path("stored")
    compile_collection(layout.read_folder(_write_plain_collection()), folder)
    return folder


def _read_manifest(file: Path) -> None:
    for file_to_copy in _compile_plain().glob("*.arrow"):
        shutil.copy(file_to_copy, file.parent)
    read_manifest(file.parent)


@cache
def _find_finished_run() -> Path:
    """Return the folder of a finished run of this repository."""
    return min((ROOT / "results").rglob(RECORD_FILE)).parent


def _read_record(file: Path) -> None:
    shutil.copy(_find_finished_run() / PER_QUERY_FILE, file.parent)
    load_scored_run(file.parent, read_record(file))


def _read_scores(file: Path) -> None:
    shutil.copy(_find_finished_run() / RECORD_FILE, file.parent)
    load_scored_run(file.parent, read_record(file.parent / RECORD_FILE))


def _read_pins(file: Path) -> None:
    pins.get_pins_file().parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, pins.get_pins_file())
    pins.read_pin("models", "a")
    pins.write_pin("models", "b", pins.Pin("r", "f"))


def _read_checksums(file: Path) -> None:
    """Read a damaged file of cached checksums: the returned checksum must be correct."""
    user_config.get_cache_folder().mkdir(parents=True, exist_ok=True)
    shutil.copy(file, user_config.get_cache_folder() / "checksums.json")
    assert checksums.cached_sha256(_write_large_file()) == _compute_correct_checksum()


@cache
def _write_large_file() -> Path:
    file = _make_temporary_path("big")
    file.write_bytes(b"x" * checksums.MIN_CACHED_BYTES)
    return file


@cache
def _compute_correct_checksum() -> str:
    return checksums.compute_sha256(_write_large_file())


def _parse_answer(file: Path) -> None:
    """Parse a model's answer about five candidates: the result is always an order of the five."""
    order, _ = parse_order(file.read_text(errors="replace"), 5)
    assert sorted(order) == list(range(5))


def _parse_vectors_answer(file: Path) -> None:
    try:
        EmbeddingsClient(EndpointServer(Engine("endpoint")), "m")._parse_vectors(file.read_bytes(), ["a", "b"])
    except TransientError:
        return


@cache
def _gguf_samples() -> list[bytes]:
    import gguf as library

    file = _make_temporary_path("model.gguf")
    writer = library.GGUFWriter(file, "llama")
    writer.add_file_type(library.LlamaFileType.ALL_F32)
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["a", "b"])
    writer.add_tensor("token_embd.weight", np.ones((2, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [file.read_bytes()]


PASSAGES = {
    "collection.tsv": b"7\tLeaves in hot water.\n8\tBread.\n",
    "queries.dev.tsv": b"1\thow to brew tea\n2\tbread\n",
    "qrels.dev.tsv": b"1\t0\t7\t1\n2\t0\t8\t1\n",
}
RUN = b"q1 Q0 tea 1 2 x\nq1 Q0 a%20b 2 1 x\nq2 Q0 bread 1 1.5 x\n"
MTEB = {
    "task_name": "SciFact", "mteb_version": "2.0", "dataset_revision": "r",
    "scores": {"test": [{"hf_subset": "default", "ndcg_at_10": 0.5, "main_score": 0.5}]},
}  # fmt: skip
VECTORS = {"data": [{"index": 0, "embedding": [0.5, 1.0]}, {"index": 1, "embedding": [1, 0]}]}
FAILURE = Failure("m", "mean", "t", "s", "test", "standard", None, "failed", "cause", "step", 4, "run")
USER_CONFIG = b"""cache = "x"
cards = ["y"]
device = "cpu"
prices = {"H200" = 3.5}
rates = {"m" = {read = 1.0, written = 2.0}}
"""


def _encode(*values: object) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(value).encode() for value in values]


def _build_card_target(cls: type, pattern: str, **arguments: str) -> Target:
    return Target(
        f"{cls.__name__}.toml",
        partial(_read_cards, pattern),
        lambda file: toml_parser.load_card(cls, file, **arguments),
    )


CARD_FILES: tuple[tuple[type, str, dict[str, str]], ...] = (
    (ModelCard, "model_cards/**/*.toml", {}),
    (TaskCard, "tasks/*/*.toml", {"suite": "x"}),
    (Recipe, "recipes/*.toml", {}),
    (Study, "studies/*.toml", {}),
    (Method, "retbench/**/methods/*.toml", {}),
)
TARGETS = (
    *(
        Target(name + ".gz" * packed, partial(_read_sample, name, packed), partial(_compile_damaged, name, packed))
        for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv")
        for packed in (False, True)
    ),
    *(Target(name, lambda name=name: [PASSAGES[name]], _compile_damaged_passages) for name in PASSAGES),
    *(_build_card_target(cls, pattern, **more) for cls, pattern, more in CARD_FILES),
    Target("retbench.toml", lambda: [USER_CONFIG], lambda file: toml_parser.load_card(user_config.UserConfig, file)),
    Target("run.trec", lambda: [RUN], read_scored_trec_run),
    Target("run.trec.gz", lambda: [gzip.compress(RUN, mtime=0)], read_scored_trec_run),
    Target("mteb.json", _encode(MTEB), read_mteb_results_below),
    Target("record.json", lambda: [(_find_finished_run() / RECORD_FILE).read_bytes()], _read_record),
    Target("per_query.parquet", lambda: [(_find_finished_run() / PER_QUERY_FILE).read_bytes()], _read_scores),
    Target("cell.failed.json", _encode(asdict(FAILURE)), read_failure),
    Target("manifest.json", lambda: [(_compile_plain() / "manifest.json").read_bytes()], _read_manifest),
    Target("checksums.json", _encode({"/x": {"size": 1, "mtime_ns": 2, "inode": 3, "sha256": "00"}}), _read_checksums),
    Target("pins.toml", lambda: [b'[models."a"]\nrevision = "r"\nfingerprint = "f"\n'], _read_pins),
    Target("config.json", _encode({"model_type": "llama", "num_hidden_layers": 2}), read_json_object),
    Target("published.toml", partial(_read_cards, "retbench/**/references/*.toml"), published_tables.read_table),
    Target("rerank answer", lambda: [b"[2] > [1] > [5] > [4] > [3]", b"<think>1</think>[3, 1]"], _parse_answer),
    Target("endpoint answer", _encode(VECTORS), _parse_vectors_answer),
    Target("model.gguf", _gguf_samples, gguf.read_header),
    *(
        Target(
            f"{kind} record", partial(structures.read_result_file, name), partial(structures.build_all_reports, name),
            structures.mutate_json, quick=3,
        )
        for kind, name in (("finished", "*/*/m2/*/record.json"), ("failed", "*/*/m3/*.failed.json"))
    ),
    *(
        Target(
            f"model folder {name}", partial(structures.read_model_file, name),
            partial(structures.run_model_folder, name), structures.mutate_json, quick=1,
        )
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", *structures.MODEL_FILES)
    ),
    Target(
        "model folder header", partial(structures.read_model_file, "model.safetensors"),
        partial(structures.run_model_folder, "model.safetensors"), structures.mutate_header, quick=1,
    ),
    Target("GGUF fields", structures.build_gguf_samples, structures.run_gguf, structures.mutate_json, quick=1),
    Target("vectors of an endpoint", _encode(VECTORS), structures.parse_vectors, structures.mutate_json),
    Target("chat of an endpoint", _encode(structures.CHAT_ANSWER), structures.parse_chat, structures.mutate_json),
    *(
        replace(
            _build_card_target(cls, pattern, **more), name=f"fields of {cls.__name__}", damage=structures.mutate_toml
        )
        for cls, pattern, more in CARD_FILES
    ),
)  # fmt: skip


def try_input(target: Target, content: bytes, strict: bool = False) -> None:
    """Parse one input: the result must be a value or, unless `strict`, a RetbenchError."""
    work = Path(tempfile.mkdtemp(prefix="fuzz"))
    try:
        file = work / Path(target.name).name.replace(" ", "-")
        file.write_bytes(content)
        target.call(file)
    except RetbenchError as error:
        if strict:
            raise
        assert error.cause  # noqa: PT017  # a RetbenchError is accepted if it has both lines
        assert error.next_step  # noqa: PT017
    finally:
        shutil.rmtree(work, ignore_errors=True)


def fuzz_target(target: Target, inputs: int, seed: int | None, until: float = math.inf) -> int:
    """Try `inputs` inputs, or until the time `until`; raise the smallest failing input. Return the number tried."""
    attempts = 0

    @hypothesis.given((target.damage or damage_content)(target.samples()))
    @hypothesis.settings(
        max_examples=inputs, deadline=None, database=None, derandomize=seed is None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[phase for phase in hypothesis.Phase if target.quick > 3 or phase is not hypothesis.Phase.shrink],
    )  # fmt: skip
    def attempt_input(content: bytes) -> None:
        nonlocal attempts
        if time.monotonic() < until:
            attempts += 1
            try_input(target, content)

    (attempt_input if seed is None else hypothesis.seed(seed)(attempt_input))()
    return attempts


def main() -> int:
    """Fuzz the parsers in turn until the time is up; exit 1 if one failed."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--minutes", type=float, default=10)
    options.add_argument("--only", default="", help="only targets whose name contains this")
    options.add_argument("--seed", type=int, help="the inputs of an earlier run, whose line in the log has its seed")
    arguments = options.parse_args()
    seed = random.SystemRandom().getrandbits(32) if arguments.seed is None else arguments.seed
    rng = random.Random(seed)
    targets = [target for target in TARGETS if arguments.only in target.name and target.samples()]
    started, counts, broken = time.monotonic(), dict.fromkeys((t.name for t in targets), 0), set[str]()
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_SPACE, MAX_ADDRESS_SPACE))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the counts are written
    with tempfile.TemporaryDirectory() as cache_folder, suppress(SystemExit):
        os.environ["RETBENCH_CACHE"] = cache_folder
        until = started + arguments.minutes * 60
        while time.monotonic() < until:
            for target in [one for one in targets if one.name not in broken]:
                faulthandler.dump_traceback_later(MAX_TURN_SECONDS, exit=True)  # a hang is a finding too
                try:
                    counts[target.name] += fuzz_target(
                        target,
                        INPUTS_PER_TURN if target.quick > 3 else SLOW_INPUTS_PER_TURN,
                        rng.getrandbits(64),
                        until,
                    )
                except Exception as problem:  # noqa: BLE001  # any exception is a finding
                    broken.add(target.name)
                    note = "".join(getattr(problem, "__notes__", []))[:2000]
                    print(f"{target.name}: {problem!r:.500}\n{note}", file=sys.stderr)  # noqa: T201
                if time.monotonic() >= until:
                    break
    facts = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()), "seed": seed, "seconds": round(time.monotonic() - started),
        "inputs": sum(counts.values()), "broken": sorted(broken), "by_parser": counts,
    }  # fmt: skip
    with LOG.open("a", encoding="utf-8") as log:
        log.write(json.dumps(facts) + "\n")
    print(json.dumps(facts, indent=1))  # noqa: T201
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
