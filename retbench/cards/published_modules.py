"""The modules of a sentence-transformers folder (`modules.json`), read without that library and without torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retbench.cards.untrusted_fields import is_inside
from retbench.errors import DataError
from retbench.system.text_parsers import parse_json

MODULES_FILE, ROUTER_FILE = "modules.json", "router_config.json"
BACKBONES = ("Transformer", "MLMTransformer")
LEGACY_MODES = {  # in the order in which sentence-transformers concatenates
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


ADAPTER_CONFIG = "adapter_config.json"  # of peft


@dataclass(frozen=True)
class PublishedModule:
    """One module: its class, its folder and its config.json."""

    type: str
    path: str
    settings: dict[str, Any]

    @property
    def kind(self) -> str:
        """The class name of a module of sentence-transformers; of another module the full name of its class."""
        return self.type.rpartition(".")[2] if self.type.startswith("sentence_transformers.") else self.type

    def get_pooling_modes(self) -> tuple[str, ...]:
        """The modes of a Pooling module, in the new or in the old form of its config; empty for other modules."""
        if self.kind != "Pooling":
            return ()
        modes = self.settings.get("pooling_mode")
        if modes is None:
            return tuple(mode for key, mode in LEGACY_MODES.items() if self.settings.get(key)) or ("mean",)
        return (modes,) if isinstance(modes, str) else tuple(map(str, modes))

    @property
    def reads_pooled(self) -> bool:
        """Whether the module reads and writes the pooled state, as all after the pooling usually do."""
        names = (self.settings.get(f"module_{end}_name") or "sentence_embedding" for end in ("input", "output"))
        return set(names) == {"sentence_embedding"}

    def describe(self) -> str:
        """The module in a few words."""
        if self.kind == "Pooling":
            return f"pooling {'+'.join(self.get_pooling_modes())}"
        if self.kind == "Dense":
            activation = str(self.settings.get("activation_function", "Tanh")).rpartition(".")[2]
            return f"Dense {self.settings.get('in_features')} to {self.settings.get('out_features')} {activation}"
        return self.kind


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds an adapter without the weights of a model."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def read_adapter_parent(folder: Path) -> str | None:
    """The parent that an adapter's config names; None for another folder, or where it names none."""
    if not is_adapter_folder(folder):
        return None
    name = read_optional_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    return name if isinstance(name, str) and name else None


def read_module_types(folder: Path) -> list[str]:
    """The class of every module, also of those behind a Router; empty without a modules.json."""
    return [str(entry["type"]) for entry in (*_read_entries(folder), *_read_route_entries(folder))]


def list_modules(folder: Path) -> list[PublishedModule]:
    """All modules in their order, whatever they are."""
    return [_build_module(folder, entry) for entry in _read_entries(folder)]


def read_routes(folder: Path) -> dict[str, list[PublishedModule]]:
    """The modules of each route of a folder that is a Router alone; empty for other folders."""
    routes: dict[str, list[PublishedModule]] = {}
    for entry in _read_route_entries(folder):
        routes.setdefault(str(entry["route"]), []).append(_build_module(folder, entry))
    return routes


def find_backbone_folder(folder: Path) -> Path:
    """The folder of the transformer: the model's own, or that of a route which has it in a folder of its own."""
    if (folder / "config.json").is_file():
        return folder
    modules = [module for route in read_routes(folder).values() for module in route if module.kind in BACKBONES]
    return folder / modules[0].path if modules else folder


def _read_route_entries(folder: Path) -> list[dict[str, Any]]:
    config = read_optional_object(folder / ROUTER_FILE)
    types, structure = config.get("types") or {}, config.get("structure") or {}
    try:
        return [
            {"route": route, "path": path, "type": types[path]} for route, paths in structure.items() for path in paths
        ]
    except (AttributeError, KeyError, TypeError) as problem:
        raise DataError(f"{folder / ROUTER_FILE} is damaged: {problem}", "fetch the folder again") from problem


def _build_module(folder: Path, entry: dict[str, Any]) -> PublishedModule:
    path = _read_path(folder, entry)
    settings = read_optional_object(folder / path / "config.json") if path else {}
    return PublishedModule(str(entry["type"]), path, settings)


def read_modules(folder: Path) -> list[PublishedModule]:
    """All modules in their order; the first must be a Transformer in the folder itself."""
    modules = list_modules(folder)
    if not modules or modules[0].kind != "Transformer" or modules[0].path:
        first = f"{modules[0].kind} in {modules[0].path or 'the folder itself'}" if modules else "no module"
        raise DataError(
            f"{folder} starts with {first}, not with a Transformer in the folder itself",
            "save it again with a current sentence-transformers, or use another model",
        )
    return modules


def read_module_paths(folder: Path) -> list[str]:
    """The folder of every module, relative to the model's; empty for a module in the model's folder itself."""
    return [_read_path(folder, entry) for entry in (*_read_entries(folder), *_read_route_entries(folder))]


def _read_path(folder: Path, entry: dict[str, Any]) -> str:
    path = str(entry.get("path") or "")
    if path and not is_inside(path):
        raise DataError(f"{folder / MODULES_FILE} names a module outside its folder: {path}", "use another model")
    return path


def _read_entries(folder: Path) -> list[dict[str, Any]]:
    file = folder / MODULES_FILE
    if not file.is_file():
        return []
    entries = _parse(file)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "type" in entry for entry in entries):
        raise DataError(f"{file}: expected a list of modules with a `type`", "fetch the folder again")
    return entries


def read_optional_object(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object; empty if there is no such file."""
    if not file.is_file():
        return {}
    value = _parse(file)
    if not isinstance(value, dict):
        raise DataError(f"{file}: expected a JSON object", "fetch the file again, or delete it")
    return value


def read_architectures(folder: Path) -> tuple[str, ...]:
    """Read the classes that config.json names; none if it names none, or something else than a list of names."""
    names = read_optional_object(folder / "config.json").get("architectures")
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()


def _parse(file: Path) -> Any:
    try:
        return parse_json(file.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise DataError(f"{file}: not valid JSON: {problem}", "fetch the file again, or delete it") from problem
