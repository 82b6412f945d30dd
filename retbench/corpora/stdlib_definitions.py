"""The running Python's own standard library as a list of definitions: modules, classes and functions with a docstring.

It is the one body of documented code that is on every machine that runs retbench, so a collection made from it needs
no network. What is read here depends on the interpreter build and on nothing else; `stamp` names that build.
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
from pathlib import Path

from retbench.errors import MissingError

# `sys.stdlib_module_names` already leaves out `test`, site-packages and whatever else lies in the folder.
EXCLUDED_MODULES = frozenset(
    {"test", "tests", "idle_test", "idlelib", "turtledemo", "lib2to3", "ensurepip", "pydoc_data"}
)

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
DocumentedNode = FunctionNode | ast.ClassDef | ast.Module


@dataclass(frozen=True)
class Definition:
    """A module, class or function with a docstring; only a function has the source `above` and `below` it."""

    id: str
    name: str
    docstring: str
    above: str
    below: str
    where: str


def get_stdlib_folder() -> Path:
    """The folder of the standard library (the base interpreter's, also inside a virtual environment)."""
    return Path(sysconfig.get_path("stdlib"))


def list_source_files() -> list[Path]:
    """The files the collections are made from, in one fixed order."""
    top, names = get_stdlib_folder(), sys.stdlib_module_names - EXCLUDED_MODULES
    found = [path for name in names for path in (top / f"{name}.py", *(top / name).rglob("*.py")) if path.is_file()]
    kept = [path for path in found if EXCLUDED_MODULES.isdisjoint(path.relative_to(top).parts)]
    if not kept:
        raise MissingError(f"no Python source in {top}", "use a Python whose library is not zipped")
    return sorted(kept, key=_relative_name)


def compute_source_stamp() -> str:
    """The interpreter build: implementation, version, and a digest over the content of every used file."""
    digest = hashlib.sha256()
    for path in list_source_files():
        digest.update(f"{_relative_name(path)}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return f"{platform.python_implementation().lower()}-{platform.python_version()}-{digest.hexdigest()[:16]}"


def iterate_definitions() -> Iterator[Definition]:
    """Everything with a docstring, file by file in the order of the source; ids are unique."""
    seen: Counter[str] = Counter()
    for path in list_source_files():
        for found in _read_definitions(path):
            seen[found.id] += 1
            again = seen[found.id]  # a property's getter and setter, or the two arms of an `if`, share a name
            yield found if again == 1 else replace(found, id=f"{found.id}#{again}")


def _relative_name(path: Path) -> str:
    return path.relative_to(get_stdlib_folder()).as_posix()


def _read_definitions(path: Path) -> Iterator[Definition]:
    with tokenize.open(path) as file:
        source = file.read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a newer Python dislikes in its own library is not the user's problem
        tree = ast.parse(source)
    lines, where = source.split("\n"), _relative_name(path)
    module = where.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    for qualified, node in [("", tree), *_iterate_nested(tree, "")]:
        docstring = ast.get_docstring(node)
        if docstring:
            above, below = _split_at_docstring(node, lines) if isinstance(node, FunctionNode) else ("", "")
            identity = f"{module}:{qualified}" if qualified else module
            name = (qualified or module).rpartition(".")[2]
            yield Definition(identity, name, docstring, above, below, where)


def _iterate_nested(parent: ast.AST, prefix: str) -> Iterator[tuple[str, FunctionNode | ast.ClassDef]]:
    """Functions and classes with their qualified names; functions inside functions belong to the outer one's source."""
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, FunctionNode | ast.ClassDef):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from _iterate_nested(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.stmt | ast.excepthandler):
            yield from _iterate_nested(node, prefix)


def _split_at_docstring(node: FunctionNode, lines: list[str]) -> tuple[str, str]:
    """The signature and the body, comments kept, at the left margin; decorators stay out, as in CodeSearchNet."""
    docstring, margin = node.body[0], " " * node.col_offset
    above, below = lines[node.lineno - 1 : docstring.lineno - 1], lines[docstring.end_lineno : node.end_lineno]
    return _dedent(above, margin), _dedent(below, margin)


def _dedent(lines: list[str], margin: str) -> str:
    return "\n".join(line.removeprefix(margin).rstrip() for line in lines if line.strip())
