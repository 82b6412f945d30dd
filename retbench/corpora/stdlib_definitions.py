"""Documented definitions (modules, classes, functions) of the running Python's standard library.

Every machine that runs retbench has this code, so a collection made from it needs no network. It depends only on the
interpreter build, which `compute_source_stamp` names.
"""

import ast
import hashlib
import platform
import sys
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from retbench.errors import MissingError

# `sys.stdlib_module_names` already excludes site-packages and other content of the folder.
EXCLUDED_MODULES = frozenset(
    {"test", "tests", "idle_test", "idlelib", "turtledemo", "lib2to3", "ensurepip", "pydoc_data"}
)

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
DocumentedNode = FunctionNode | ast.ClassDef | ast.Module


@dataclass(frozen=True)
class Definition:
    """A module, class or function with a docstring; only a function has source `above` and `below` it."""

    id: str
    name: str
    docstring: str
    above: str
    below: str
    where: str


@cache  # called for every file; sysconfig computes it from all its variables each time
def get_stdlib_folder() -> Path:
    """Return the folder of the standard library (of the base interpreter, also in a virtual environment)."""
    return Path(sysconfig.get_path("stdlib"))


def list_source_files() -> list[Path]:
    """List the source files of the collections, in a fixed order."""
    top, names = get_stdlib_folder(), sys.stdlib_module_names - EXCLUDED_MODULES
    paths = [path for name in names for path in (top / f"{name}.py", *(top / name).rglob("*.py")) if path.is_file()]
    selected = [path for path in paths if EXCLUDED_MODULES.isdisjoint(path.relative_to(top).parts)]
    if not selected:
        raise MissingError(f"no Python source in {top}", "use a Python whose standard library is not zipped")
    return sorted(selected, key=_get_relative_name)


def compute_source_stamp() -> str:
    """Compute a name of the interpreter build: implementation, version and a hash of every used file."""
    digest = hashlib.sha256()
    for path in list_source_files():
        digest.update(f"{_get_relative_name(path)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return f"{platform.python_implementation().lower()}-{platform.python_version()}-{digest.hexdigest()[:16]}"


def iterate_definitions() -> Iterator[Definition]:
    """Iterate over all documented definitions in source order; ids are unique."""
    return iter(_read_all_definitions(compute_source_stamp()))


@cache  # parsing takes seconds, and all collections of the suite need it
def _read_all_definitions(_stamp: str) -> tuple[Definition, ...]:
    seen: Counter[str] = Counter()
    definitions = []
    for path in list_source_files():
        for definition in _read_definitions(path):
            seen[definition.id] += 1
            count = seen[definition.id]  # a property's getter and setter, or two branches of an `if`, share a name
            definitions.append(definition if count == 1 else replace(definition, id=f"{definition.id}#{count}"))
    return tuple(definitions)


def _get_relative_name(path: Path) -> str:
    return path.relative_to(get_stdlib_folder()).as_posix()


def _read_definitions(path: Path) -> Iterator[Definition]:
    with tokenize.open(path) as file:
        source = file.read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about the standard library's own code are of no use here
        tree = ast.parse(source)
    lines, where = source.split("\n"), _get_relative_name(path)
    module = where.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for qualified, node in [("", tree), *_iterate_nested(tree, "")]:
        docstring = ast.get_docstring(node)
        if docstring:
            above, below = _split_at_docstring(node, lines) if isinstance(node, FunctionNode) else ("", "")
            identity = f"{module}:{qualified}" if qualified else module
            name = (qualified or module).rpartition(".")[2]
            yield Definition(identity, name, docstring, above, below, where)


def _iterate_nested(parent: ast.AST, prefix: str) -> Iterator[tuple[str, FunctionNode | ast.ClassDef]]:
    """Iterate over functions and classes with their qualified names; nested functions belong to the outer function."""
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, FunctionNode | ast.ClassDef):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from _iterate_nested(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.stmt | ast.excepthandler):
            yield from _iterate_nested(node, prefix)


def _split_at_docstring(node: FunctionNode, lines: list[str]) -> tuple[str, str]:
    """Split a function into signature and body, dedented, with comments and without decorators, as in CodeSearchNet."""
    docstring, margin = node.body[0], " " * node.col_offset
    above, below = lines[node.lineno - 1 : docstring.lineno - 1], lines[docstring.end_lineno : node.end_lineno]
    return _dedent(above, margin), _dedent(below, margin)


def _dedent(lines: list[str], margin: str) -> str:
    return "\n".join(line.removeprefix(margin).rstrip() for line in lines if line.strip())
