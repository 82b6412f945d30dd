"""Import rules, sizes and names: which package may import which, what starts without torch, how long code may be."""

import ast
import os
import shutil
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from retbench.system.user_config import get_cache_folder

PACKAGE = Path(__file__).parent.parent / "retbench"
FILES = sorted(PACKAGE.rglob("*.py"))
LAYERS = (  # from the bottom up; packages of one layer do not import each other
    {"errors"},
    {"system"},
    {"cards"},
    {"engines", "corpora", "store"},
    {"encoders", "scoring", "records"},
    {"retrievers"},
    {"rerankers", "training", "reports"},
    {"pipelines"},
    {"cli"},
    {"__init__", "__main__"},  # `import retbench`, `python -m retbench`
)
LAYER = {folder: layer for layer, folders in enumerate(LAYERS) for folder in folders}
TORCH_FREE = ("system", "cards", "corpora", "scoring", "records", "reports")
HEAVY_PACKAGES = ("torch", "transformers")
LIGHT_PIPELINES = ("report", "runs.compare", "runs.inspect")  # pipelines that only read finished runs

PIPELINE_IMPORTS: dict[
    str, set[str]
] = {  # the folders of retbench.pipelines that each folder may import, besides itself
    "models": set(),
    "runs": set(),
    "reranking": {"models", "runs"},
    "evaluation": {"reranking", "models", "runs", "experiment_trackers"},
    "finetuning": {"models", "experiment_trackers"},
    "experiment_trackers": set(),
    "checks": {"models", "runs"},
    "report": set(),
    "push": set(),
    "mteb_bridge": {"models", "runs", "report"},
    "studies": {"evaluation", "finetuning", "report", "estimate_cost"},
    "fetch": set(),
    "doctor": set(),
    "estimate_cost": {"models"},
    "__init__": set(),
}

MAX_FILE_LINES = 350
MAX_REPOSITORY_BYTES = 30 << 20
MAX_FUNCTION_LINES = 70
USUAL_FUNCTION_LINES = 35  # the limit for nine of ten functions

Function = ast.FunctionDef | ast.AsyncFunctionDef


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts)


def get_folder(module: str) -> str | None:
    """Return the folder of a module (`corpora` for `retbench.corpora.texts`); None for a module of another package."""
    package, _, rest = module.partition(".")
    return (rest.partition(".")[0] or "__init__") if package == "retbench" else None


def list_imports(module: str, source: str) -> Iterator[tuple[int, str]]:
    """List line and name of every import, also in functions and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *filter(None, [node.module])])
            packages = ("retbench", "retbench.pipelines")
            names = [f"{base}.{alias.name}" for alias in node.names] if base in packages else [base]
        yield from ((node.lineno, name) for name in names)


def list_package_imports(module: str, source: str) -> Iterator[tuple[int, str]]:
    """List line and folder of every import from retbench."""
    for line, name in list_imports(module, source):
        if folder := get_folder(name):
            yield line, folder


def find_wrong_imports(module: str, source: str) -> list[str]:
    module_folder = str(get_folder(module))
    return [
        f"{module}:{line} ({module_folder}) imports {folder}"
        for line, folder in list_package_imports(module, source)
        if folder != module_folder and LAYER[folder] >= LAYER[module_folder]
    ]


# (module, source, how many of its imports go the wrong way)
IMPORTS = {
    "down": ("retbench.corpora.x", "from retbench.cards import home\nimport retbench.errors", 0),
    "own room": ("retbench.corpora.x", "from retbench.corpora.rows import Row\nfrom . import rows", 0),
    "up": ("retbench.corpora.x", "from retbench.retrievers.exact import search", 1),
    "across": ("retbench.corpora.x", "import retbench.store.digest", 1),
    "in a function": ("retbench.cards.x", "def f():\n    from retbench.corpora import texts", 1),
    "for type checking": ("retbench.cards.x", "if TYPE_CHECKING:\n    import retbench.engines.hub as h", 1),
    "a room by its name": ("retbench.scoring.x", "from retbench import records, errors, cli", 2),
    "relative": ("retbench.store.x", "from ..cli import main\nfrom ..cards import home", 1),
    "the face": ("retbench.cli.x", "import retbench", 1),
    "others": ("retbench.errors", "import numpy\nfrom torch.nn import functional\nimport retbench_else.cli", 0),
    "from the face": ("retbench.__init__", "from retbench.cli import main", 0),
}


@pytest.mark.parametrize(("module", "source", "wrong"), IMPORTS.values(), ids=IMPORTS)
def test_the_import_rule_itself(module: str, source: str, wrong: int) -> None:
    assert len(find_wrong_imports(module, source)) == wrong


def test_every_module_lives_in_a_room() -> None:
    assert len(FILES) > 30
    assert {get_folder(module_name(file)) for file in FILES} - set(LAYER) == set()


def test_imports_point_down() -> None:
    violations = [
        wrong for file in FILES for wrong in find_wrong_imports(module_name(file), file.read_text(encoding="utf-8"))
    ]
    assert violations == []


def test_light_rooms_start_without_torch() -> None:
    light_modules = [module_name(file) for file in FILES if get_folder(module_name(file)) in TORCH_FREE]
    modules = [name.removesuffix(".__init__") for name in light_modules]
    assert {get_folder(name) for name in modules} == set(TORCH_FREE)
    program = f"""
