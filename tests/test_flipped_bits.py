"""A flipped bit in what a cache keeps: weights, their manifest, answers. It is found before it can change a score."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from safetensors.torch import load_file, save_file

from retbench.cards import catalog
from retbench.cards.mining import MiningSettings
from retbench.cards.stored_recipe import complete_recipe
from retbench.cards.study import Stage, Study
from retbench.encoders.adaptor import ADAPTOR_FILE, load_adaptor
from retbench.engines import fingerprints, model_loader, weights, weights_cache
from retbench.engines.generator import GeneratedAnswer
from retbench.engines.tokenizers import load_tokenizer
from retbench.errors import DataError
from retbench.pipelines.evaluation.request import EvaluationRequest
from retbench.pipelines.evaluation.stored_samples import StoredSample, StoredSamples
from retbench.pipelines.studies.cells import list_study_cells
from retbench.pipelines.studies.status import list_statuses, write_note
from retbench.records.cell import Cell
from retbench.rerankers.answer_cache import CachedGenerator
from retbench.store.pair_scores import PairScoreStore
from retbench.system import checksums
from retbench.system.checked_json import encode_checked_json, parse_checked_json
from retbench.system.checksums import compute_sha256
from retbench.training import checkpoint, hard_negatives, step_plan
from retbench.training.checkpoint import TrainingProgress
from retbench.training.training_set import TrainingQuery, TrainingSet
from tests import tiny_models
from tests.test_model_loader import train_adapter
from tests.test_weights import build_card, write_gguf


def flip_bit(file: Path, position: int) -> None:
    """Flip one bit as a failing disk does: size and time of the file stay."""
    state = file.stat()
    content = bytearray(file.read_bytes())
    content[position // 8] ^= 1 << position % 8
    file.write_bytes(bytes(content))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    checksums._compute_once.cache_clear()  # another process would read the file


@pytest.fixture
def cached(model: Path, tmp_path: Path) -> weights.LocalWeights:
    """Weights in the cache: a converted GGUF file."""
    return weights.obtain_weights(build_card(), path=str(write_gguf(model, tmp_path / "tiny.gguf")))


def load_everything(tmp_path: Path) -> None:
    local = weights.obtain_weights(build_card(), path=str(tmp_path / "tiny.gguf"))
    load_tokenizer(local.folder)
    model_loader.load_text_model(local.folder, "float32")


def test_every_flip_in_cached_weights_is_found(cached: weights.LocalWeights, tmp_path: Path) -> None:
    rng = random.Random(1)
    load_everything(tmp_path)
    files = sorted(file for file in cached.folder.rglob("*") if file.is_file())
    assert {"model.safetensors", "config.json", "tokenizer.json", weights_cache.MANIFEST} <= {f.name for f in files}
    for file in files:
        for _ in range(6):
            position = rng.randrange(8 * file.stat().st_size)
            flip_bit(file, position)
            with pytest.raises(DataError) as caught:
                load_everything(tmp_path)
            assert str(cached.folder) in caught.value.cause + caught.value.next_step
            flip_bit(file, position)
    load_everything(tmp_path)


def test_a_manifest_of_an_earlier_version_is_accepted(cached: weights.LocalWeights, tmp_path: Path) -> None:
    file = cached.folder / weights_cache.MANIFEST
    facts = json.loads(file.read_text())
    file.write_text(
        json.dumps({key: facts[key] for key in ("source", "fingerprint", "sha256", "revision", "label", "files")})
    )
    load_everything(tmp_path)
    assert weights_cache.read_manifest(cached.folder).checksums  # type: ignore[union-attr]  # it was read before


def forget_checksums(folder: Path, **changes: Any) -> None:
    """Make the manifest of a folder one of an earlier version."""
    file = folder / weights_cache.MANIFEST
    facts = {**parse_checked_json(file.read_bytes()), **changes}
    file.write_text(json.dumps({key: facts[key] for key in facts if key not in ("checksums", "parent_fingerprint")}))


def test_a_folder_of_an_earlier_version_gets_its_checksums(model: Path, own_cache: Path) -> None:
    """Its fingerprint tells whether it changed before; afterwards its checksums do."""
    folder = own_cache / "weights" / "old"
    fingerprint = fingerprints.compute_folder_fingerprint(model)

    def create(work: Path) -> weights_cache.PreparedWeights:
        shutil.copytree(model, work / "folder")
        return weights_cache.PreparedWeights(work / "folder", "hub a/b", fingerprint)

    weights_cache.get_or_create(folder, lambda _: True, create)
    forget_checksums(folder)
    flip_bit(folder / "model.safetensors", 80_000)
    with pytest.raises(DataError, match="old changed since it was fetched"):
        weights_cache.verify_files(folder)
    flip_bit(folder / "model.safetensors", 80_000)
    weights_cache.verify_files(folder)
    flip_bit(folder / "generation_config.json", 80)  # no part of the fingerprint
    with pytest.raises(DataError, match=r"generation_config\.json is damaged"):
        weights_cache.verify_files(folder)


class FakeGenerator:
    """A generator that counts its requests."""

    name = "fake"
    reasoning_limit = 0

    def __init__(self) -> None:
        self.requests = 0

    def describe(self) -> dict[str, Any]:
        return {"engine": "fake"}

    def generate(self, prompt: str, max_tokens: int, pattern: str = "") -> GeneratedAnswer:
        self.requests += 1
        return GeneratedAnswer("[2] > [1]", 0.0, 12, 7)

    def score_yes_no(self, prompts: Any) -> list[GeneratedAnswer]:
        self.requests += len(prompts)
        return [GeneratedAnswer("", 1.25, 12, 0) for _ in prompts]


def ask(generator: Any) -> list[GeneratedAnswer]:
    cache = CachedGenerator(generator)
    return [cache.generate("order", 5), *cache.score_yes_no(["good?"])]


def test_every_flip_in_a_kept_answer_asks_again(own_cache: Path) -> None:
    generator: Any = FakeGenerator()
    expected = ask(generator)
    assert ask(generator) == expected
    assert generator.requests == 2
    rng, harmless = random.Random(1), 0
    for file in (own_cache / "answers").rglob("*.json"):
        for position in rng.sample(range(8 * file.stat().st_size), 40):
            content = file.read_bytes()
            flip_bit(file, position)
            before = generator.requests
            assert ask(generator) == expected
            harmless += generator.requests == before
            file.write_bytes(content)
    assert harmless < 8  # in the name of the checksum


@pytest.mark.parametrize(
    "answer", [{"text": [{"type": "text"}]}, {"text": 3}, {"yes": "x"}, {"yes": None}, {"text": None}]
)
def test_an_ill_typed_answer_of_an_earlier_version_asks_again(answer: dict[str, Any], own_cache: Path) -> None:
    generator: Any = FakeGenerator()
    expected = ask(generator)
    for file in (own_cache / "answers").rglob("*.json"):
        file.write_text(json.dumps({**parse_checked_json(file.read_bytes()), **answer}))
    assert ask(generator) == expected
    assert generator.requests == 4


def test_checked_json_finds_every_changed_value() -> None:
    facts = {"rows": 3, "names": ["a", "ü"], "deep": {"x": None}}
    content = encode_checked_json(facts)
    assert parse_checked_json(content) == facts
    assert parse_checked_json(json.dumps(facts).encode()) == facts  # of an early version
    for wrong in (content.replace(b"3", b"4"), content.replace(b'"a"', b'"b"'), b"[]", b"3", b"", b"[" * 9000):
        with pytest.raises(ValueError, match=r".*"):
            parse_checked_json(wrong)


# A training that is resumed


def flip_and_read(file: Path, flips: int, read: Callable[[], Any], expected: Any) -> int:
    """Flip one bit at a time. What is read is as before, or an error; return how many errors there were."""
    rng, errors, content = random.Random(file.name), 0, file.read_bytes()
    for position in rng.sample(range(8 * len(content)), flips):
        flip_bit(file, position)
        try:
            assert read() == expected, f"bit {position} of {file.name}"
        except DataError as error:
            errors += 1
            assert str(file.name) in error.cause  # noqa: PT017  # only some flips are harmless
        file.write_bytes(content)
    return errors


@pytest.mark.parametrize("folder", ["checkpoint-00000004", "best-00000002"])
@pytest.mark.parametrize("name", [checkpoint.STATE_FILE, checkpoint.PROGRESS_FILE])
def test_every_flip_in_a_checkpoint_trains_again(tmp_path: Path, folder: str, name: str) -> None:
    weights = {"w": torch.nn.Parameter(torch.arange(6.0))}
    optimizer = torch.optim.AdamW(weights.values())
    progress = TrainingProgress(4, 1.5, 900, best=0.25, best_step=2)
    whole, rng, harmless = tmp_path / "whole", random.Random(name), 0
    checkpoint.save_best_weights(whole, {"weight:w": torch.ones(6)}, progress)
    checkpoint.save_checkpoint(whole, checkpoint.collect_state(weights, optimizer), progress)
    for number in range(30):
        copy = Path(shutil.copytree(whole, tmp_path / str(number)))
        file = copy / folder / name
        flip_bit(file, rng.randrange(8 * file.stat().st_size))
        found = checkpoint.load_checkpoint(copy, weights, optimizer)
        assert found in (progress, TrainingProgress())
        assert bool(checkpoint.list_checkpoints(copy)) == (found == progress)
        harmless += found == progress
    assert harmless < 8  # in the name of a checksum


def test_best_weights_stay_until_a_checkpoint_names_others(tmp_path: Path) -> None:
    weights = {"w": torch.nn.Parameter(torch.zeros(2))}
    optimizer = torch.optim.AdamW(weights.values())

    def save_best(step: int, value: float) -> TrainingProgress:
        progress = TrainingProgress(step, best=value, best_step=step)
        checkpoint.save_best_weights(tmp_path, {"weight:w": torch.full((2,), value)}, progress)
        return progress

    first = save_best(2, 0.5)
    checkpoint.save_checkpoint(tmp_path, checkpoint.collect_state(weights, optimizer), first)
    second = save_best(3, 0.75)  # and killed before the next checkpoint
    assert checkpoint.load_checkpoint(tmp_path, weights, optimizer) == first
    checkpoint.restore_best_weights(tmp_path, weights, first)
    assert weights["w"].tolist() == [0.5, 0.5]
    checkpoint.save_checkpoint(tmp_path, checkpoint.collect_state(weights, optimizer), second)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-00000003", "checkpoint-00000003"]
    (tmp_path / "best-00000003" / checkpoint.STATE_FILE).write_bytes(b"")
    with pytest.raises(DataError, match="best-00000003 is damaged"):
        checkpoint.restore_best_weights(tmp_path, weights, second)


def test_a_flip_in_the_plan_of_a_training_is_found(tmp_path: Path) -> None:
    facts = {"recipe": complete_recipe({"name": "r"}), "parent": "f" * 64, "data": {"queries": 8}}

    def read() -> int:
        return step_plan.load_or_create_plan(tmp_path, facts, lambda: 12)

    assert read() == 12
    assert flip_and_read(tmp_path / step_plan.PLAN_FILE, 40, read, 12) > 22


def test_a_flip_in_mined_negatives_is_found(tmp_path: Path) -> None:
    queries = [TrainingQuery(f"query {n}", (n,), ((n + 1) % 9, (n + 2) % 9)) for n in range(9)]
    training_set = TrainingSet("s", queries, [f"passage {n}" for n in range(9)], "f").with_queries(
        queries, negatives={"miner": "bm25"}
    )
    file = tmp_path / "negatives.jsonl"
    hard_negatives.write_hard_negatives(training_set, file, MiningSettings("bm25"))

    def read() -> list[TrainingQuery]:
        return hard_negatives.read_hard_negatives(training_set, file).queries

    assert read() == queries
    assert flip_and_read(file, 40, read, queries) > 32
    content = file.read_text().replace('"sha256"', '"unknown"')  # as if from an earlier version, and changed by hand
    file.write_text(content.replace("[1, 2]", "[1, 20]"))
    with pytest.raises(DataError, match="has negatives that are no passages of s"):
        read()


# A merged adapter and its parent


def test_an_adapter_is_merged_again_when_its_parent_changed(model: Path, tmp_path: Path) -> None:
    parent = tiny_models.build_model(tmp_path / "parent")
    train_adapter(parent, tmp_path / "adapter", str(parent))
    (tmp_path / "adapter" / "training.json").unlink(missing_ok=True)  # an adapter of others has no fingerprint

    def merge() -> torch.Tensor:
        local = weights.obtain_weights(catalog.find_model_card(str(tmp_path / "adapter")))
        return load_file(local.folder / "model.safetensors")["norm.weight"]

    before = merge()
    assert torch.equal(merge(), before)
    tensors = load_file(parent / "model.safetensors")
    tensors["model.norm.weight"] *= 3
    save_file(tensors, parent / "model.safetensors", {"format": "pt"})
    assert torch.equal(merge(), before * 3)
    (parent / "config.json").unlink()
    parent.rename(tmp_path / "gone")
    assert torch.equal(merge(), before * 3)  # a parent that is gone cannot have changed


def test_an_adapter_over_itself_is_an_error(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": str(tmp_path / other)})
        )
        (tmp_path / name / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(DataError, match="is an adapter over itself"):
        weights.obtain_weights(catalog.find_model_card(str(tmp_path / "a")))


def flip_often(file: Path, flips: int, read: Callable[[], Any]) -> tuple[list[Any], int]:
    """Flip random bits of a file, one at a time: what was read, and how many flips were refused with a reason."""
    rng, found, refused = random.Random(file.suffix), [], 0
    for _ in range(flips):
        position = rng.randrange(8 * file.stat().st_size)
        flip_bit(file, position)
        try:
            found.append(read())
        except DataError as problem:
            refused += str(file) in problem.cause
        flip_bit(file, position)
    return found, refused


def test_a_flip_in_a_score_of_a_pair_is_a_missing_score(own_cache: Path) -> None:
    """SQLite notices damage of its own structure, but not of a number."""
    store, pairs = PairScoreStore.open_for("judge", {}), [(f"query {n}", f"document {n}") for n in range(40)]
    scores = [0.5 + n / 100 for n in range(40)]
    store.add_scores(pairs, scores)
    found, refused = flip_often(store.file, 150, lambda: store.find_scores(pairs))
    assert all(got in (None, score) for read in found for got, score in zip(read, scores, strict=True))
    assert sum(None in read for read in found) > 10
    assert refused > 5


def test_no_flip_in_a_note_of_a_study_changes_a_status(tmp_path: Path) -> None:
    plan = Study("s", "s", (Stage("words", ("bm25",), tasks=("scifact",)),))
    (slot,) = list_study_cells(plan, plan.stages[0])
    write_note(slot, Cell("bm25", "bm25", "scifact", "-", "-", "failed", error="the disk is full"), tmp_path)
    expected = list_statuses(plan, tmp_path)
    found, refused = flip_often(slot.get_note_path(tmp_path), 100, lambda: list_statuses(plan, tmp_path))
    assert all(statuses == expected for statuses in found)  # such as a flip of white space
    assert refused > 50


def test_no_flip_in_a_stored_sample_changes_its_size(tmp_path: Path) -> None:
    request, samples = EvaluationRequest(("bm25",), ("scifact",)), StoredSamples(tmp_path)
    sample = StoredSample(3.0, 37, 170.0)
    samples.add(request, sample)
    found, refused = flip_often(samples.file, 100, lambda: samples.find(request, 3.0))
    assert all(one == samples.find(request, 3.0) for one in found)
    assert refused > 50


def test_no_flip_changes_an_adaptor(tmp_path: Path) -> None:
    file = tmp_path / ADAPTOR_FILE
    file.write_bytes(save({"residual.weight": np.ones((4, 4), dtype=np.float32)}))
    checksum = compute_sha256(file)
    found, refused = flip_often(file, 50, lambda: load_adaptor(file, checksum, "cosine"))
    assert (found, refused) == ([], 50)
