"""Hooks of the documentation site (`make docs`, mkdocs.yml).

The site also has the pages outside of docs/ (README, CONTRIBUTING, ...), at the places where links expect them, the
notebooks as pages, and the reference of the command line, which is generated from the commands themselves.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files
from typer.cli import get_docs_for_click

from retbench.cli.main import app

ROOT = Path(__file__).parent.parent
DOCS = "docs/"
HOME = "README.md"
PAGES_OUTSIDE_DOCS = (
    HOME, "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "benchmarks/LOG.md",
    "benchmarks/results/gpu_check_h200.md", "results/README.md", "results/specialized-mini.md",
)  # fmt: skip


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside of docs/, the notebooks, and the reference of the command line."""
    for path in PAGES_OUTSIDE_DOCS:
        files.append(File.generated(config, locate_in_site(path), content=(ROOT / path).read_text()))
    for notebook in sorted((ROOT / DOCS / "notebooks").glob("*.ipynb")):
        place = f"notebooks/{notebook.stem}.md"
        files.append(File.generated(config, place, content=convert_notebook(notebook)))
    files.append(File.generated(config, "reference/cli.md", content=write_cli_reference()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links that are right in the repository into links that are right on the site."""
    folder = posixpath.dirname(locate_in_repository(page.file.src_uri))

    def replace_link(link: re.Match[str]) -> str:
        target = locate_in_site(posixpath.normpath(posixpath.join(folder, link[1])))
        return f"]({posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or '.')}"

    return re.sub(r"\]\((?!\w+:|#)([^)#]+)", replace_link, markdown)


def locate_in_site(path: str) -> str:
    """The place on the site of a path of the repository."""
    return "index.md" if path == HOME else path.removeprefix(DOCS)


def locate_in_repository(place: str) -> str:
    """The path in the repository of a page of the site."""
    if place == "index.md":
        return HOME
    return place if place in PAGES_OUTSIDE_DOCS else DOCS + place


def convert_notebook(notebook: Path) -> str:
    """The page of a notebook: its text, its code, and a link to the notebook itself."""
    cells = json.loads(notebook.read_text())["cells"]
    sources = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    parts = [text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in sources]
    return "\n\n".join([*parts, f"[The notebook itself]({notebook.name})"]) + "\n"


def write_cli_reference() -> str:
    """The page of all commands and options, as typer writes it."""
    command: Any = typer.main.get_command(app)
    return get_docs_for_click(obj=command, ctx=typer.Context(command), name="retbench", title="Command line")
