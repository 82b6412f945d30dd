"""Training data and models that cannot be trained are refused before training starts."""

import gzip
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retbench.cards.recipe import BatchSettings, ContrastiveSettings
from retbench.errors import DataError, ResourceError
from retbench.training import cost_estimate
from retbench.training.contrastive_batches import LabelledBatchSource
from retbench.training.train_forward import split_into_passes
from retbench.training.training_set import read_training_file
from tests import tiny_models
from tests.test_train_loop import RECIPE, build_pairs


def test_a_batch_without_texts_is_an_error() -> None:
    with pytest.raises(DataError, match="a batch has no texts"):
        list(split_into_passes(np.array([], dtype=int), 100))


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_training_file_is_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "own.jsonl").write_text(content)
    with pytest.raises(DataError, match="own: no training pair is left"):
        read_training_file(tmp_path / "own.jsonl")


PAIR = '{"query": "tea", "positives": ["leaves"], "negatives": ["bread"]}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PAIR.encode("utf-16"), r":1: not UTF-8"),
        ((PAIR + PAIR.replace("tea", "thé")).encode("latin-1"), r":2: not UTF-8"),
        (b'{"query": ' + b"[" * 5000, r":1: not JSON: it is nested too deeply"),
        (rb'{"query": "\ud800", "positives": ["x"]}', r":1: incomplete surrogate pair"),
        (rb'{"query": "x", "positives": ["\udc80"]}', r":1: incomplete surrogate pair"),
        (PAIR.replace("}", ', "scores": [NaN, 1]}').encode(), r":1: a score is NaN or infinite"),
        (PAIR.replace("}", ', "scores": 3}').encode(), r":1: scores is not a list of numbers"),
        (PAIR.replace("}", ', "scores": [[], 1]}').encode(), r":1: scores is not a list of numbers"),
        (PAIR.replace("}", f', "scores": [{10**400}, 1]}}').encode(), r":1: scores is not a list of numbers"),
        (b'{"query": "a", "document": [3, 4], "ranking": [1, 2]}', r":1: a positive passage is empty or not a text"),
    ],
    ids=["utf-16", "latin-1", "deep", "query", "passage", "nan", "number", "list", "huge", "ranking"],
)
def test_hostile_training_files_are_errors(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=rf"own\.jsonl{message}"):
        read_training_file(tmp_path / "own.jsonl")


@pytest.mark.parametrize("content", [PAIR.encode(), b"\x1f\x8bxx", gzip.compress(PAIR.encode() * 99)[:-9]])
def test_a_damaged_gzip_file_of_pairs_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"own\.jsonl\.gz is damaged"):
        read_training_file(tmp_path / "own.jsonl.gz")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_field_of_our_own_changes_nothing(mark: str, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text(mark + PAIR.replace("}", ', "listed": [3]}'))
    training_set = read_training_file(tmp_path / "own.jsonl")
    assert [query.listed for query in training_set.queries] == [()]
    content = json.dumps(["tea", ["leaves"], ["bread"], None])
    assert training_set.fingerprint == hashlib.sha256(content.encode()).hexdigest()


def test_a_contrastive_batch_of_one_passage_is_refused() -> None:
    with pytest.raises(DataError, match="at least two passages per batch"):
        replace(RECIPE, batch=BatchSettings(1, 4), contrastive=ContrastiveSettings(hard_negatives=0))
    replace(RECIPE, batch=BatchSettings(1, 4), contrastive=ContrastiveSettings(hard_negatives=1))


def test_one_pair_needs_a_hard_negative() -> None:
    with pytest.raises(DataError, match="needs at least two"):
        LabelledBatchSource(build_pairs(1), ContrastiveSettings(hard_negatives=0), 1)
    assert len(LabelledBatchSource(build_pairs(1), ContrastiveSettings(hard_negatives=1), 1)) == 1


@pytest.mark.parametrize(
    ("lora", "free", "step"), [(True, 1e3, "use a model of at most"), (False, 4e5, "train adapters instead")]
)
def test_a_model_too_big_for_memory_suggests_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: bool, free: float, step: str
) -> None:
    folder = tiny_models.build_model(tmp_path / "tiny")
    monkeypatch.setattr(cost_estimate, "_get_free_bytes_per_process", lambda: free)
    with pytest.raises(ResourceError, match="are free") as caught:
        cost_estimate.check_memory(folder, RECIPE if lora else replace(RECIPE, lora=None))
    assert step in caught.value.next_step


def test_processes_that_share_the_weights_share_their_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_models.build_model(tmp_path / "tiny")
    needed = cost_estimate.count_parameters(folder) * cost_estimate.BYTES_PER_TRAINED_WEIGHT
    recipe = replace(RECIPE, lora=None)
    monkeypatch.setattr(cost_estimate, "_get_free_bytes_per_process", lambda: needed / 3)
    monkeypatch.setattr(cost_estimate.distributed, "get_world_size", lambda: 4)
    cost_estimate.check_memory(folder, replace(recipe, sharding="fsdp"))
    with pytest.raises(ResourceError, match=r"are free$"):
        cost_estimate.check_memory(folder, recipe)
    monkeypatch.setattr(cost_estimate.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ResourceError, match=r"are free on 2 devices$"):
        cost_estimate.check_memory(folder, replace(recipe, sharding="fsdp"))


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_estimate.os, "sysconf", lambda _: 10_000)
    monkeypatch.setattr(cost_estimate, "_get_page_cache_bytes", lambda: 0.0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cost_estimate._get_free_bytes_per_process() == 10_000 * 10_000 / 4
