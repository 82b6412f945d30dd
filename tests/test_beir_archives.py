"""BEIR archives: fetched with a checksum, resumed, unpacked safely. The server is local."""

import hashlib
import io
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from retbench.cards import pins
from retbench.cards.task import SourceSpec, TaskCard
from retbench.corpora import published_files
from retbench.corpora.open_collection import fetch_collection, open_collection
from retbench.errors import DataError, MissingError
from tests import small_collection


def ignore_status(_: str) -> None:
    """Ignore status lines."""


def build_archive(tmp_path: Path, extra: dict[str, bytes] | None = None, top: str = "small/") -> bytes:
    folder = small_collection.write_folder(tmp_path / "plain")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, f"{top}{file.relative_to(folder).as_posix()}")
        for name, data in (extra or {}).items():
            archive.writestr(name, data)
    return content.getvalue()


def build_card(url: str, content: bytes, member: str = "small", **fields: Any) -> TaskCard:
    source = SourceSpec("archive", url=url, md5=hashlib.md5(content, usedforsecurity=False).hexdigest(), member=member)
    return TaskCard("small-archive", replace(source, **fields))


class ArchiveHandler(BaseHTTPRequestHandler):
    content = b""
    ranges: ClassVar[list[str | None]] = []
    cut_at: ClassVar[int | None] = None

    def do_GET(self) -> None:
        byte_range = self.headers.get("Range")
        self.ranges.append(byte_range)
        start = int(byte_range.removeprefix("bytes=").rstrip("-")) if byte_range else 0
        if start >= len(self.content):
            self.send_error(416)
            return
        self.send_response(206 if byte_range else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start : self.cut_at])

    def log_message(self, *_: Any) -> None:
        """Do not log requests."""


Serve = Callable[[bytes], tuple[str, type[ArchiveHandler]]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that serves an archive and returns its address and the server's handler."""
    with ExitStack() as stack:

        def start(content: bytes) -> tuple[str, type[ArchiveHandler]]:
            handler = type("Handler", (ArchiveHandler,), {"content": content, "ranges": [], "cut_at": None})
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}/small.zip", handler

        yield start


@pytest.fixture
def http_archive(serve: Serve, tmp_path: Path) -> tuple[TaskCard, type[ArchiveHandler]]:
    """A card whose archive is on an HTTP server, and the server's handler."""
    url, handler = serve(build_archive(tmp_path))
    return build_card(url, handler.content), handler


def test_an_archive_gives_the_collection_of_its_folder(
    http_archive: tuple[TaskCard, type[ArchiveHandler]], tmp_path: Path
) -> None:
    fetched = fetch_collection(http_archive[0], ignore_status)
    assert fetched.fingerprint == open_collection(small_collection.build_card(tmp_path / "plain")).fingerprint
    assert pins.read_pin("collections", "small-archive/test") == pins.Pin(
        str(http_archive[0].source.md5), fetched.fingerprint
    )


def test_an_archive_that_was_not_fetched_is_missing(http_archive: tuple[TaskCard, type[ArchiveHandler]]) -> None:
    with pytest.raises(MissingError, match="is not in the cache") as caught:
        open_collection(http_archive[0])
    assert "retbench fetch small-archive" in caught.value.next_step


def test_unpacked_files_are_removed(http_archive: tuple[TaskCard, type[ArchiveHandler]], own_cache: Path) -> None:
    fetch_collection(http_archive[0], ignore_status)
    assert not list(own_cache.rglob("*.partial"))


def test_a_wrong_checksum_names_both_and_keeps_nothing(
    http_archive: tuple[TaskCard, type[ArchiveHandler]], own_cache: Path
) -> None:
    wrong = replace(http_archive[0], source=replace(http_archive[0].source, md5="0" * 32))
    with pytest.raises(DataError) as caught:
        fetch_collection(wrong, ignore_status)
    assert "0" * 32 in caught.value.cause
    assert str(http_archive[0].source.md5) in caught.value.cause
    assert not list((own_cache / "collections" / "archives").glob("*.partial"))


def test_sha256_takes_precedence_over_md5(http_archive: tuple[TaskCard, type[ArchiveHandler]]) -> None:
    right = hashlib.sha256(http_archive[1].content).hexdigest()
    assert fetch_collection(
        replace(http_archive[0], source=replace(http_archive[0].source, sha256=right, md5="0" * 32)), ignore_status
    )


def test_an_interrupted_download_resumes(http_archive: tuple[TaskCard, type[ArchiveHandler]]) -> None:
    task, server = http_archive
    server.cut_at = 700
    with pytest.raises(MissingError, match=r"could not be fetched: the download ended after 700 bytes") as caught:
        fetch_collection(task, ignore_status)
    assert "the download resumes" in caught.value.next_step
    server.cut_at = None
    assert len(fetch_collection(task, ignore_status).corpus) == len(small_collection.DOCUMENTS)
    assert server.ranges == [None, "bytes=700-"]


