"""Collections with images: what is stored and read back, every kind of bad image, and who may read them."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retbench.cards.task import SourceSpec, TaskCard
from retbench.corpora import images as images_module
from retbench.corpora.collection import Collection
from retbench.corpora.images import check_image, decode_image
from retbench.corpora.open_collection import open_collection
from retbench.corpora.texts import describe_row
from retbench.errors import DataError, InapplicableError
from tests import image_collection, small_collection
from tests.image_collection import build_bomb, draw, encode


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return image_collection.write_folder(tmp_path / "discs")


def open_folder(folder: Path, **fields: object) -> Collection:
    return open_collection(small_collection.build_card(folder, **fields), with_images=True)


def test_images_are_read_back_byte_for_byte(folder: Path) -> None:
    collection = open_folder(folder)
    images = collection.corpus.images
    assert images is not None
    assert [row.id for row in collection.corpus] == ["red", "green", "blue", "words"]
    files = [folder / "images" / name for name in ("red.png", "green.jpg", "blue.webp")]
    assert [images.read(row) for row in range(4)] == [*(file.read_bytes() for file in files), None]
    assert images.read_sizes() == [(60, 40), (90, 30), (28, 84), None]
    assert images.count == 3


def test_a_selection_keeps_its_own_images_and_can_be_sent_to_another_process(folder: Path) -> None:
    images = open_folder(folder).corpus.take([3, 1]).images
    assert images is not None
    received = pickle.loads(pickle.dumps(images))  # noqa: S301  our own bytes
    assert received.read(0) is None
    assert received.read(1) == (folder / "images" / "green.jpg").read_bytes()
    assert len(pickle.dumps(images)) < 1000


def test_the_fingerprint_changes_with_an_image_and_not_with_its_name(folder: Path) -> None:
    before = open_folder(folder).fingerprint
    (folder / "images" / "red.png").rename(folder / "images" / "other")
    text = (folder / "corpus.jsonl").read_text().replace("images/red.png", "images/other")
    (folder / "corpus.jsonl").write_text(text)
    assert open_folder(folder).fingerprint == before
    (folder / "images" / "other").write_bytes(encode(draw("grey")))
    assert open_folder(folder).fingerprint != before


def test_a_collection_of_texts_has_the_fingerprint_it_always_had(tmp_path: Path) -> None:
    collection = open_folder(small_collection.write_folder(tmp_path / "texts"))
    assert collection.corpus.images is None
    assert not collection.has_images
    assert collection.fingerprint == "0b9ca665d78ec9c4f7332e97d0bd1bb2bc8f8f19d5c9fe9b0c79933f6603fca9"


def test_images_after_many_texts_stay_with_their_rows(tmp_path: Path) -> None:
    folder = image_collection.write_folder(tmp_path / "late")
    rows = [{"_id": str(number), "text": f"text {number}"} for number in range(5000)]
    lines = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    image_collection.write_rows(folder / "corpus.jsonl", [*rows, *lines])
    images = open_folder(folder).corpus.images
    assert images is not None
    assert images.read(4999) is None
    assert images.read(5001) == (folder / "images" / "green.jpg").read_bytes()


def test_batches_of_images_are_cut_by_their_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "BYTES_PER_BATCH", 100)
    images = open_folder(folder).corpus.images
    assert images is not None
    assert images.read(2) == (folder / "images" / "blue.webp").read_bytes()


# what is wrong with the image of the document `red`: its bytes or its path, and words of the error
BAD_IMAGES: dict[str, tuple[Callable[[], bytes], str]] = {
    "not an image": (lambda: b"%PDF-1.7 a page", "not an image of a kind that is read (PNG, JPEG, WEBP)"),
    "another type": (lambda: encode(draw("red"), "BMP"), "not an image of a kind that is read"),
    "empty": (lambda: b"", "not an image"),
    "truncated": (lambda: encode(draw("red"), "JPEG")[:-200], "the image is damaged"),
    "truncated PNG": (lambda: encode(draw("red"))[:-40], "the image is damaged"),
    "truncated WebP": (lambda: encode(draw("red"), "WEBP")[:-40], "the image is damaged"),
    "many pixels": (lambda: build_bomb(20_000, 5_000), "20,000 x 5,000 pixels"),
    "a bomb": (lambda: build_bomb(60_000, 60_000), "far too many pixels; the limit is"),
    "many bytes": (lambda: encode(draw("red")) + bytes(images_module.MAX_IMAGE_BYTES), "bytes"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_is_an_error_that_names_its_line(name: str, folder: Path) -> None:
    build, words = BAD_IMAGES[name]
    (folder / "images" / "red.png").write_bytes(build())
    with pytest.raises(DataError) as caught:
        open_folder(folder)
    assert "corpus.jsonl:1" in caught.value.cause
    assert words in caught.value.cause
    assert caught.value.next_step
    assert "\n" not in caught.value.cause


BAD_PATHS = {
    "absent": ("images/nothing.png", "there is no image images/nothing.png"),
    "outside": ("../secret.png", "no path of a file inside of discs"),
    "absolute": ("/etc/hostname", "no path of a file inside of discs"),
    "a number": (3, "no path of a file inside of discs"),
    "an address": ("https://example.org/a.png", "there is no image"),
    "a link": ("images/link.png", "no path of a file inside of discs"),
    "a folder": ("images", "there is no image images"),
    "nothing": ("", "no path of a file inside of discs"),
}


@pytest.mark.parametrize("name", BAD_PATHS)
def test_a_bad_path_is_an_error_that_names_its_line(name: str, folder: Path, tmp_path: Path) -> None:
    path, words = BAD_PATHS[name]
    (tmp_path / "secret.png").write_bytes(encode(draw("red")))
    (folder / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    image_collection.write_rows(folder / "corpus.jsonl", [{"_id": "red", "image": path}])
    with pytest.raises(DataError) as caught:
        open_folder(folder)
    assert "corpus.jsonl:1" in caught.value.cause
    assert words in caught.value.cause


def test_a_query_may_be_an_image_but_not_nothing(folder: Path) -> None:
    assert open_folder(folder).queries.images is not None
    image_collection.write_rows(folder / "queries.jsonl", [{"_id": "q1", "text": ""}])
    with pytest.raises(DataError, match="is empty"):
        open_folder(folder)


def test_a_reader_of_texts_gets_no_collection_with_images(folder: Path) -> None:
    card = small_collection.build_card(folder)
    with pytest.raises(InapplicableError, match="3 of its 4 documents and 1 of its 3 queries have images"):
        open_collection(card)
    with pytest.raises(DataError, match="query 'q3' is only an image"):
        open_collection(small_collection.build_card(folder, images="ignore"))


def test_images_can_be_ignored_where_texts_are_left(folder: Path) -> None:
    rows = [{"_id": "q1", "text": "a red disc"}, {"_id": "q2", "text": "x"}, {"_id": "q3", "text": "a blue disc"}]
    image_collection.write_rows(folder / "queries.jsonl", rows)
    collection = open_collection(small_collection.build_card(folder, images="ignore"))
    assert not collection.has_images
    assert len(collection.corpus) == 4


def test_images_are_decoded_upright_and_without_transparency() -> None:
    turned = Image.new("RGBA", (30, 10), (10, 20, 30, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera that was held upright
    data = encode(turned, "PNG", exif=exif)
    assert check_image(data, "here") == (10, 30)
    decoded = decode_image(data)
    assert (decoded.size, decoded.mode) == ((10, 30), "RGB")
    assert np.asarray(decoded)[0, 0].tolist() == [10, 20, 30]


def test_a_row_with_an_image_is_described_for_people(folder: Path) -> None:
    corpus = open_folder(folder).corpus
    assert describe_row(corpus, 1) == "(image of 90 x 30 pixels)"
    assert describe_row(corpus, 3) == "Colours A text about grey discs."


def test_a_changed_image_file_of_the_cache_is_noticed(folder: Path) -> None:
    collection = open_folder(folder)
    assert collection.corpus.images is not None
    stored = collection.corpus.images.file
    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 1
    stored.write_bytes(bytes(data))
    again = open_folder(folder)  # rebuilt from its source
    assert again.fingerprint == collection.fingerprint
    assert again.corpus.images is not None
    assert again.corpus.images.read(0) == (folder / "images" / "red.png").read_bytes()


def test_the_card_of_a_task_says_how_images_are_used() -> None:
    card = TaskCard("x", SourceSpec("folder", path="x"))
    assert card.images == "read"


def test_read_images_do_not_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of an image are read from the file: pages of a map would count as memory, one image after another."""
    monkeypatch.setattr(images_module, "check_image", lambda data, where: images_module.ImageSize(1, 1))
    pictures = [bytes([number]) * 1_000_000 for number in range(60)]  # more than one batch of the file
    with images_module.ImageWriter(tmp_path / "many.images.arrow") as out:
        out.add(None, "")
        for picture in pictures:
            out.add(picture, "")
    rows = images_module.ImageRows(tmp_path / "many.images.arrow", np.arange(61))
    assert rows.read(0) is None
    before = read_mapped_megabytes()
    for number, picture in enumerate(pictures):
        assert rows.read(number + 1) == picture
    assert read_mapped_megabytes() - before < 10
    (tmp_path / "many.images.arrow").unlink()  # another process rebuilds the collection
    assert rows.read(7) == pictures[6]


def read_mapped_megabytes() -> float:
    """The memory of this process that is mapped files."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile")]
    return int(line.split()[1]) / 1024
