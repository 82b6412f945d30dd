"""Write the generated parts of the README: the leaderboard of `results/` and a picture of the terminal.

.venv/bin/python docs/make_readme.py      # after a change of results/ or of what a command prints
"""

import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
RETBENCH = [sys.executable, "-m", "retbench"]
COMMANDS = (  # what a reader sees first: a leaderboard, a difference that is tested, an error that leads on
    "report results --format terminal",
    "compare bm25 minilm-l6 --task stdlib-code --results results --queries 1",
    "run --model bm25 --suite stdlip",
)
WIDTH = 104
SHOWN_LINES = 24  # of one command


def run_command(command: str) -> str:
    """Run a command and return its stdout and stderr."""
    result = subprocess.run([*RETBENCH, *command.split()], cwd=ROOT, text=True, capture_output=True, check=False)
    if command.startswith("report"):
        return result.stdout + result.stderr
    return result.stderr + result.stdout


def draw_terminal(file: Path) -> None:
    """Draw the commands and their output as an SVG terminal."""
    console = Console(record=True, width=WIDTH, file=open("/dev/null", "w"))  # noqa: SIM115  # only the recording is used
    for command in COMMANDS:
        console.print(Text("$ ", "bold green") + Text(f"retbench {command}", "bold"))
        console.print(Text(cut_lines(run_command(command))))
    console.save_svg(str(file), title="retbench")


def cut_lines(output: str) -> str:
    """Keep the beginning of a long output, and say that it goes on."""
    lines = output.splitlines()
    rest = [f"… {len(lines) - SHOWN_LINES} more lines"] if len(lines) > SHOWN_LINES else []
    return "\n".join([*lines[:SHOWN_LINES], *rest, ""])


def replace_section(readme: str, mark: str, content: str) -> str:
    """Replace the text between a mark and its end mark."""
    pattern = rf"<!-- {mark} -->.*?<!-- /{mark} -->|<!-- {mark} -->"
    return re.sub(pattern, lambda _: f"<!-- {mark} -->\n{content.strip()}\n<!-- /{mark} -->", readme, flags=re.S)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(replace_section(readme.read_text(), "board", run_command("report results")))
    draw_terminal(ROOT / "docs" / "terminal.svg")
