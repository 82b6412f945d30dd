"""Flips one random bit of one file, runs and reports again, and counts what happened: `python -m benchmarks.flip_bits`.

A flip is `seen` if the command fails, warns, computes again, or makes another record (of changed weights or a changed
card); `harmless` if every score is the same without a word; and `unnoticed` if a score or a cost in a report changed
without a word. The last must be 0. Size and time of the file stay, as on a failing disk. Everything is built in a
temporary folder: a tiny model as a folder and as a GGUF file, a small collection, BM25; for the pins a model and a
collection of the hub; a study of BM25; the answers of the tiny model that a reranking asks for; and a training that was
interrupted after a checkpoint, which `finetune --resume` finishes. Its outcome is the trained weights.
"""

import argparse
import io
import json
import logging
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from typer.testing import CliRunner

from retbench.cards import catalog, pins
from retbench.cli.main import app
from retbench.corpora import open_collection
from retbench.engines import fingerprints, weights_cache
from retbench.system import checksums
from retbench.training import train_loop
from tests import small_collection, tiny_models
from tests.hub_repositories import REVISION, build_retrieval_configs, write_fetched_repository
from tests.short_recipe import format_short_recipe
from tests.test_weights import write_gguf

RESULT_FILE = Path(__file__).parent / "results" / "flipped_bits.json"
KINDS = {  # the folder or file of each kind, below the work folder
    "results": "results/own",
    "collections": "cache/collections",
    "embeddings": "cache/embeddings",
    "converted weights": "cache/weights",
    "model folder": "tiny",
    "cards": "cards",
    "pins": "cache/pins.toml",
    "trainings": "training",
    "study notes": "results/studies",
    "kept answers": "cache/answers",
}
READ_WITH_RESULTS = ("results", "cards", "study notes")
TRAINED_STEPS = 3  # before the interruption
MINING = """
[mining]
source = "bm25"
rank_to = 5
negatives_per_query = 3
"""
STUDY = 'name = "s"\ntitle = "t"\n[[stages]]\nname = "words"\nmodels = ["bm25"]\ntasks = ["small-card"]\n'
CARD = 'name = "small-card"\nmetric = "ndcg_at_10"\n[source]\nkind = "folder"\npath = "{}"\n'