import importlib, sys
def heavy():
    return [name for name in {HEAVY_PACKAGES} if name in sys.modules]
for module in {[*modules, *(f"retbench.pipelines.{m}" for m in LIGHT_PIPELINES), "retbench", "retbench.cli.main"]}:
    importlib.import_module(module)
    if heavy():
        sys.exit(f"{{module}} brings {{heavy()}}")
import torch
assert heavy() == ["torch"], "this check would not notice"
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")


def get_pipeline_part(module: str) -> str | None:
    """Return the part of a pipelines module: `runs` for `pipelines.runs.compare`, `report` for `pipelines.report`."""
    parts = module.split(".")
    if parts[:2] != ["retbench", "pipelines"]:
        return None
    return parts[2] if len(parts) > 2 else "__init__"


def find_wrong_pipeline_imports(module: str, source: str) -> list[str]:
    part = str(get_pipeline_part(module))
    return [
        f"{module}:{line} ({part}) imports {target}"
        for line, name in list_imports(module, source)
        if (target := get_pipeline_part(name)) and target not in {part, *PIPELINE_IMPORTS[part]}
    ]


# (module, source, how many of its imports go the wrong way)
PIPELINE_CASES = {
    "down": ("retbench.pipelines.evaluation.x", "from retbench.pipelines.reranking.chain import f", 0),
    "own folder": ("retbench.pipelines.runs.x", "from retbench.pipelines.runs import compare", 0),
    "up": ("retbench.pipelines.models.x", "from retbench.pipelines.evaluation import job", 1),
    "across": ("retbench.pipelines.checks.x", "def f():\n    import retbench.pipelines.evaluation.job", 1),
    "a folder by its name": ("retbench.pipelines.runs.x", "from retbench.pipelines import models, studies", 2),
    "outside": ("retbench.pipelines.runs.x", "from retbench.records.cell import Cell", 0),
}


@pytest.mark.parametrize(("module", "source", "wrong"), PIPELINE_CASES.values(), ids=PIPELINE_CASES)
def test_the_pipeline_import_rule_itself(module: str, source: str, wrong: int) -> None:
    assert len(find_wrong_pipeline_imports(module, source)) == wrong


def test_imports_between_pipelines_follow_the_arrows() -> None:
    modules = [(module_name(file), file) for file in FILES if get_folder(module_name(file)) == "pipelines"]
    violations = [
        wrong for name, file in modules for wrong in find_wrong_pipeline_imports(name, file.read_text("utf-8"))
    ]
    assert violations == []


def test_no_public_class_name_occurs_twice() -> None:
    modules_by_class: dict[str, list[str]] = {}
    for module, tree in parse_files():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                modules_by_class.setdefault(node.name, []).append(module)
    assert {name: modules for name, modules in modules_by_class.items() if len(modules) > 1} == {}


