"""Small copies of images in the HTML page: drawn anew, few, and only beside texts that may be passed on."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from retbench.corpora import thumbnails
from retbench.corpora.images import ImageRows
from retbench.corpora.open_collection import open_collection
from retbench.pipelines.report import build_report
from retbench.pipelines.runs.compare import compare_runs
from retbench.pipelines.runs.saved_run import import_trec_run
from retbench.reports import query_texts
from tests import image_collection, small_collection
from tests.test_query_texts import read_query_data, set_license

COMMENT = "where the photograph was taken"


def decode(address: str) -> Image.Image:
    head, _, content = address.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_a_thumbnail_is_drawn_anew() -> None:
    about = PngImagePlugin.PngInfo()
    about.add_text("Comment", COMMENT)
    data = image_collection.encode(image_collection.draw("red", (600, 300)), pnginfo=about)
    small = decode(thumbnails.build_thumbnail(data + COMMENT.encode()))
    assert (small.format, small.size) == ("JPEG", (thumbnails.SIDE, thumbnails.SIDE // 2))
    assert COMMENT.encode() not in base64.b64decode(thumbnails.build_thumbnail(data).partition(",")[2])
    red, green, blue = small.getpixel((64, 32))
    assert red > 150 > green + blue


def run_on_images(tmp_path: Path, license_name: str | None) -> Path:
    """Score two rankings of a collection with images; return the results folder."""
    folder = image_collection.write_folder(tmp_path / "kettles")
    lines = ["q1 Q0 red 1 2 a", "q1 Q0 words 2 1 a", "q2 Q0 green 1 1 a", "q3 Q0 blue 1 1 a"]
    (tmp_path / "a.trec").write_text("\n".join(lines))
    (tmp_path / "b.trec").write_text("\n".join(line.replace("red", "green") for line in lines))
    for name in ("a.trec", "b.trec"):
        _, run = import_trec_run(tmp_path / name, str(folder), tmp_path / "results", "")
        set_license(run, license_name)
    return tmp_path / "results"


def test_a_page_shows_small_copies_of_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = run_on_images(tmp_path, "mit")
    data = read_query_data(build_report(results).format("html"))
    assert {*data["images"]} == {"red", "green", "blue"}
    assert {*data["query_images"]} == {"q3"}
    assert decode(data["images"]["green"]).size == (90, 30)  # smaller ones keep their size
    assert data["passages"]["green"] == "(image of 90 x 30 pixels)"
    assert "Images: small copies of the first 3" in data["note"]
    monkeypatch.setattr(query_texts, "MAX_IMAGES", 2)
    data = read_query_data(build_report(results).format("html"))
    assert len(data["images"]) + len(data["query_images"]) == 2
    monkeypatch.setattr(query_texts, "MAX_IMAGE_BYTES", 100)
    assert read_query_data(build_report(results).format("html"))["images"] == {}


def test_an_image_that_was_damaged_on_disk_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The checksum of a large file is not computed again while its size and time are the same."""
    results, read = run_on_images(tmp_path, "mit"), ImageRows.read

    def read_cut(images: ImageRows, row: int) -> bytes | None:
        data = read(images, row)
        return data[: len(data) // 2] if data and row == 0 else data

    monkeypatch.setattr(ImageRows, "read", read_cut)
    data = read_query_data(build_report(results).format("html"))
    assert 0 < len(data["images"]) + len(data["query_images"]) < 4
    assert "was damaged on disk" in caplog.text


def test_without_a_licence_a_page_shows_no_image(tmp_path: Path) -> None:
    page = build_report(run_on_images(tmp_path, None)).format("html")
    assert "image/jpeg" not in page
    assert not {"images", "query_images"} & {*read_query_data(page)}


def test_compare_names_the_image_of_a_query(tmp_path: Path) -> None:
    folder = image_collection.write_folder(tmp_path / "discs")
    runs = []
    for name, document in (("a", "blue"), ("b", "red")):
        (tmp_path / f"{name}.trec").write_text(f"q1 Q0 red 1 1 x\nq2 Q0 words 1 1 x\nq3 Q0 {document} 1 1 x")
        runs.append(str(tmp_path / f"{name}.trec"))
    [change] = compare_runs(*runs, task=str(folder)).moved
    assert change.text == "(image of 60 x 40 pixels)"
    assert open_collection(small_collection.build_card(folder), with_images=True).has_images