class Lab:
    """A work folder with finished runs of a model folder, a GGUF file and BM25, and an interrupted training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = io.StringIO()
        logging.getLogger("retbench").addHandler(logging.StreamHandler(self.log))
        (folder / "cards" / "tasks" / "own").mkdir(parents=True)
        os.environ.update(RETBENCH_CACHE=str(folder / "cache"), RETBENCH_CARDS=str(folder / "cards"))
        collection = small_collection.write_folder(folder / "small")
        (folder / "cards/tasks/own/small-card.toml").write_text(CARD.format(collection))
        write_gguf(tiny_models.build_model(folder / "tiny"), folder / "tiny.gguf")
        write_fetched_model(folder / "tiny", folder / "cards")
        write_fetched_collection(folder / "cards")
        write_training_files(folder)
        (folder / "study.toml").write_text(STUDY)
        for kind in ("results", "kept answers"):
            self.run(kind)
        self._call("study", "run", str(folder / "study.toml"), "--out", str(folder / "results"))
        with patch.object(train_loop.TrainLoop, "_train_step", _interrupt_training(TRAINED_STEPS)):
            self._train()

    def run(self, kind: str) -> tuple[bool, list[Any]]:
        """Run the commands that read this kind of file: whether anything failed or was said, and what is shown."""
        checksums._compute_once.cache_clear()  # another process would read the files
        for load in (catalog.load_model_cards, catalog.load_task_cards, catalog.load_suites):
            load.cache_clear()
        self.log.seek(0), self.log.truncate()
        special = {"trainings": self._train, "study notes": self._read_study, "kept answers": self._rerank}
        code, answers = special[kind]() if kind in special else self._run_and_report(kind == "pins")
        return bool(code or self.log.getvalue().strip()), answers

    def _run_and_report(self, with_hub: bool) -> tuple[int, list[Any]]:
        """Report if there are results, run, report again."""
        out = str(self.folder / "results")
        models = [str(self.folder / name) for name in ("tiny", "tiny.gguf")]
        words = ["--model", "far", "--task", "far-task"] if with_hub else ["--model", "bm25", "--task", "small-card"]
        words += [] if with_hub else [word for name in models for word in ("--model", name)]
        run, report = ["run", *words, "--method", "mean", "--out", out, "--json"], ["report", out, "--json"]
        answers = [self._call(*words) for words in ([report, run, report] if Path(out).exists() else [run, report])]
        return max(code for code, _ in answers), [_parse_cells(text) for _, text in answers]

    def _train(self) -> tuple[int, list[Any]]:
        """Begin or continue the training; its weights stand in place of scores."""
        folder, words = self.folder / "training", ["--eval-task", "small-card", "--resume"]
        files = [str(self.folder / "pairs.jsonl"), "--recipe", str(self.folder / "short.toml"), "--out", str(folder)]
        code, _ = self._call("finetune", *files, "--model", str(self.folder / "tiny"), *words)
        weights = folder / "model.safetensors"
        digest = checksums.compute_sha256(weights) if weights.exists() else ""
        return code, [[{"model": "pupil", "settings_id": "", "scores": digest}]]

    def _read_study(self) -> tuple[int, list[Any]]:
        """Read the status of every cell."""
        plan, out = str(self.folder / "study.toml"), str(self.folder / "results")
        code, text = self._call("study", "status", plan, "--out", out, "--json")
        return code, [_parse_cells(text)]

    def _rerank(self) -> tuple[int, list[Any]]:
        """Rerank the candidates of BM25 by the answers of the tiny model."""
        rerank = f"pointwise:model={self.folder / 'tiny'},depth=3"
        words = ["--model", "bm25", "--task", "small-card", "--rerank", rerank]
        code, text = self._call("run", *words, "--out", str(self.folder / "results"), "--json")
        return code, [_parse_cells(text)]

    def _call(self, *words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, list(words))
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout


def _interrupt_training(steps: int) -> Callable[[train_loop.TrainLoop], None]:
    """A training step that is interrupted, as by Ctrl-C, when a number of steps is done."""
    train_step = train_loop.TrainLoop._train_step

    def step(loop: train_loop.TrainLoop) -> None:
        if loop.progress.step == steps:
            raise KeyboardInterrupt
        train_step(loop)

    return step


def write_fetched_model(model: Path, cards: Path) -> None:
    """Put a model of the hub into the cache as a first fetch does, with its pin."""
    (cards / "model_cards").mkdir()
    (cards / "model_cards" / "far.toml").write_text('name = "far"\n[weights]\nsource = "hub"\nrepo = "org/far"\n')
    fingerprint = fingerprints.compute_folder_fingerprint(model)

    def copy(work: Path) -> weights_cache.PreparedWeights:
        shutil.copytree(model, work / REVISION)
        return weights_cache.PreparedWeights(work / REVISION, "hub org/far", fingerprint, revision=REVISION)

    weights_cache.get_or_create(weights_cache.get_weights_folder("far"), lambda _: True, copy)
    pins.write_pin("models", "far", pins.Pin(REVISION, fingerprint))


def write_fetched_collection(cards: Path) -> None:
    """Put a collection of the hub into the cache as a first fetch does, with its pins."""
    texts = small_collection.DOCUMENTS, small_collection.QUERIES, small_collection.TEST_JUDGMENTS
    write_fetched_repository("org/far", REVISION, build_retrieval_configs(*texts))
    card = cards / "tasks" / "own" / "far-task.toml"
    card.write_text('name = "far-task"\nmetric = "ndcg_at_10"\n[source]\nkind = "hub"\nrepo = "org/far"\n')
    pins.write_pin("datasets", "org/far", pins.Pin(REVISION, "f" * 64))
    open_collection.fetch_collection(catalog.find_task_card("far-task"), lambda _: None)


def write_training_files(folder: Path) -> None:
    """Write a training set, and a recipe with a checkpoint and an evaluation after each step and mined negatives."""
    half = len(tiny_models.SENTENCES) // 2
    pairs = zip(tiny_models.SENTENCES[:half], tiny_models.SENTENCES[half:], strict=True)
    rows = [json.dumps({"query": query, "positives": [positive]}) for query, positive in pairs]
    (folder / "pairs.jsonl").write_text("\n".join(rows[:8]) + "\n")
    (folder / "short.toml").write_text(format_short_recipe("eval_steps = 1", hard_negatives=1, tables=MINING))


def _parse_cells(text: str) -> Any:
    """The cells of an answer; a text that is no list of cells is shown as it is."""
    try:
        cells = json.loads(text)
    except ValueError:
        return text
    shown = ("model", "method", "task", "status", "settings_id", "scores", "main_score", "score", "cost")
    return [{key: cell.get(key) for key in shown} for cell in cells] if isinstance(cells, list) else cells


def flip_bit(file: Path, rng: random.Random) -> None:
    """Flip one bit as a failing disk does: size and time of the file stay."""
    state = file.stat()
    content = bytearray(file.read_bytes())
    position = rng.randrange(8 * len(content))
    content[position // 8] ^= 1 << position % 8
    file.write_bytes(bytes(content))
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


def try_flips(lab: Lab, spare: Path, kind: str, flips: int, rng: random.Random) -> Counter[str]:
    """Flip bits of one kind of file, each in a fresh copy of everything."""
    counts: Counter[str] = Counter()
    if kind == "pins":
        shutil.rmtree(lab.folder / "results")
    is_loud, expected = lab.run(kind)
    if is_loud:
        raise RuntimeError(f"without a flip something was said of {kind}: {lab.log.getvalue() or expected}")
    for _ in range(flips):
        shutil.rmtree(lab.folder)
        shutil.copytree(spare, lab.folder, copy_function=shutil.copy2)
        place = lab.folder / KINDS[kind]
        files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
        file = rng.choice([file for file in files if file.stat().st_size])
        flip_bit(file, rng)
        if kind not in READ_WITH_RESULTS:  # else the finished runs would answer
            shutil.rmtree(lab.folder / "results")
        is_loud, answers = lab.run(kind)
        outcome = "seen" if is_loud else _compare(answers, expected, kind in READ_WITH_RESULTS)
        counts[outcome] += 1
        if outcome == "unnoticed":
            print(f"unnoticed: {file}: {answers} instead of {expected}", file=sys.stderr)
    shutil.rmtree(lab.folder)
    shutil.copytree(spare, lab.folder, copy_function=shutil.copy2)
    return counts


def _compare(answers: list[Any], expected: list[Any], with_costs: bool) -> str:
    """Compare what is shown without a word; costs only where finished runs were read, for new runs measure again."""
    if not with_costs:
        answers, expected = ([_drop_costs(cells) for cells in shown[-2:]] for shown in (answers, expected))
    if answers == expected:
        return "harmless"
    return "unnoticed" if _list_ids(answers) == _list_ids(expected) else "seen"  # another record: another settings-id


def _drop_costs(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in cell.items() if key not in ("cost", "status")} for cell in cells]


def _list_ids(answers: list[list[dict[str, Any]]]) -> list[list[tuple[Any, Any]]]:
    return [sorted((cell["model"], str(cell["settings_id"])) for cell in cells) for cells in answers]


def main(words: list[str] | None = None, result_file: Path = RESULT_FILE) -> int:
    """Count the outcomes by kind of file; exit 1 if a flip changed a score unnoticed."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--flips", type=int, default=50, help="of each kind of file")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--only", action="append", choices=KINDS, help="this kind of file; may be repeated")
    arguments = options.parse_args(words)
    with tempfile.TemporaryDirectory() as temporary:
        lab = Lab(Path(temporary) / "lab")
        spare = Path(shutil.copytree(lab.folder, Path(temporary) / "spare", copy_function=shutil.copy2))
        rng = random.Random(arguments.seed)
        counts = {kind: try_flips(lab, spare, kind, arguments.flips, rng) for kind in arguments.only or KINDS}
    rows = {
        kind: {name: found[name] for name in ("seen", "harmless", "unnoticed")} | {"tried": found.total()}
        for kind, found in counts.items()
    }
    stored = json.loads(result_file.read_text()) if arguments.only and result_file.exists() else {}
    result_file.write_text(json.dumps({**stored, **rows}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))
    return 1 if any(row["unnoticed"] for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
