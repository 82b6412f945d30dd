"""A server of files that dies or hangs after so many bytes: a plain one, or the parts of the hub that a fetch needs."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

REVISION = "a" * 40
CHUNK_BYTES = 1000


def compute_git_checksum(content: bytes) -> str:
    """Compute git's blob id of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class ServedFiles:
    """The files of a server: after `last` bytes it closes all connections, after `hang` bytes it stops sending.

    The largest file is sent after the others, so that a lost part is always the end of that file.
    """

    def __init__(self, content: dict[str, bytes], last: int | None = None, hang: int | None = None) -> None:
        self.content, self.last, self.hang = content, last, hang
        self.sent, self.whole = 0, set[str]()
        self.largest = max(content, key=lambda path: len(content[path]))
        self.others = threading.Event()
        self.died, self.go = threading.Event(), threading.Event()

    def listing(self, tree: bool) -> bytes:
        names = {path.rpartition("/")[2]: content for path, content in self.content.items()}
        if tree:
            files = [
                {"type": "file", "path": name, "size": len(content), "oid": compute_git_checksum(content)}
                for name, content in names.items()
            ]
            return json.dumps(files).encode()
        siblings = [{"rfilename": name} for name in names]
        return json.dumps({"id": "org/tiny", "sha": REVISION, "siblings": siblings}).encode()


class Handler(BaseHTTPRequestHandler):
    """The parts of the hub's API that a snapshot needs, or a plain file server."""

    protocol_version = "HTTP/1.1"
    files: ClassVar[ServedFiles]

    def do_HEAD(self) -> None:
        self.answer(head=True)

    def do_GET(self) -> None:
        self.answer(head=False)

    def answer(self, head: bool) -> None:
        if self.path.startswith("/api/models/org/tiny"):
            self.put(200, {"Content-Type": "application/json"}, self.files.listing("/tree/" in self.path), head)
            return
        content = self.files.content.get(self.path)
        if content is None:
            self.put(404, {"X-Error-Code": "EntryNotFound"}, b"", head)
            return
        byte_range = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(byte_range[1]) if byte_range else 0
        headers = {"X-Repo-Commit": REVISION, "ETag": f'"{compute_git_checksum(content)}"'}
        if byte_range:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if not head and self.path == self.files.largest and len(self.files.content) > 1:
            self.files.others.wait(60)
        self.put(206 if byte_range else 200, headers, content[start:], head)
        if not head:
            self.files.whole.add(self.path)
            if self.files.whole | {self.files.largest} == self.files.content.keys():
                self.files.others.set()

    def put(self, status: int, headers: dict[str, str], content: bytes, head: bool) -> None:
        if self.files.died.is_set():
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):  # a killed client does not read the rest
            for start in range(0, 0 if head else len(content), CHUNK_BYTES):
                if self.must_close():
                    return
                self.wfile.write(content[start : start + CHUNK_BYTES])
                self.files.sent += len(content[start : start + CHUNK_BYTES])

    def must_close(self) -> bool:
        """Return whether the connection must end now; wait first if the server hangs."""
        files = self.files
        if files.hang is not None and files.sent >= files.hang:
            files.go.wait()
        elif files.last is None or files.sent < files.last:
            return False
        else:
            files.died.set()
        self.close_connection = True
        return True

    def log_message(self, *_: Any) -> None:
        """Do not log requests."""


@contextmanager
def serve_files(files: ServedFiles) -> Iterator[int]:
    """Serve the files on this machine; yield the port."""
    handler = type("Handler", (Handler,), {"files": files})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield running.server_port
        finally:  # else a failing test would never end
            running.shutdown()
            thread.join()
