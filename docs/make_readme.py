"""Write the generated parts of the README: the leaderboard of `results/` and a picture of the terminal.

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
COMMANDS = (
    "run --model bm25 --model minilm-l6 --suite stdlib --sample 50 --set max_length=128",
    "run --model qwen2.5-coder --suite coir --out demo-results",
    "run --model bm25 --suite stdlip",
)


def run_command(command: str) -> str:
    """Run a command and return its stdout and stderr."""
    result = subprocess.run([*RETBENCH, *command.split()], cwd=ROOT, text=True, capture_output=True, check=False)
    if command.startswith("report"):
        return result.stdout + result.stderr
    return result.stderr + result.stdout


def draw_terminal(file: Path) -> None:
    """Draw the commands and their output as an SVG terminal."""
    console = Console(record=True, width=116, file=open("/dev/null", "w"))  # noqa: SIM115  # only the recording is used
    for command in COMMANDS:
        console.print(Text("$ ", "bold green") + Text(f"retbench {command}", "bold"))
        console.print(Text(run_command(command)))
    console.save_svg(str(file), title="retbench")


def replace_section(readme: str, mark: str, content: str) -> str:
    """Replace the text between a mark and its end mark."""
    pattern = rf"<!-- {mark} -->.*?<!-- /{mark} -->|<!-- {mark} -->"
    return re.sub(pattern, lambda _: f"<!-- {mark} -->\n{content.strip()}\n<!-- /{mark} -->", readme, flags=re.S)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(replace_section(readme.read_text(), "board", run_command("report results")))
    draw_terminal(ROOT / "docs" / "terminal.svg")
