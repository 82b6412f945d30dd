"""Flips one random bit of one file, runs and reports again, and counts what happened: `python -m benchmarks.flip_bits`.

A flip is `seen` if the command fails, warns, computes again, or makes another record (of changed weights or a changed
card); `harmless` if every score is the same without a word; and `unnoticed` if a score or a cost in a report changed
without a word. The last must be 0. Size and time of the file stay, as on a failing disk. Everything is built in a
temporary folder: a tiny model as a folder and as a GGUF file, a small collection, BM25.
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
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from retbench.cards import catalog
from retbench.cli.main import app
from retbench.engines import weights_cache
from tests import small_collection, tiny_models
from tests.test_weights import write_gguf

RESULT_FILE = Path(__file__).parent / "results" / "flipped_bits.json"
KINDS = {  # the folder or file of each kind, below the work folder
    "results": "results",
    "collections": "cache/collections",
    "embeddings": "cache/embeddings",
    "converted weights": "cache/weights",
    "model folder": "tiny",
    "cards": "cards",
}
READ_WITH_RESULTS = ("results", "cards")
CARD = 'name = "small-card"\nmetric = "ndcg_at_10"\n[source]\nkind = "folder"\npath = "{}"\n'


class Lab:
    """A work folder with two finished runs of a model folder and of a GGUF file, and one of BM25."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = io.StringIO()
        logging.getLogger("retbench").addHandler(logging.StreamHandler(self.log))
        (folder / "cards" / "tasks" / "own").mkdir(parents=True)
        os.environ.update(RETBENCH_CACHE=str(folder / "cache"), RETBENCH_CARDS=str(folder / "cards"))
        collection = small_collection.write_folder(folder / "small")
        (folder / "cards/tasks/own/small-card.toml").write_text(CARD.format(collection))
        write_gguf(tiny_models.build_model(folder / "tiny"), folder / "tiny.gguf")
        self.run_all()

    def run_all(self) -> tuple[bool, list[Any]]:
        """Report if there are results, run, report again: whether anything failed or was said, and what is shown."""
        weights_cache._compute_sha256_once.cache_clear()  # another process would read the files
        for load in (catalog.load_model_cards, catalog.load_task_cards, catalog.load_suites):
            load.cache_clear()
        self.log.seek(0), self.log.truncate()
        out = str(self.folder / "results")
        models = [word for name in ("tiny", "tiny.gguf") for word in ("--model", str(self.folder / name))]
        run = ["run", "--model", "bm25", *models, "--method", "mean", "--task", "small-card", "--out", out, "--json"]
        report = ["report", out, "--json"]
        answers = [self._call(*words) for words in ([report, run, report] if Path(out).exists() else [run, report])]
        is_loud = any(code for code, _ in answers) or bool(self.log.getvalue().strip())
        return is_loud, [_parse_cells(text) for _, text in answers]

    def _call(self, *words: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, list(words))
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.stdout


def _parse_cells(text: str) -> Any:
    """The cells of an answer; a text that is no list of cells is shown as it is."""
    try:
        cells = json.loads(text)
    except ValueError:
        return text
    shown = ("model", "method", "task", "status", "settings_id", "scores", "main_score", "cost")
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
    is_loud, expected = lab.run_all()
    if is_loud:
        raise RuntimeError(f"without a flip something was said: {lab.log.getvalue()}")
    for _ in range(flips):
        files = sorted(file for file in (lab.folder / KINDS[kind]).rglob("*") if file.is_file())
        file = rng.choice([file for file in files if file.stat().st_size])
        flip_bit(file, rng)
        if kind not in READ_WITH_RESULTS:  # else the finished runs would answer
            shutil.rmtree(lab.folder / "results")
        is_loud, answers = lab.run_all()
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
    arguments = options.parse_args(words)
    with tempfile.TemporaryDirectory() as temporary:
        lab = Lab(Path(temporary) / "lab")
        lab.run_all()
        spare = Path(shutil.copytree(lab.folder, Path(temporary) / "spare", copy_function=shutil.copy2))
        rng = random.Random(arguments.seed)
        counts = {kind: try_flips(lab, spare, kind, arguments.flips, rng) for kind in KINDS}
    rows = {
        kind: {name: found[name] for name in ("seen", "harmless", "unnoticed")} | {"tried": found.total()}
        for kind, found in counts.items()
    }
    result_file.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(rows, indent=1))
    return 1 if any(row["unnoticed"] for row in rows.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