def parse_files() -> Iterator[tuple[str, ast.Module]]:
    for file in FILES:
        yield module_name(file), ast.parse(file.read_text(encoding="utf-8"))


def measure_functions() -> list[tuple[int, str]]:
    """List the lines of each function, from its first decorator to its last line, with its name."""
    spans = []
    for module, tree in parse_files():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                spans.append((int(node.end_lineno or 0) - first + 1, f"{module}.{node.name}"))
    return spans


def test_files_stay_short() -> None:
    sizes = {module_name(file): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {name: size for name, size in sizes.items() if size > MAX_FILE_LINES} == {}


def test_functions_stay_short() -> None:
    violations = measure_functions()
    assert len(violations) > 100
    assert [entry for entry in violations if entry[0] > MAX_FUNCTION_LINES] == []
    assert statistics.quantiles([size for size, _ in violations], n=10)[-1] <= USUAL_FUNCTION_LINES


def find_undocumented(tree: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
    """List public functions, classes and methods without a docstring."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                yield f"{prefix}.{node.name}"
            if isinstance(node, ast.ClassDef):
                yield from find_undocumented(node, f"{prefix}.{node.name}")


def test_public_names_say_what_they_are() -> None:
    sample = ast.parse('class A:\n  "x"\n  def f(self): ...\n  def _g(self): ...\ndef h(): "y"\ndef i(): ...')
    assert list(find_undocumented(sample, "m")) == ["m.A.f", "m.i"]
    assert [name for module, tree in parse_files() for name in find_undocumented(tree, module)] == []


def find_renames(source: str) -> list[str]:
    """List the calls that rename or flush a file: `os.replace(a, b)`, `path.rename(b)`, `os.fsync(handle)`."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    attributes = [(node.func, len(node.args)) for node in calls if isinstance(node.func, ast.Attribute)]
    return [
        ast.unparse(function)
        for function, arguments in attributes
        if function.attr in ("rename", "renames", "fsync", "move")
        or (function.attr == "replace" and (arguments == 1 or ast.unparse(function) == "os.replace"))
    ]


def test_only_one_module_renames_and_flushes_files() -> None:
    sample = (
        "os.replace(a, b)\npath.replace(b)\ntext.replace('a', 'b')\nreplace(card, name=1)\nos.fsync(1)\na.rename(b)"
    )
    assert find_renames(sample) == ["os.replace", "path.replace", "os.fsync", "a.rename"]
    found = {module_name(file): find_renames(file.read_text(encoding="utf-8")) for file in FILES}
    assert {module for module, calls in found.items() if calls} == {"retbench.system.durable_files"}


def test_the_repository_fits_onto_a_gpu_machine_beside_its_wheels() -> None:
    """The tracked files travel there, with packages that it lacks, in 64 MiB."""
    root = PACKAGE.parent
    if not (root / ".git").exists() or not shutil.which("git"):
        pytest.skip("this is no checkout")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True).stdout
    size = sum((root / name).stat().st_size for name in names.split("\0") if name and (root / name).is_file())
    assert size < MAX_REPOSITORY_BYTES, "remove what reports do not read: python -m benchmarks.shrink_results FOLDER"


# The guarantees of conftest.py


@pytest.mark.parametrize("reach", [lambda s: s.connect(("192.0.2.1", 80)), lambda s: s.connect_ex(("192.0.2.1", 80))])
def test_no_test_reaches_the_network(reach: Callable[[socket.socket], object]) -> None:
    with socket.socket() as reaching, pytest.raises(RuntimeError, match="a test used the network"):
        reach(reaching)
    with pytest.raises(RuntimeError, match="a test used the network"):
        socket.create_connection(("retbench.invalid", 443))


def test_loopback_stays_open() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        accepted, _ = server.accept()
        with accepted:
            client.sendall(b"x")
            assert accepted.recv(1) == b"x"


def test_every_test_has_an_empty_cache_of_its_own(own_cache: Path) -> None:
    assert get_cache_folder() == own_cache
    assert list(own_cache.iterdir()) == []
    assert "RETBENCH_CARDS" not in os.environ
