"""Paths, links, commands and `--set` keys in the documentation exist."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer

from retbench.cards.adaptor_recipe import AdaptorRecipe
from retbench.cards.options import split_options
from retbench.cards.recipe import Recipe
from retbench.cards.reranker_settings import parse_reranker
from retbench.cli.main import app
from retbench.pipelines.models.overrides import VALUE_TYPES

ROOT = Path(__file__).parent.parent
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("docs/papers/*.md")),
    ROOT / "results/README.md",
    ROOT / "benchmarks/LOG.md",
]
TOP_FOLDERS = ("retbench", "tests", "benchmarks", "docs", "results", "model_cards", "tasks", "recipes", "studies")
PACKAGE_FOLDERS = tuple(path.name for path in (ROOT / "retbench").iterdir() if path.is_dir())

FINETUNE_KEYS = {"split", "report_to"}  # keys of `finetune --set` outside the recipe


def find_paths(text: str) -> Iterator[str]:
    """Paths of source and data files in code quotes: `retbench/cards/recipe.py`, `engines/varlen.py`."""
    for path in re.findall(r"[\w.-]+(?:/[\w.*-]+)+\.(?:py|jsonl?|md|sh|toml|sbatch)\b", text):
        top = path.split("/")[0]
        if top in TOP_FOLDERS:
            yield path
        elif top in PACKAGE_FOLDERS:
            yield f"retbench/{path}"


def find_commands(text: str) -> Iterator[list[str]]:
    """The arguments of every `retbench` command in the code blocks of a page."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.M | re.S) + re.findall(
        r"(?:^    .*\n)+", text, flags=re.M
    )
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        for part in re.split(r";|(?<=\S)\s{2,}(?=retbench )", line):
            command = re.match(r"\s*(?:\$ |[A-Z_]+=\S+ +)*retbench (.*)", part)
            if command:
                yield [word for word in shlex.split(command[1], comments=True) if word[0] != "$"]


def parse_command(arguments: list[str]) -> Any:
    """Parse a command line as retbench does; nothing is run."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        while arguments[0].startswith("-"):
            arguments = arguments[1:]
        command, arguments = command.commands[arguments[0]], arguments[1:]
    return command.make_context(command.name, list(arguments))


def is_recipe_key(key: str, recipe: type[Any] = Recipe) -> bool:
    """Whether a dotted key names a field of the recipe or of one of its tables."""
    name, _, rest = key.partition(".")
    if name not in {field.name for field in fields(recipe)}:
        return False
    hint = get_type_hints(recipe)[name]
    tables: list[Any] = [kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)]
    return is_recipe_key(rest, tables[0]) if rest and tables else not rest


def is_set_key(verb: str, key: str) -> bool:
    """Whether `--set KEY=` exists for a verb."""
    if verb == "finetune":
        return is_recipe_key(key) or is_recipe_key(key, AdaptorRecipe) or key in FINETUNE_KEYS
    return key in VALUE_TYPES or (verb, key) == ("run", "report_to")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_and_links_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    missing = [link for link in links if link and not (page.parent / link).exists()]
    missing += [path for path in find_paths(text) if not any(ROOT.glob(path)) and not (page.parent / path).exists()]
    tests = re.findall(r"\b(test_\w+\.py)(?:::(\w+))?", text)
    missing += [
        file for file, name in tests if not any(name in path.read_text() for path in ROOT.glob(f"tests/**/{file}"))
    ]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page: Path) -> None:
    for arguments in find_commands(page.read_text(encoding="utf-8")):
        context = parse_command(arguments)
        keys = [value.split("=")[0] for value in context.params.get("set_") or ()]
        assert [key for key in keys if not is_set_key(str(context.info_name), key)] == [], arguments
        for reranker in [*(context.params.get("rerank") or ()), *(context.params.get("with_") or ())]:
            assert split_options(parse_reranker(reranker).spelling), arguments


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_set_keys_in_the_text_exist(page: Path) -> None:
    quoted = re.findall(r"`[^`\n]*--set ([a-z_.]+)=", page.read_text(encoding="utf-8"))
    assert [key for key in quoted if not (is_set_key("run", key) or is_set_key("finetune", key))] == []


def test_the_checks_find_mistakes() -> None:
    assert list(find_paths("`engines/nothing.py` and tests/test_nothing.py")) == [
        "retbench/engines/nothing.py",
        "tests/test_nothing.py",
    ]
    assert list(find_commands("```\nretbench run --model a \\\n  --task b   # why\n```\n")) == [
        ["run", "--model", "a", "--task", "b"]
    ]
    with pytest.raises(Exception, match="No such option"):
        parse_command(["run", "--no-such-option"])
    assert is_recipe_key("optimizer.learning_rate")
    assert not is_recipe_key("optimiser.rate")
