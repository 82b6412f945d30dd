"""The catalog: every card by name or alias. Two cards with one name are an error; an unknown name gets suggestions."""

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from retbench.cards import options, toml_parser, user_config
from retbench.cards.method import TITLES, Method
from retbench.cards.model import DefaultMethod, ModelCard, Weights
from retbench.cards.recipe import Recipe
from retbench.cards.study import Study
from retbench.cards.task import Source, Suite, TaskCard
from retbench.errors import DataError, MissingError, UsageError, closest

CARD = "card.toml"  # in a folder that `finetune` wrote


class Named(Protocol):
    """Whatever a shelf holds has a name."""

    @property
    def name(self) -> str:
        """The one name."""
        ...


C = TypeVar("C", bound=Named)


@dataclass(frozen=True)
class Shelf(Generic[C]):
    """The cards of one kind."""

    kind: str
    cards: dict[str, C]
    aliases: dict[str, str]

    def find(self, name: str) -> C:
        """The card of that name or alias."""
        card = self.cards.get(self.aliases.get(name.lower(), ""))
        if card is None:
            raise UsageError(f"there is no {self.kind} called {name!r}", closest(name.lower(), self.aliases))
        return card

    def __contains__(self, name: str) -> bool:
        return name.lower() in self.aliases

    def __iter__(self) -> Iterator[C]:
        return iter(self.cards.values())


def _shelf(kind: str, files: list[Path], read: Callable[[Path], C]) -> Shelf[C]:
    cards: dict[str, C] = {}
    aliases: dict[str, str] = {}
    owner: dict[str, Path] = {}
    for file in files:
        card = read(file)
        for name in map(str.lower, (card.name, *getattr(card, "aliases", ()))):
            if name in owner:
                raise DataError(f"{file} and {owner[name]} both claim the {kind} name {name!r}", "rename one of them")
            owner[name] = file
            aliases[name] = card.name
        cards[card.name] = card
    return Shelf(kind, cards, aliases)


def _files(folders: list[Path], pattern: str) -> list[Path]:
    return [file for folder in folders for file in sorted(folder.glob(pattern), key=lambda f: (f.parent, f.stem))]


@functools.cache
def models() -> Shelf[ModelCard]:
    """Every model card."""
    return _shelf("model", _files(user_config.card_folders("model_cards"), "**/*.toml"), _model_card)


def _model_card(file: Path) -> ModelCard:
    """A card whose weights lie at a relative path means: as seen from the card."""
    card = toml_parser.load(ModelCard, file)
    if card.weights is None or card.weights.path is None:
        return card
    path = file.parent / Path(card.weights.path).expanduser()
    return replace(card, weights=replace(card.weights, path=str(path)))


@functools.cache
def tasks() -> Shelf[TaskCard]:
    """Every task card; the folder a card lies in is its home suite."""
    files = [f for f in _files(user_config.card_folders("tasks"), "*/*.toml") if f.stem != "suite"]
    return _shelf("task", files, lambda f: toml_parser.load(TaskCard, f, suite=f.parent.name))


@functools.cache
def suites() -> Shelf[Suite]:
    """Every suite card (`tasks/<suite>/suite.toml`)."""
    return _shelf(
        "suite", _files(user_config.card_folders("tasks"), "*/suite.toml"), lambda f: toml_parser.load(Suite, f)
    )


@functools.cache
def methods() -> Shelf[Method]:
    """Every method preset: the shipped ones, then the user's own."""
    folders = [user_config.PACKAGE / "cards" / "methods", *user_config.card_folders("methods")]
    return _shelf("method", _files(folders, "*.toml"), lambda f: toml_parser.load(Method, f))


def method(argument: str) -> Method:
    """A preset, or `preset:key=value,...`; a preset with a changed field is nobody's but ours."""
    name, wanted = options.split(argument)
    preset = methods().find(name)
    if not wanted:
        return preset
    changed = options.changed(preset, wanted, fixed=("name", *TITLES))
    return replace(changed, name=options.joined(preset.name, wanted), fidelity="ours")


@functools.cache
def recipes() -> Shelf[Recipe]:
    """Every training recipe."""
    return _shelf(
        "recipe", _files(user_config.card_folders("recipes"), "*.toml"), lambda f: toml_parser.load(Recipe, f)
    )


def recipe(argument: str) -> Recipe:
    """A recipe's name, or a TOML file of the user's own."""
    if not argument.endswith(".toml"):
        return recipes().find(argument)
    if not Path(argument).expanduser().is_file():
        raise MissingError(f"there is no recipe at {argument}", "name a TOML file, or one of `retbench list recipes`")
    return toml_parser.load(Recipe, Path(argument).expanduser())


@functools.cache
def studies() -> Shelf[Study]:
    """Every study's plan."""
    return _shelf("study", _files(user_config.card_folders("studies"), "*.toml"), lambda f: toml_parser.load(Study, f))


def study(argument: str) -> Study:
    """A study's name, or a TOML file of the user's own."""
    if not argument.endswith(".toml"):
        return studies().find(argument)
    if not Path(argument).expanduser().is_file():
        raise MissingError(f"there is no plan at {argument}", "name a TOML file, or one of `retbench study list`")
    return toml_parser.load(Study, Path(argument).expanduser())


def _is_path(argument: str) -> bool:
    return argument.startswith((".", "~")) or (("/" in argument or "\\" in argument) and Path(argument).exists())


def model(argument: str) -> ModelCard:
    """A card's name or alias, a path (a folder or a GGUF file), or a hub id."""
    if _is_path(argument):
        return _model_at(Path(argument).expanduser())
    if argument in models() or not re.fullmatch(r"[\w.-]+/[\w.-]+", argument):
        return models().find(argument)
    return ModelCard(name=argument.lower(), weights=Weights(source="hub", repo=argument), method=DefaultMethod("mean"))


def _model_at(path: Path) -> ModelCard:
    if not path.exists():
        raise MissingError(f"there is no model at {path}", "name a Hugging Face folder or a GGUF file")
    if (path / CARD).is_file():
        return _model_card(path / CARD)
    layout = "folder" if path.is_dir() else "gguf"
    weights = toml_parser.convert(
        Weights, {"source": "path", "layout": layout, "path": str(path)}, toml_parser.Place(path, "")
    )
    name = path.resolve().name if path.is_dir() else path.stem  # the folder qwen2.5-0.5b has no suffix .5b
    return ModelCard(name=name.lower(), weights=weights, method=DefaultMethod("mean"))


def task(argument: str) -> TaskCard:
    """A card's name or alias, or a BEIR folder of the user's own."""
    if not _is_path(argument):
        return tasks().find(argument)
    path = Path(argument).expanduser()
    if not path.is_dir():
        raise MissingError(
            f"there is no collection at {path}", "name a folder with corpus.jsonl, queries.jsonl, qrels/"
        )
    return TaskCard(name=path.resolve().name.lower(), source=Source(kind="folder", path=str(path)))
