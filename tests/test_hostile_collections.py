"""Collections that attack: pipes and devices in place of files, gzip bombs, servers of archives that never end."""

import gzip
import hashlib
import json
import os
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from retbench.cards import catalog
from retbench.corpora import published_files, text_lines
from retbench.corpora.open_collection import open_collection
from retbench.corpora.published_files import PublishedFile
from retbench.corpora.text_lines import read_lines
from retbench.errors import DataError, MissingError
from retbench.records import load_run
from tests.test_run import run_command


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_in_place_of_a_file_is_refused(name: str, kind: str, task: Path, out: Path) -> None:
    (task / name).unlink()
    os.mkfifo(task / name) if kind == "pipe" else (task / name).symlink_to("/dev/zero")
    with pytest.raises(DataError, match="is a pipe or a device"):
        open_collection(catalog.find_task_card(str(task)))
    assert run_command("run", "--model", "bm25", "--task", task, "--out", out).exit_code == 4


ODD_ROWS: dict[str, tuple[bytes, str | None]] = {  # the row, and the id that is read; None if it is refused
    "an id of a megabyte": (json.dumps({"_id": "x" * 2**20, "text": "t"}).encode(), "x" * 2**20),
    "NUL, tab and line end": (rb'{"_id": "a\u0000\t\n", "text": "t"}', "a\0\t\n"),
    "an id that is written from right to left": (rb'{"_id": "\u202eedoc", "text": "t"}', "\u202eedoc"),
    "a key twice": (b'{"_id": "a", "_id": "b", "text": "t"}', "b"),  # the last one counts, as for every reader
    "half a surrogate pair": (rb'{"_id": "\ud800", "text": "t"}', None),
    "NaN": (b'{"_id": NaN, "text": "t"}', None),
    "an infinite number": (b'{"_id": 1e999, "text": "t"}', None),
    "a number of 9,000 digits": (b'{"_id": %s, "text": "t"}' % (b"9" * 9000), None),
    "deep nesting": (b'{"_id": "a", "text": "t", "x": %s' % (b"[" * 100_000), None),
    "a byte order mark in the middle": (b'\xef\xbb\xbf{"_id": "a", "text": "t"}', None),
    "UTF-16": ('{"_id": "a", "text": "t"}'.encode("utf-16"), None),
    "NUL bytes": (bytes(3 << 20), None),
}


@pytest.mark.parametrize("name", ODD_ROWS)
def test_an_odd_row_is_read_as_it_is_or_named(name: str, task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_lines, "MAX_LINE_CHARACTERS", 2 << 20)
    row, identifier = ODD_ROWS[name]
    lines = (task / "corpus.jsonl").read_bytes().splitlines()
    (task / "corpus.jsonl").write_bytes(b"\n".join([*lines[:4], row, *lines[4:], b""]))
    if identifier is not None:
        collection = open_collection(catalog.find_task_card(str(task)))
        assert (collection.corpus[4].id, len(collection.corpus)) == (identifier, len(lines) + 1)
        return
    with pytest.raises(DataError, match=r"corpus\.jsonl:5: ") as caught:
        open_collection(catalog.find_task_card(str(task)))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("line", ["\n", "x\n"])
def test_a_gzip_bomb_is_refused(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_lines, "MIN_UNPACKED", 100_000)
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress(line.encode() * 3_000_000))
    with pytest.raises(DataError, match="unpacks to over 200 times its size"):
        list(read_lines(tmp_path / "corpus.jsonl.gz"))


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_a_huge_line_that_is_not_utf_8_fills_no_memory(name: str, tmp_path: Path) -> None:
    content = b"{}\n" * 3 + b"\xff" + bytes(16 << 20)
    (tmp_path / name).write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
    tracemalloc.start()
    with pytest.raises(DataError, match=r":4: not UTF-8"):
        list(read_lines(tmp_path / name))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


def test_half_a_character_at_the_end_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(b"{}\n{}\n" + "é".encode()[:1])
    with pytest.raises(DataError, match=r":3: not UTF-8"):
        list(read_lines(tmp_path / "corpus.jsonl"))


