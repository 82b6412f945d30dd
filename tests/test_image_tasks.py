"""Collections of images from the hub: mteb's own loaders read local imitations of its layouts, byte for byte."""

from pathlib import Path

import pytest

from retbench.cards import catalog
from retbench.cards.task import TaskCard
from retbench.corpora.collection import Collection
from retbench.corpora.hub_snapshots import DatasetSnapshot
from retbench.corpora.open_collection import open_collection
from retbench.errors import DataError, InapplicableError
from tests.image_collection import draw, encode
from tests.image_repositories import Rows, hold, write_image_tables

pytest.importorskip("mteb")

RED, BLUE = encode(draw("red"), "JPEG"), encode(draw("blue"))


def write_repository(card: TaskCard, configs: dict[str, tuple[str, Rows]]) -> Path:
    """Write tables of parquet into the cache, as a finished fetch of this card's repository leaves them."""
    folder = write_image_tables(DatasetSnapshot(str(card.source.repo), card.source.revision).folder, configs)
    folder.with_name(f"{folder.name}.json").write_text('{"files": {}, "fingerprint": ""}')
    return folder


def read_images(collection: Collection, part: str) -> dict[str, bytes | None]:
    texts = getattr(collection, part)
    return {row.id: texts.images.read(number) for number, row in enumerate(texts)}


def test_pages_of_vidore_are_read() -> None:
    card = catalog.find_task_card("vidore-v1-arxiv-qa")
    write_repository(
        card,
        {
            "corpus": ("test", {"corpus-id": [0, 1], "image": [hold(RED), hold(BLUE)]}),
            "queries": ("test", {"query-id": [0], "query": ["what is red?"]}),
            "qrels": ("test", {"query-id": [0], "corpus-id": [0], "score": [1]}),
        },
    )
    collection = open_collection(card, with_images=True)
    assert read_images(collection, "corpus") == {"corpus-test-0": RED, "corpus-test-1": BLUE}
    assert collection.queries[0].text == "what is red?"
    assert collection.judgments == {"query-test-0": {"corpus-test-0": 1}}
    with pytest.raises(InapplicableError, match="2 of its 2 documents have images"):
        open_collection(card)


# the prefix of the configurations, and columns of the queries that hold nothing
LAYOUTS: dict[str, tuple[str, Rows]] = {"coco-t2i": ("", {"image": [None]}), "vidore-v3-hr-en": ("english-", {})}


@pytest.mark.parametrize("name", LAYOUTS)
def test_images_of_mtebs_common_layout_are_read(name: str) -> None:
    prefix, empty = LAYOUTS[name]
    card = catalog.find_task_card(name)
    write_repository(
        card,
        {
            f"{prefix}corpus": ("test", {"id": ["a", "b"], "image": [hold(RED), hold(BLUE)]}),
            f"{prefix}queries": ("test", {"id": ["q"], "text": ["a red disc"], **empty}),
            f"{prefix}qrels": ("test", {"query-id": ["q"], "corpus-id": ["a"], "score": [1]}),
        },
    )
    collection = open_collection(card, with_images=True)
    assert read_images(collection, "corpus") == {"a": RED, "b": BLUE}
    assert [row.text for row in collection.queries] == ["a red disc"]


def test_an_image_may_ask_for_a_text() -> None:
    card = catalog.find_task_card("coco-i2t")
    write_repository(
        card,
        {
            "corpus": ("test", {"id": ["a", "b"], "text": ["a red disc", "a blue disc"]}),
            "queries": ("test", {"id": ["q"], "image": [hold(BLUE)]}),
            "qrels": ("test", {"query-id": ["q"], "corpus-id": ["b"], "score": [1]}),
        },
    )
    collection = open_collection(card, with_images=True)
    assert read_images(collection, "queries") == {"q": BLUE}
    assert collection.corpus.images is None


def test_an_image_that_is_not_in_the_table_is_an_error() -> None:
    card = catalog.find_task_card("coco-t2i")
    write_repository(
        card,
        {
            "corpus": ("test", {"id": ["a"], "image": [{"bytes": None, "path": "/etc/hostname"}]}),
            "queries": ("test", {"id": ["q"], "text": ["a red disc"]}),
            "qrels": ("test", {"query-id": ["q"], "corpus-id": ["a"], "score": [1]}),
        },
    )
    with pytest.raises(DataError):
        open_collection(card, with_images=True)
