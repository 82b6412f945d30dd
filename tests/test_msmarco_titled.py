"""MS MARCO with titles: Tevatron's passages, with the queries and judgments of the tasks without titles."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from retbench.cards import catalog
from retbench.corpora.hub_snapshots import DatasetSnapshot
from retbench.corpora.open_collection import open_collection, resolve_source
from retbench.corpora.texts import join_fields
from retbench.errors import DataError, MissingError
from retbench.pipelines.mteb_bridge.search_model import find_task_card
from retbench.reports.published_tables import load_published_rows
from retbench.training.hub_datasets import HUB_SETS
from tests import small_collection
from tests.hub_repositories import REVISION, build_retrieval_configs, write_fetched_repository

DEV = catalog.find_task_card("msmarco-dev-titled")
PINNED = replace(DEV, source=replace(DEV.source, corpus_revision=REVISION))


def write_judged() -> None:
    """The repository of queries and judgments; its passages have no titles."""
    documents = [(identifier, "", text) for identifier, _, text in small_collection.DOCUMENTS]
    write_fetched_repository(
        str(DEV.source.repo),
        str(DEV.source.revision),
        build_retrieval_configs(documents, small_collection.QUERIES, small_collection.TEST_JUDGMENTS, split=DEV.split),
    )


def write_titled(title: str = "title") -> Path:
    """Tevatron's repository as a finished fetch leaves it: one gzipped file, no description of its columns."""
    folder = DatasetSnapshot(str(DEV.source.corpus_repo), REVISION).folder
    folder.mkdir(parents=True)
    rows = [{"docid": i, title: f"About {i}", "text": x} for i, _, x in small_collection.DOCUMENTS]
    with gzip.open(folder / "corpus.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    folder.with_name(f"{folder.name}.json").write_text('{"files": {}, "fingerprint": ""}')
    return folder


def test_the_passages_come_with_titles_and_the_judgments_from_the_task() -> None:
    write_judged()
    write_titled()
    titled = open_collection(PINNED)
    untitled = open_collection(catalog.find_task_card("msmarco-dev"))
    assert [row.title for row in titled.corpus] == [f"About {i}" for i, _, _ in small_collection.DOCUMENTS]
    assert [row.text for row in titled.corpus] == [row.text for row in untitled.corpus]
    assert (titled.judgments, list(titled.queries)) == (untitled.judgments, list(untitled.queries))
    assert titled.corpus.fingerprint != untitled.corpus.fingerprint
    first_id, _, first_text = small_collection.DOCUMENTS[0]
    assert join_fields(titled.corpus[0], PINNED.fields) == f"About {first_id} {first_text}".strip()


def test_without_the_titled_passages_the_task_is_not_in_the_cache() -> None:
    write_judged()
    with pytest.raises(MissingError, match=r"Tevatron/msmarco-passage-corpus\) is not in the cache"):
        open_collection(PINNED)


def test_titled_passages_with_another_column_are_named() -> None:
    write_judged()
    write_titled(title="heading")
    with pytest.raises(DataError, match="msmarco-passage-corpus has no column title"):
        open_collection(PINNED)


@pytest.mark.parametrize("name", ["msmarco-dev", "trec-dl-2019", "trec-dl-2020"])
def test_a_titled_task_differs_only_in_its_passages(name: str) -> None:
    plain, titled = catalog.find_task_card(name), catalog.find_task_card(f"{name}-titled")
    assert (plain.fields, titled.fields) == (("text",), ("title", "text"))
    assert (plain.protocol, titled.protocol) == ("standard", "titled")
    assert replace(titled.source, corpus_repo=None) == plain.source
    for rule in ("collection", "split", "lengths", "same_id", "relevant_from", "metric", "depth", "instruction"):
        assert getattr(plain, rule) == getattr(titled, rule), rule
    assert resolve_source(plain).compute_cache_key() != resolve_source(titled).compute_cache_key()
    assert find_task_card(str(plain.source.mteb), plain.split, "default").protocol == "standard"  # mteb has no titles


def test_models_trained_on_titled_passages_are_measured_on_them() -> None:
    trained = {name for row in load_published_rows() if row.table.protocol == "titled" for name in row.scores}
    suite = catalog.load_suites().find("msmarco-titled").tasks
    assert trained == set(suite)
    assert HUB_SETS["msmarco"].suite == "msmarco-titled"
    assert HUB_SETS["msmarco"].evaluation_tasks[:3] == suite
    for name in ("llm-ql", "specialized-llms"):
        stages = catalog.find_study(name).stages
        trained_stages = [stage for stage in stages if stage.verb == "finetune"]
        assert all("msmarco-titled" in stage.suites for stage in trained_stages), name