def test_a_run_file_that_is_a_bomb_or_a_pipe_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_run, "MIN_UNPACKED", 100_000)
    file = tmp_path / "run.trec.gz"
    file.write_bytes(gzip.compress(b"\n" * 3_000_000))
    with pytest.raises(DataError, match="unpacks to over 200 times its size"):
        load_run.read_scored_trec_run(file)
    file.write_bytes(gzip.compress(b"q Q0 d 1 0.5 x\n" * 3))
    assert list(load_run.read_scored_trec_run(file)) == ["q"]
    (tmp_path / "huge.trec").write_text(f"q Q0 d {'9' * 5000} 0.5 x\n")
    assert load_run.read_scored_trec_run(tmp_path / "huge.trec") == {"q": [("d", 0.5)]}
    os.mkfifo(tmp_path / "run.trec")
    with pytest.raises(DataError, match="is a pipe or a device"):
        load_run.read_scored_trec_run(tmp_path / "run.trec")


def test_a_small_file_that_unpacks_well_is_read(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress(b"x\n" * 100_000))
    assert len(list(read_lines(tmp_path / "corpus.jsonl.gz"))) == 100_000


@contextmanager
def serve(send: Callable[[Any], None]) -> Iterator[PublishedFile]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):
                send(self)

        def log_message(self, *_: Any) -> None:
            """Do not log requests."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield PublishedFile(f"http://127.0.0.1:{server.server_port}/small.zip", "sha256", "0" * 64)
        finally:
            server.shutdown()


def send_without_end(handler: Any) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 10_000)


def drip(handler: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    while True:
        handler.wfile.write(b"x")
        time.sleep(0.02)


def drip_headers(handler: Any) -> None:
    while True:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" if not time.sleep(0.02) else b"")


def announce(length: str) -> Callable[[Any], None]:
    def send(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", length)
        handler.end_headers()

    return send


@pytest.mark.parametrize(
    ("send", "message"),
    [
        (send_without_end, "the server sends over 0 GB"),
        (drip, r"the server sent \d+ bytes in 0 seconds"),
        (drip_headers, r"no answer within 0\.3 seconds"),
        (announce("many"), "announces 'many' bytes"),
        (announce("9" * 30), "more than a collection has"),
        (announce("-5"), "announces '-5' bytes"),
    ],
    ids=["without end", "drip", "headers", "no number", "huge", "negative"],
)
def test_a_download_is_bounded(
    send: Callable[[Any], None], message: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published_files, "MAX_FILE_BYTES", 2_000_000)
    monkeypatch.setattr(published_files, "STALL_SECONDS", 0.3)
    with serve(send) as archive, pytest.raises(MissingError, match=message):
        archive.fetch(lambda _: None)
    assert sum(file.stat().st_size for file in own_cache.rglob("*") if file.is_file()) < 4_000_000


def redirect_to(address: str) -> Callable[[Any], None]:
    def send(handler: Any) -> None:
        handler.send_response(302)
        handler.send_header("Location", address)
        handler.end_headers()

    return send


@pytest.mark.parametrize(
    ("address", "message"),
    [("file:///etc/passwd", "file:///etc/passwd"), ("/again", "redirect"), ("ftp://127.0.0.1/x", "unknown url type")],
)
def test_a_download_is_not_redirected_to_a_file_or_for_ever(address: str, message: str, own_cache: Path) -> None:
    with serve(redirect_to(address)) as archive, pytest.raises(MissingError, match=message):
        archive.fetch(lambda _: None)


def test_a_download_follows_a_redirect_to_another_server(own_cache: Path) -> None:
    def send(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(b"zip")

    checksum = hashlib.sha256(b"zip").hexdigest()
    with serve(send) as other, serve(redirect_to(other.url)) as archive:
        replace(archive, checksum=checksum).fetch(lambda _: None)
    assert replace(archive, checksum=checksum).file.read_bytes() == b"zip"
