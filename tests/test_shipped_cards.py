"""The shipped cards: every one loads, and everything that a score depends on is in it."""

import json
import re
from pathlib import Path

import pytest

from retbench.cards import catalog
from retbench.engines import weights
from retbench.errors import DataError, MissingError

FORUMS, LANGUAGES = 12, 6
SUITE_SIZES = {
    "beir": 15,
    "bm25-candidates": 10,
    "bright": 12,
    "bright-gpt4-reason": 12,
    "bright-claude-3-opus-reason": 12,
    "bright-gemini-1.0-reason": 12,
    "bright-grit-reason": 12,
    "bright-llama3-70b-reason": 12,
    "bright-long": 8,
    "bright-pro": 7,
    "browsecomp-plus": 2,
    "coir": 10,
    "coir-notitle": 10,
    "loco": 12,
    "miracl": 18,
    "miracl-hard-negatives": 18,
    "tool-retrieval": 2,
    "longembed": 6,
    "msmarco": 3,
    "msmarco-titled": 3,
    "coreb": 6,
    "mteb-eng-v2-retrieval": 10,
    "nanobeir": 13,
    "nanobeir-multilingual": 13,
    "rteb": 17,
    "swe-bench": 1,
    "r2med": 8,
    "reasonir-candidates": 12,
    "search-adaptor-beir": 14,
    "specialized-beir": 14,
    "specialized-coir": 10,
}
THE_EIGHT = {
    "qwen2.5": "qwen2.5-7b",
    "qwen2.5-instruct": "qwen2.5-7b-instruct",
    "qwen2.5-coder": "qwen2.5-coder-7b",
    "qwen2.5-coder-instruct": "qwen2.5-coder-7b-instruct",
    "qwen2.5-math": "qwen2.5-math-7b",
    "qwen2.5-math-instruct": "qwen2.5-math-7b-instruct",
    "deepseek-r1-distill": "deepseek-r1-distill-qwen-7b",
    "qwen2.5-vl": "qwen2.5-vl-7b-instruct",
}


@pytest.mark.parametrize(("suite", "size"), SUITE_SIZES.items())
def test_a_suite_counts_a_group_as_one_task(suite: str, size: int) -> None:
    assert len(catalog.load_suites().find(suite).tasks) == size


def test_suite_members_exist() -> None:
    missing = [
        (s.name, m) for s in catalog.load_suites() for m in s.expand_tasks() if m not in catalog.load_task_cards()
    ]
    assert not missing


def test_a_suite_has_no_duplicate_member_and_no_unused_group() -> None:
    for suite in catalog.load_suites():
        assert len(set(suite.expand_tasks())) == len(suite.expand_tasks()), suite.name
        assert set(suite.groups or {}) <= set(suite.tasks), suite.name


def test_names_are_lower_case_without_spaces() -> None:
    cards = [*catalog.load_task_cards(), *catalog.load_suites(), *catalog.load_model_cards()]
    names = [name for card in cards for name in (card.name, *card.aliases)]
    assert [name for name in names if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name)] == []


@pytest.mark.parametrize("suite", ["beir", "specialized-beir"])
def test_cqadupstack_is_twelve_forums(suite: str) -> None:
    groups = catalog.load_suites().find(suite).groups or {}
    assert [len(members) for members in groups.values()] == [FORUMS]


@pytest.mark.parametrize("suite", ["coir", "coir-notitle", "specialized-coir"])
def test_codesearchnet_is_six_languages_twice(suite: str) -> None:
    groups = catalog.load_suites().find(suite).groups or {}
    assert [len(members) for members in groups.values()] == [LANGUAGES, LANGUAGES]


def test_hub_sources_are_pinned_or_explain_why_not() -> None:
    for task in catalog.load_task_cards():
        if task.source.kind != "hub":
            continue
        pinned = re.fullmatch(r"[0-9a-f]{40}", task.source.revision or "")
        assert pinned or any("could not be checked" in defect for defect in task.defects), task.name


def test_e2rank_has_its_six_checkpoints() -> None:
    """The authors' README lists three sizes, each after its first stage and in full."""
    for size in ("0.6b", "4b", "8b"):
        first, full = (catalog.find_model_card(f"e2rank-{size}{end}") for end in ("-embedding-only", ""))
        assert full.weights
        assert full.weights.repo == f"Alibaba-NLP/E2Rank-{size.upper()}"
        assert first.weights
        assert first.weights.repo == f"{full.weights.repo}-Embedding-Only"
        assert (full.parent, first.parent) == (first.name, f"qwen3-{size}")
        assert {card.method and card.method.default for card in (first, full)} == {"e2rank"}


def test_model_revisions_are_commits() -> None:
    revisions = [card.weights.revision for card in catalog.load_model_cards() if card.weights and card.weights.revision]
    assert revisions
    assert all(re.fullmatch(r"[0-9a-f]{40}", revision) for revision in revisions)


@pytest.mark.parametrize("task", ["arguana", "quora"])
def test_a_query_that_is_a_document_is_not_its_own_result(task: str) -> None:
    assert catalog.find_task_card(task).same_id == "drop"
    assert catalog.find_task_card(f"{task}-study").same_id == "keep"


