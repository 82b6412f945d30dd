"""A process that can be killed: it runs one cell with an encoder that costs nothing, or with the tiny decoder.

The server imports everything once. Each line on stdin is a job for a fork of it, so that a kill at a random moment hits
the work and not the imports. The encoder logs every text that it computes.
"""

import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from retbench.cards.method import Role
from retbench.encoders.dense_encoder import DenseEncoder
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.prompt_tokenizer import PromptTokenizer, TokenizedTexts
from retbench.errors import RetbenchError
from retbench.pipelines.evaluation import evaluate
from retbench.pipelines.evaluation.request import EvaluationRequest
from retbench.pipelines.models import model as model_module
from retbench.retrievers import dense_retriever, embedding_retriever, multi_vector_retriever, term_retriever

WAIT = "wait"  # a line to the server
SHARD_ROWS = 4
WIDTH = 16


@dataclass(frozen=True)
class HashEncoder:
    """Computes a vector from the digest of the token ids, without a model."""

    spec: EncoderSpec
    prompt_tokenizer: PromptTokenizer | None
    dimension: int = WIDTH
    kernel: str = "none"
    computed_dtype: str = "float32"
    shard_tokens: int | None = None

    def tokenize(self, texts: Iterable[str], role: Role) -> TokenizedTexts:
        assert self.prompt_tokenizer
        return self.prompt_tokenizer.tokenize(texts, role, self.spec.get_limit(role))

    def encode(self, batch: TokenizedTexts) -> np.ndarray:
        seeds = [int.from_bytes(hashlib.sha256(ids.tobytes()).digest()[:8], "little") for ids in batch]
        vectors = np.stack([np.random.default_rng(seed).standard_normal(self.dimension) for seed in seeds])
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@dataclass(frozen=True)
class LoggingEncoder:
    """Slows an encoder down and writes a line to a log for every text that it computes."""

    encoder: DenseEncoder
    log: Path
    delay: float

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def encode(self, batch: TokenizedTexts) -> np.ndarray:
        self._log_texts(batch)
        return self.encoder.encode(batch)

    def start_encoding(self, batch: TokenizedTexts) -> Callable[[], np.ndarray]:
        """Begin a batch, as a GPU does ahead of the last one's vectors."""
        self._log_texts(batch)
        start: Callable[[TokenizedTexts], Callable[[], np.ndarray]] = self.encoder.start_encoding  # type: ignore[attr-defined]
        return start(batch)

    def _log_texts(self, batch: TokenizedTexts) -> None:
        time.sleep(self.delay)
        with self.log.open("a") as out:
            out.write("x\n" * len(batch))


@dataclass(frozen=True)
class CellRun:
    """A run of one cell."""

    model: str
    task: str
    out: str
    cache: str
    log: str
    real: bool = False
    delay: float = 0.004

    def count_computed_texts(self) -> int:
        return len(Path(self.log).read_text()) // 2 if Path(self.log).exists() else 0

    def install_encoder(self) -> None:
        """Replace every encoder by the hash encoder or by a logging one; use small shards."""
        os.environ["RETBENCH_CACHE"] = self.cache
        load = model_module.ResolvedModel.load_encoder

        def encoder(self_: model_module.ResolvedModel, spec: EncoderSpec) -> LoggingEncoder:
            inner = load(self_, spec) if self.real else HashEncoder(spec, self_.build_prompt_tokenizer(spec))
            return LoggingEncoder(inner, Path(self.log), self.delay)  # type: ignore[arg-type]

        model_module.ResolvedModel.load_encoder = encoder  # type: ignore[method-assign,assignment]
        dense_retriever.DenseRetriever = partial(dense_retriever.DenseRetriever, shard_rows=SHARD_ROWS)  # type: ignore[misc,assignment]
        retriever = partial(multi_vector_retriever.MultiVectorRetriever, shard_rows=SHARD_ROWS)
        multi_vector_retriever.MultiVectorRetriever = retriever  # type: ignore[misc,assignment]
        term_retriever.TermRetriever = partial(term_retriever.TermRetriever, shard_rows=SHARD_ROWS)  # type: ignore[misc,assignment]
        embedding_retriever.TOKEN_BUDGETS["cpu"] = 64

    def run(self) -> int:
        self.install_encoder()
        (cell,) = evaluate.evaluate(EvaluationRequest((self.model,), (self.task,), ("mean",), out=Path(self.out)))
        if cell.error:
            sys.stderr.write(f"{cell.error}\n{cell.next_step}\n")
        return cell.exit_code


@dataclass(frozen=True)
class ForkServer:
    """The client of the fork server: start jobs in forks, kill them, wait for their exit codes in the same order."""

    process: subprocess.Popen[str]

    def start(self, work: CellRun) -> int:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(asdict(work)) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def wait_for_exit(self) -> int:
        """Wait for the exit code of the first job that was not waited for; a signal is negative."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{WAIT}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start_and_kill(self, work: CellRun, seconds: float) -> bool:
        """Start a job and kill it after some seconds; return whether it was still running."""
        pid = self.start(work)
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        return self.wait_for_exit() == -signal.SIGKILL


@contextmanager
def start_fork_server(module: str = "tests.fork_server") -> Iterator[ForkServer]:
    command = [sys.executable, "-m", module]
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # the other check for a GPU starts CUDA
    with subprocess.Popen(
        command, cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        yield ForkServer(process)
        assert process.stdin
        process.stdin.close()


def serve_forks(kind: type[CellRun] = CellRun) -> None:
    """Fork for every job on stdin and print the process id; for `wait` print the exit code of the first one left."""
    for module in (
        "pandas",
        "transformers.models.qwen2.modeling_qwen2",
        "transformers.models.qwen2.tokenization_qwen2",
    ):
        importlib.import_module(module)
    running: list[int] = []
    for line in sys.stdin:
        if line.strip() == WAIT:
            _, status = os.waitpid(running.pop(0), 0)
            sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
            sys.stdout.flush()
            continue
        pid = os.fork()
        if pid == 0:
            try:
                code = kind(**json.loads(line)).run()
            except RetbenchError as problem:
                sys.stderr.write(f"{problem}\n")
                code = problem.exit_code
            except BaseException:  # noqa: BLE001  a fork must never return to this loop
                traceback.print_exc()
                code = 99
            os._exit(code)
        running.append(pid)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve_forks()