def test_a_complete_unverified_download_is_not_repeated(
    http_archive: tuple[TaskCard, type[ArchiveHandler]], own_cache: Path
) -> None:
    task, server = http_archive
    archive = published_files.PublishedFile(str(task.source.url), "md5", str(task.source.md5)).file
    partial = archive.with_suffix(".partial")
    partial.parent.mkdir(parents=True)
    partial.write_bytes(server.content)
    assert len(fetch_collection(task, ignore_status).corpus) == len(small_collection.DOCUMENTS)


def test_an_unreachable_address_is_missing(http_archive: tuple[TaskCard, type[ArchiveHandler]]) -> None:
    http_archive[1].content = b""
    with pytest.raises(MissingError, match="could not be fetched"):
        fetch_collection(http_archive[0], ignore_status)


def test_a_non_http_answer_is_missing(http_archive: tuple[TaskCard, type[ArchiveHandler]]) -> None:
    http_archive[1].do_GET = lambda self: self.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")  # type: ignore[method-assign]  # replaced for this test
    with pytest.raises(MissingError, match="could not be fetched"):
        fetch_collection(http_archive[0], ignore_status)


def fetch_archive(serve: Serve, content: bytes, member: str = "small") -> Any:
    return fetch_collection(build_card(serve(content)[0], content, member), ignore_status)


def test_paths_outside_the_folder_are_not_unpacked(serve: Serve, tmp_path: Path, own_cache: Path) -> None:
    members = {
        "../escaped.jsonl": b"x", "/escaped.jsonl": b"x", "small/../../escaped.tsv": b"x",
        "small/qrels/../../../escaped.tsv": b"x", "small/readme.txt": b"x",
    }  # fmt: skip
    assert len(fetch_archive(serve, build_archive(tmp_path, members)).corpus) == len(small_collection.DOCUMENTS)
    assert not list(tmp_path.rglob("escaped*"))
    assert not list(own_cache.rglob("escaped*"))


def test_the_right_folder_of_many_is_read(serve: Serve, tmp_path: Path) -> None:
    other_members = {"many/other/corpus.jsonl": json.dumps({"_id": "x", "text": "other"}).encode()}
    collection = fetch_archive(serve, build_archive(tmp_path, other_members, top="many/small/"), "many/small")
    assert len(collection.corpus) == len(small_collection.DOCUMENTS)


def test_a_missing_member_is_named(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no collection 'elsewhere'"):
        fetch_archive(serve, build_archive(tmp_path), "elsewhere")


def test_a_zip_bomb_is_refused(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="times its size"):
        fetch_archive(serve, build_archive(tmp_path, {"small/qrels/dev.tsv": b"0" * 20_000_000}))


def test_a_damaged_archive_is_an_error(serve: Serve, tmp_path: Path) -> None:
    content = bytearray(build_archive(tmp_path))
    content[60:70] = b"\0" * 10
    with pytest.raises(DataError, match="is damaged"):
        fetch_archive(serve, bytes(content))


def test_a_file_that_is_no_archive_is_an_error(serve: Serve) -> None:
    with pytest.raises(DataError, match="is damaged"):
        fetch_archive(serve, b"<html>not found</html>")


def test_repeated_judgments_of_a_published_collection_count_once(serve: Serve, tmp_path: Path) -> None:
    repeated = {"small/qrels/again.tsv": b"query\tdoc\tscore\nq1\ttea\t1\nq1\ttea\t2\n"}
    content = build_archive(tmp_path, repeated)
    task = replace(build_card(serve(content)[0], content), split="again")
    assert fetch_collection(task, ignore_status).judgments == {"q1": {"tea": 2}}


@pytest.mark.parametrize("change", ["encrypted", "bzip2"])
def test_an_encrypted_or_unusual_archive_is_refused(change: str, tmp_path: Path, own_cache: Path) -> None:
    content = bytearray(build_archive(tmp_path))
    for mark, flags, method in ((b"PK\x03\x04", 6, 8), (b"PK\x01\x02", 8, 10)):  # the two headers of each member
        start = -1
        while (start := content.find(mark, start + 1)) >= 0:
            content[start + flags] |= change == "encrypted"
            content[start + method] = 12 if change == "bzip2" else content[start + method]
    card = build_card("http://127.0.0.1:9/x.zip", bytes(content))
    file = published_files.find_published_file(card, ".zip").file
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"corpus\.jsonl is encrypted or packed in an unusual way"):
        open_collection(card)