def test_msmarco_is_scored_like_the_original() -> None:
    dev = catalog.find_task_card("msmarco-dev")
    assert (dev.split, dev.metric, dev.depth, dev.same_id) == ("dev", "mrr_at_10", 1000, "keep")
    tracks = [catalog.find_task_card(f"trec-dl-{year}") for year in (2019, 2020)]
    assert {(track.metric, track.depth) for track in tracks} == {("ndcg_at_10", 1000)}


def test_the_study_never_truncates_and_keeps_self_matches() -> None:
    for suite in ("specialized-beir", "specialized-coir"):
        for name in catalog.load_suites().find(suite).expand_tasks():
            task = catalog.find_task_card(name)
            assert (task.protocol, task.same_id) == ("study", "keep"), name
            assert (task.lengths.query, task.lengths.document) == (0, 0), name


def test_the_two_coir_routes_differ_only_in_the_title() -> None:
    for name in catalog.load_suites().find("coir").expand_tasks():
        joined, dropped = catalog.find_task_card(name), catalog.find_task_card(f"{name}-notitle")
        assert (joined.fields, dropped.fields) == (("title", "text"), ("text",)), name
        assert (joined.protocol, dropped.protocol) == ("mteb", "coir"), name
        assert (joined.source, joined.lengths, joined.metric) == (dropped.source, dropped.lengths, dropped.metric), name


@pytest.mark.parametrize(("alias", "name"), THE_EIGHT.items())
def test_the_eight_models_of_the_study(alias: str, name: str) -> None:
    assert catalog.find_model_card(alias).name == name


def test_default_methods_exist() -> None:
    for card in catalog.load_model_cards():
        assert card.method is None or card.method.default in catalog.load_methods(), card.name


def test_an_adapter_names_its_parent() -> None:
    adapters = [card for card in catalog.load_model_cards() if card.weights and card.weights.layout == "adapter"]
    assert len(adapters) == 8
    assert all(card.parent for card in adapters)
    for card in adapters:
        with pytest.raises(MissingError, match="has an adapter, not the weights of a model") as caught:
            weights.obtain_weights(card)
        assert str(card.parent) in caught.value.next_step


def test_parents_are_cards() -> None:
    assert [
        card.name
        for card in catalog.load_model_cards()
        if card.parent and card.parent not in catalog.load_model_cards()
    ] == []


def test_expected_scores_are_between_0_and_1_and_have_a_source() -> None:
    for task in catalog.load_task_cards():
        for known in task.expected:
            assert 0 < known.score < 1, task.name
            assert 0 < known.tolerance < 0.1, task.name
            assert known.source, task.name


def test_weights_of_another_size_suggest_their_card(tmp_path: Path) -> None:
    shape = catalog.find_model_card("qwen2.5-coder-1.5b").shape
    assert shape is not None
    figures = {"num_hidden_layers": shape.layers, "hidden_size": shape.width, "vocab_size": shape.vocabulary}
    (tmp_path / "config.json").write_text(json.dumps(figures))
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(DataError, match=r"are not qwen2\.5-coder-7b") as caught:
        weights.find_local_weights(catalog.find_model_card("qwen2.5-coder-7b"), path=str(tmp_path))
    offered = re.findall(r"--model (\S+)", caught.value.next_step)
    assert offered[0] == "qwen2.5-coder-1.5b"
    assert offered[-1] == "deepseek-r1-distill-qwen-1.5b"
    assert {catalog.find_model_card(name).shape for name in offered} == {shape}


RELEASED = {
    "qwen2.5-{}": ("0.5b", "1.5b", "3b", "7b", "14b", "32b", "72b"),
    "qwen2.5-{}-instruct": ("0.5b", "1.5b", "3b", "7b", "14b", "32b", "72b"),
    "qwen2.5-coder-{}": ("0.5b", "1.5b", "3b", "7b", "14b", "32b"),
    "qwen2.5-coder-{}-instruct": ("0.5b", "1.5b", "3b", "7b", "14b", "32b"),
    "qwen2.5-math-{}": ("1.5b", "7b", "72b"),
    "qwen2.5-math-{}-instruct": ("1.5b", "7b", "72b"),
    "deepseek-r1-distill-qwen-{}": ("1.5b", "7b", "14b", "32b"),
    "qwen2.5-vl-{}-instruct": ("3b", "7b", "32b", "72b"),
    "qwen3-{}": ("0.6b", "1.7b", "4b", "8b", "14b", "32b"),
    "qwen3-embedding-{}": ("0.6b", "4b", "8b"),
}


@pytest.mark.parametrize("line", RELEASED)
def test_every_released_size_of_a_family_has_a_card(line: str) -> None:
    assert [line.format(size) for size in RELEASED[line] if line.format(size) not in catalog.load_model_cards()] == []


@pytest.mark.parametrize("name", THE_EIGHT.values())
def test_the_eight_models_declare_their_eos_token(name: str) -> None:
    eos_tokens = [
        note for note in catalog.find_model_card(name).notes if "The end-of-sequence token in its config is" in note
    ]
    assert len(eos_tokens) == 1
    assert re.search(r"15164[35]", eos_tokens[0])


@pytest.mark.parametrize("size", ["1.5b", "7b", "72b"])
def test_qwen_math_starts_from_qwen(size: str) -> None:
    """Its authors initialise the base models with Qwen2.5's, so the effect of mathematics has a row to subtract."""
    assert catalog.find_model_card(f"qwen2.5-math-{size}").parent == f"qwen2.5-{size}"
