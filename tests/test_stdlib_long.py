"""The generated long documents: one needle each, at its depth, in unrelated filling."""

import re
from dataclasses import replace

import pytest

from retbench.cards import catalog
from retbench.corpora import stdlib_long, stdlib_suite
from retbench.corpora.open_collection import open_collection, resolve_source
from retbench.corpora.rows import TextRow
from retbench.errors import UsageError


@pytest.fixture(scope="module")
def documents() -> dict[str, list[TextRow]]:
    return {name: list(stdlib_long.generate_collection(name).documents) for name in stdlib_long.LENGTH_BY_NAME}


@pytest.fixture(scope="module")
def needles() -> dict[str, stdlib_suite.StdlibPair]:
    return {pair.id: pair for pair in stdlib_long._select_needles(stdlib_suite.build_text_groups(), "test")}


def identity(row: TextRow) -> tuple[str, int]:
    name, _, depth = row.id.rpartition("@")
    return name, int(depth)


def test_the_same_needles_stand_at_the_same_depths_at_every_length(documents: dict[str, list[TextRow]]) -> None:
    ids = {tuple(row.id for row in rows) for rows in documents.values()}
    assert len(ids) == 1
    depths = [depth for _, depth in map(identity, documents["stdlib-long-256"])]
    counts = [depths.count(depth) for depth in stdlib_long.DEPTHS]
    assert sum(counts) == len(depths) > 50
    assert max(counts) - min(counts) <= 1


def test_each_needle_is_only_in_its_document_at_its_depth(
    documents: dict[str, list[TextRow]], needles: dict[str, stdlib_suite.StdlibPair]
) -> None:
    for rows in documents.values():
        for row in rows:
            name, depth = identity(row)
            needle = needles[name].document
            assert [document.id for document in rows if needle in document.text] == [row.id]
            free_characters = len(row.text) - len(needle)
            assert abs(row.text.index(needle) - free_characters * depth / 100) <= 64  # filling is cut at a space


def test_a_document_is_as_long_as_its_name_says(documents: dict[str, list[TextRow]]) -> None:
    for name, rows in documents.items():
        expected = stdlib_long.LENGTH_BY_NAME[name] * stdlib_long.CHARACTERS_PER_TOKEN
        assert all(expected - 150 < len(row.text) < expected + 10 for row in rows)


def test_a_module_is_used_for_needles_or_for_filling(needles: dict[str, stdlib_suite.StdlibPair]) -> None:
    filling = [p for group in stdlib_suite.build_text_groups() for p in group if not stdlib_long._is_needle_module(p)]
    assert not {stdlib_long._get_module_name(p) for p in filling} & {
        stdlib_long._get_module_name(p) for p in needles.values()
    }
    assert {stdlib_suite.assign_split([needle]) for needle in needles.values()} == {"test"}


def test_documents_do_not_share_filling(
    documents: dict[str, list[TextRow]], needles: dict[str, stdlib_suite.StdlibPair]
) -> None:
    starts = {re.sub(r"\s+", " ", row.text.replace(needles[identity(row)[0]].document, ""))[:60]
              for row in documents["stdlib-long-2048"]}  # fmt: skip
    assert len(starts) > 0.9 * len(documents["stdlib-long-2048"])


def test_a_longer_document_extends_the_shorter_one(documents: dict[str, list[TextRow]]) -> None:
    short, long = documents["stdlib-long-1024"][0], documents["stdlib-long-4096"][0]
    assert identity(short)[1] == 0
    assert long.text.startswith(short.text[:-400])  # except the passage that was cut


def test_the_cards_open_a_deterministic_collection() -> None:
    suite = catalog.load_suites().find("stdlib-long")
    assert [catalog.find_task_card(name).source.generator for name in suite.expand_tasks()] == list(
        stdlib_long.LENGTH_BY_NAME
    )
    card = catalog.find_task_card("stdlib-long-256")
    first = open_collection(card)
    assert len(first.corpus) == len(first.queries) == len(first.judgments)
    assert (
        resolve_source(card).compute_cache_key()
        != resolve_source(catalog.find_task_card("stdlib-long-512")).compute_cache_key()
    )
    stdlib_suite.build_text_groups.cache_clear()
    assert list(stdlib_long.generate_collection("stdlib-long-256").documents) == [
        TextRow(row.id, row.title, row.text, same_row.where)
        for row, same_row in zip(
            first.corpus, stdlib_long.generate_collection("stdlib-long-256").documents, strict=True
        )
    ]


def test_the_train_split_has_other_needles_and_documents(documents: dict[str, list[TextRow]]) -> None:
    test_card = catalog.find_task_card("stdlib-long-256")
    train, test = open_collection(replace(test_card, split="train")), open_collection(test_card)
    train_ids, test_ids = {row.id for row in train.corpus}, {row.id for row in documents["stdlib-long-256"]}
    assert {row.id for row in test.corpus} == test_ids
    assert len(train.corpus) == len(train.queries) == len(train.judgments) > 3 * len(test_ids)
    assert not {identity.rpartition("@")[0] for identity in train_ids} & {i.rpartition("@")[0] for i in test_ids}
    assert not {query.text for query in train.queries} & {query.text for query in test.queries}
    assert not {row.text for row in train.corpus} & {row.text for row in test.corpus}


def test_an_unknown_split_names_the_others() -> None:
    with pytest.raises(UsageError, match="no split 'dev'"):
        stdlib_long.generate_collection("stdlib-long-256", "dev")


def test_an_unknown_length_gets_a_suggestion() -> None:
    with pytest.raises(UsageError) as caught:
        stdlib_long.generate_collection("stdlib-long-265")
    assert "stdlib-long-256" in caught.value.next_step
