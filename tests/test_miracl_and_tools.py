"""MIRACL and tool retrieval through mteb's loaders, from an imitation of their repositories at the pinned commits."""

import pytest

from retbench.cards import catalog
from retbench.corpora.open_collection import open_collection
from tests import small_collection
from tests.hub_repositories import build_retrieval_configs, write_fetched_repository


@pytest.mark.parametrize("name", ["miracl-yo", "miracl-sw", "miracl-yo-hard", "toolret-gta", "toolbench"])
def test_a_subset_is_read_at_its_pinned_revision(name: str) -> None:
    card = catalog.find_task_card(name)
    source = card.source
    configs = build_retrieval_configs(
        small_collection.DOCUMENTS,
        small_collection.QUERIES,
        small_collection.TEST_JUDGMENTS,
        split=card.split,
        prefix=f"{source.subset}-",
    )
    if source.mteb == "ToolRetrieval":  # its queries bring an instruction, which this task leaves out
        split, rows = configs[f"{source.subset}-queries"]
        configs[f"{source.subset}-queries"] = (split, [{**row, "instruction": "Find a tool."} for row in rows])
    write_fetched_repository(str(source.repo), str(source.revision), configs)
    collection = open_collection(card)
    assert [row[:3] for row in collection.corpus] == list(small_collection.DOCUMENTS)
    assert [(row.id, row.text) for row in collection.queries] == list(small_collection.QUERIES[:3])
    assert collection.judgments["q1"] == {"tea": 2, "coffee": 2, "kettle": 1}


def test_the_suites_are_the_eighteen_languages_and_the_sets_of_toolret() -> None:
    suites = catalog.load_suites()
    whole, hard = (suites.find(name).expand_tasks() for name in ("miracl", "miracl-hard-negatives"))
    assert [f"{name}-hard" for name in whole] == list(hard)
    assert len(suites.find("tool-retrieval").expand_tasks()) == 36
    for name in (*whole, *hard):
        assert catalog.find_task_card(name).split == "dev"  # the queries that MIRACL publishes judgments for
