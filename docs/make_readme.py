"""Writes what the README shows from real runs: the board of `results/` and a picture of the terminal.

.venv/bin/python docs/make_readme.py      # after the runs named in results/README.md
"""

import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
RETBENCH = [sys.executable, "-m", "retbench"]
SCENES = (
    "run --model bm25 --model minilm-l6 --suite stdlib --sample 50 --set max_length=128",
    "run --model qwen2.5-coder --suite coir --out demo-results",
    "run --model bm25 --suite stdlip",
)


def output(words: str) -> str:
    """What a command says, both streams."""
    call = subprocess.run([*RETBENCH, *words.split()], cwd=ROOT, text=True, capture_output=True, check=False)
    return call.stdout + call.stderr if words.startswith("report") else call.stderr + call.stdout


def picture(file: Path) -> None:
    """The scenes as an SVG terminal."""
    console = Console(record=True, width=116, file=open("/dev/null", "w"))  # noqa: SIM115  # nothing to read back
    for words in SCENES:
        console.print(Text("$ ", "bold green") + Text(f"retbench {words}", "bold"))
        console.print(Text(output(words)))
    console.save_svg(str(file), title="retbench")


def put(readme: str, mark: str, content: str) -> str:
    """Replace what stands between a mark and its end."""
    pattern = rf"<!-- {mark} -->.*?<!-- /{mark} -->|<!-- {mark} -->"
    return re.sub(pattern, lambda _: f"<!-- {mark} -->\n{content.strip()}\n<!-- /{mark} -->", readme, flags=re.S)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(put(readme.read_text(), "board", output("report results")))
    picture(ROOT / "docs" / "terminal.svg")
