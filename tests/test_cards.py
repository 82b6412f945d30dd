"""Cards: errors name file, line and field; names, aliases, paths and hub ids; where cards are searched."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from retbench.cards import catalog
from retbench.cards.model import ModelCard, WeightsSource
from retbench.cards.task import LengthLimits, Suite, TaskCard
from retbench.errors import DataError, MissingError, UsageError
from retbench.system import toml_parser, user_config

TASK = 'name = "t"\n[source]\nkind = "folder"\n'
KNOWN = 'model = "m"\nmetric = "ndcg_at_10"\nscore = 0.5\ntolerance = 0.01\nsource = "s"\n'

# (card, line, field, problem, next step)
WRONG_CARDS = {
    "unknown field": ('name = "t"\nsplti = "dev"\n[source]\nkind = "folder"\n', 2, "splti", "unknown field", "split"),
    "unknown field of a table": (TASK + 'subste = "x"\n', 4, "source.subste", "unknown field", "did you mean subset?"),
    "missing field": ('split = "dev"\n[source]\nkind = "folder"\n', 1, "name", "missing", "add `name`"),
    "missing field of a table": ('name = "t"\n\n[source]\npath = "x"\n', 3, "source.kind", "missing", "add `kind`"),
    "missing table": ('name = "t"\n', 1, "source", "missing", "add `source`"),
    "wrong type": ('name = "t"\nsplit = 3\n[source]\nkind = "folder"\n', 2, "split", "expected str, found 3", "str"),
    "a number in quotes": (TASK + '[lengths]\nquery = "512"\n', 5, "lengths.query", "expected int", "int"),
    "true is not a number": (TASK + "[lengths]\nquery = true\n", 5, "lengths.query", "found True", "int"),
    "bad literal": (
        'name = "t"\nsame_id = "drp"\n[source]\nkind = "folder"\n', 2, "same_id", "'drp' is not allowed", "drop"
    ),
    "bad literal in a list": (
        'name = "t"\nfields = ["title", "txt"]\n[source]\nkind = "folder"\n', 2, "fields.2", "'txt' is not a", "text"
    ),
    "text for a list": ('name = "t"\naliases = "u"\n[source]\nkind = "folder"\n', 2, "aliases", "a list", "[ ... ]"),
    "text for a table": ('name = "t"\nsource = "folder"\n', 2, "source", "expected a table", "[table]"),
    "list for a table": ('name = "t"\nsource = []\n', 2, "source", "expected a table", "[table]"),
    "inline table": ('name = "t"\nsource = { kind = "foldr" }\n', 2, "source.kind", "'foldr' is not", "folder"),
    "dotted key": ('name = "t"\nsource.kind = "foldr"\n', 2, "source.kind", "'foldr' is not", "folder"),
    "quoted key": ('"name" = 1\n[source]\nkind = "folder"\n', 1, "name", "expected str, found 1", "str"),
    "array of tables, second one": (
        f"{TASK}[[expected]]\n{KNOWN}\n[[expected]]\n{KNOWN}".replace("0.5", '"0.5"', 2).replace('"0.5"', "0.5", 1),
        14, "expected.2.score", "expected float", "float",
    ),
    "array of tables, field missing in the first": (
        f'{TASK}[[expected]]\nmodel = "m"\n[[expected]]\n{KNOWN}', 4, "expected.1.metric", "missing", "add `metric`"
    ),
    "one table for an array of tables": (f"{TASK}[expected]\n{KNOWN}", 4, "expected", "expected a list", "[ ... ]"),
    "a value the record refuses": (TASK + "[lengths]\nquery = -1\n", 4, "lengths", "a length of -1", "write 0"),
    "a field of that name elsewhere": (
        'name = "t"\n[source]\nkind = "folder"\npath = "metric"\n[lengths]\nkind = 1\n',
        6, "lengths.kind", "unknown field", "known: document, query",
    ),
}  # fmt: skip


def write_card(folder: Path, text: str, name: str = "card.toml") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(("text", "line", "field", "problem", "next_step"), WRONG_CARDS.values(), ids=WRONG_CARDS)
def test_an_error_names_file_line_and_field(
    tmp_path: Path, text: str, line: int, field: str, problem: str, next_step: str
) -> None:
    file = write_card(tmp_path, text)
    with pytest.raises(DataError) as caught:
        toml_parser.load_card(TaskCard, file)
    assert caught.value.cause.startswith(f"{file}:{line}: {field}: ")
    assert problem in caught.value.cause
    assert next_step in caught.value.next_step


def test_a_syntax_error_names_file_and_line(tmp_path: Path) -> None:
    file = write_card(tmp_path, 'name = "t"\nsplit = dev\n')
    with pytest.raises(DataError, match=r"not valid TOML.*line 2") as caught:
        toml_parser.load_card(TaskCard, file)
    assert str(file) in caught.value.cause


def test_a_card_that_is_not_utf8_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "card.toml"
    file.write_bytes('name = "Kompaß"\n'.encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8") as caught:
        toml_parser.load_card(TaskCard, file)
    assert str(file) in caught.value.cause


def test_a_good_card_keeps_every_value(tmp_path: Path) -> None:
    text = f'name = "t"\naliases = ["u", "v"]\n[source]\nkind = "folder"\n[lengths]\nquery = 64\n[[expected]]\n{KNOWN}'
    card = toml_parser.load_card(TaskCard, write_card(tmp_path, text.replace("0.5", "1")), suite="mine")
    assert (card.aliases, card.suite, card.lengths) == (("u", "v"), "mine", LengthLimits(64, 512))
    assert card.expected[0].score == 1.0
    assert isinstance(card.expected[0].score, float)


def test_groups_of_a_suite_are_checked_too(tmp_path: Path) -> None:
    file = write_card(tmp_path, 'name = "s"\ntasks = ["g", "t"]\n[groups]\ng = ["a", "b"]\nh = ["c", 4]\n')
    with pytest.raises(DataError, match=r":5: groups\.h\.2: expected str, found 4"):
        toml_parser.load_card(Suite, file)
    file.write_text('name = "s"\ntasks = ["g", "t"]\n[groups]\ng = ["a", "b"]\n')
    assert toml_parser.load_card(Suite, file).expand_tasks() == ("a", "b", "t")


# The user's own cards

OwnCards = Callable[[str, str], Path]


@pytest.fixture
def write_own_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_catalog: Callable[[], None]
) -> Callable[[str, str], Path]:
    """Return a function that writes a card to the user's card folder (RETBENCH_CARDS)."""
    monkeypatch.setenv("RETBENCH_CARDS", str(tmp_path / "mine"))

    def add(name: str, text: str) -> Path:
        fresh_catalog()
        return write_card(tmp_path / "mine", text, name)

    return add


def test_user_cards_are_found_beside_the_shipped_ones(write_own_card: OwnCards) -> None:
    write_own_card("model_cards/mine.toml", 'name = "mine"\naliases = ["my-own"]\nparameters = 7\n')
    write_own_card("tasks/home/kitchen.toml", TASK.replace('"t"', '"kitchen"'))
    write_own_card("tasks/home/suite.toml", 'name = "home"\ntasks = ["kitchen"]\n')
    assert catalog.find_model_card("my-own").parameters == 7
    assert catalog.find_task_card("kitchen").suite == "home"
    assert catalog.load_suites().find("home").expand_tasks() == ("kitchen",)
    assert "bm25" in catalog.load_model_cards()


def test_names_and_aliases_are_found_in_any_case(write_own_card: OwnCards) -> None:
    write_own_card("model_cards/mine.toml", 'name = "MyModel"\naliases = ["Org/My-Model"]\n')
    for name in ("MyModel", "mymodel", "MYMODEL", "org/my-model", "Org/My-Model"):
        assert catalog.find_model_card(name).name == "MyModel"
        assert name in catalog.load_model_cards()


# name and aliases of the second card; the first card is `first` with the alias `one`
NAME_CONFLICTS = {
    "name and name": 'name = "first"',
    "name and alias": 'name = "one"',
    "alias and name": 'name = "second"\naliases = ["first"]',
    "alias and alias": 'name = "second"\naliases = ["one"]',
    "in another case": 'name = "FIRST"',
}


@pytest.mark.parametrize("claim", NAME_CONFLICTS.values(), ids=NAME_CONFLICTS)
def test_two_cards_with_one_name_are_both_named(write_own_card: OwnCards, claim: str) -> None:
    first = write_own_card("model_cards/a.toml", 'name = "first"\naliases = ["one"]\n')
    second = write_own_card("model_cards/deeper/b.toml", claim)
    with pytest.raises(DataError, match="both define") as caught:
        catalog.load_model_cards()
    assert str(first) in caught.value.cause
    assert str(second) in caught.value.cause


def test_a_card_cannot_take_a_shipped_name(write_own_card: OwnCards) -> None:
    own_card = write_own_card("model_cards/a.toml", 'name = "bm25"\n')
    with pytest.raises(DataError, match=r"both define.*'bm25'") as caught:
        catalog.load_model_cards()
    assert str(own_card) in caught.value.cause


@pytest.mark.parametrize(
    ("ask", "name", "suggestion"),
    [
        (catalog.find_model_card, "qwen2.5-codr", "qwen2.5-coder"),
        (catalog.find_model_card, "QWEN2.5-CODR", "qwen2.5-coder"),
        (catalog.find_task_card, "scifct", "scifact"),
        (catalog.load_suites().find, "bier", "beir"),
        (catalog.load_methods().find, "promptrep", "promptreps"),
    ],
)
def test_an_unknown_name_suggests_the_closest(ask: Callable[[str], object], name: str, suggestion: str) -> None:
    with pytest.raises(UsageError, match=f"called '{name}'") as caught:
        ask(name)
    assert "did you mean" in caught.value.next_step
    assert suggestion in caught.value.next_step


# How an argument is read: path, card or hub id. The working folder has the folders `here`, `bm25`, `.dot` and
# `org/local`, and the files `m-q4.gguf` and `org/m-q4.gguf`.
MODELS = {
    "a card": ("qwen2.5-coder-7b", "card", "qwen2.5-coder-7b"),
    "an alias": ("qwen2.5-coder", "card", "qwen2.5-coder-7b"),
    "a card, though a folder has its name": ("bm25", "card", "bm25"),
    "a folder with ./": ("./here", "path", "here"),
    "a card's name with ./ is the folder": ("./bm25", "path", "bm25"),
    "a folder that starts with a dot": (".dot", "path", ".dot"),
    "a folder behind ..": ("../desk/here", "path", "here"),
    "a trailing separator": ("here/", "path", "here"),
    "a folder with a separator": ("org/local", "path", "local"),
    "a folder whose name has dots": ("./v1.5-0.5b", "path", "v1.5-0.5b"),
    "a GGUF file": ("org/m-q4.gguf", "path", "m-q4"),
    "a hub id": ("Org/Name-1.5B", "hub", "org/name-1.5b"),
    "a hub id, though it could be a path": ("org/elsewhere", "hub", "org/elsewhere"),
    "a folder without separator is not a path": ("here", UsageError, "there is no model"),
    "a file without separator is not a path": ("m-q4.gguf", UsageError, "there is no model"),
    "two separators": ("a/b/c", UsageError, "there is no model"),
    "an absolute path that is not there": ("/nowhere", UsageError, "there is no model"),
    "nothing after the separator": ("nowhere/", UsageError, "there is no model"),
    "a path that is not there": ("./nowhere", MissingError, "there is no model at nowhere"),
}


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "desk"
    for folder in ("here", "bm25", ".dot", "org/local", "v1.5-0.5b"):
        (work / folder).mkdir(parents=True)
    for file in ("m-q4.gguf", "org/m-q4.gguf"):
        (work / file).touch()
    monkeypatch.chdir(work)
    return work


@pytest.mark.parametrize(("argument", "kind", "name"), MODELS.values(), ids=MODELS)
def test_a_model_argument_is_resolved(
    working_folder: Path, argument: str, kind: str | type[Exception], name: str
) -> None:
    if not isinstance(kind, str):
        with pytest.raises(kind, match=name):
            catalog.find_model_card(argument)
        return
    card = catalog.find_model_card(argument)
    assert card.name == name
    if kind == "path":
        assert card.weights is not None
        assert card.weights.source == "path"
        assert (working_folder / str(card.weights.path)).exists()
    elif kind == "hub":
        assert card.weights == WeightsSource(source="hub", repo=argument)
    else:
        assert card is catalog.load_model_cards().find(name)


def test_folder_and_file_names_are_resolved_differently(working_folder: Path) -> None:
    layouts = [catalog.find_model_card(str(working_folder / name)).weights for name in ("here", "m-q4.gguf")]
    assert [weights.layout for weights in layouts if weights] == ["folder", "gguf"]


def test_a_path_may_start_with_the_home_folder(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(working_folder))
    assert catalog.find_model_card("~/here").name == "here"
    assert catalog.find_task_card("~/here").name == "here"


def test_a_task_argument_is_resolved(working_folder: Path) -> None:
    assert catalog.find_task_card("scifact").source.kind != "folder"
    card = catalog.find_task_card("org/local")
    assert (card.name, card.suite, card.source.path) == ("local", "custom", "org/local")
    with pytest.raises(MissingError, match="no collection at"):
        catalog.find_task_card("./nowhere")
    with pytest.raises(MissingError, match="no collection at"):
        catalog.find_task_card("./m-q4.gguf")
    with pytest.raises(UsageError, match="no task called 'here'"):
        catalog.find_task_card("here")


# (retbench.toml, environment, resulting settings)
SETTINGS: dict[str, tuple[str | None, dict[str, str], user_config.UserConfig]] = {
    "nothing": (None, {}, user_config.UserConfig()),
    "the file": (
        'cache = "f"\ncards = ["g"]\ndevice = "cpu"\n', {},
        user_config.UserConfig("f", ("g",), "cpu"),
    ),
    "the environment": (
        None, {"RETBENCH_CACHE": "e", "RETBENCH_CARDS": os.pathsep.join("ab"), "RETBENCH_DEVICE": "cuda"},
        user_config.UserConfig("e", ("a", "b"), "cuda"),
    ),
    "the environment wins": (
        'cache = "f"\ncards = ["g"]\ndevice = "cpu"\n', {"RETBENCH_CARDS": "a", "RETBENCH_DEVICE": "cuda"},
        user_config.UserConfig("f", ("a",), "cuda"),
    ),
    "an empty variable is none": (
        'cache = "f"\ncards = ["g"]\ndevice = "cpu"\n', dict.fromkeys(("RETBENCH_CACHE", "RETBENCH_CARDS"), ""),
        user_config.UserConfig("f", ("g",), "cpu"),
    ),
    "an empty entry is not the working folder": (
        None, {"RETBENCH_CARDS": f"a{os.pathsep}"}, user_config.UserConfig(None, ("a",)),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "environment", "expected"), SETTINGS.values(), ids=SETTINGS)
def test_environment_variables_override_the_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str | None,
    environment: dict[str, str],
    expected: user_config.UserConfig,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RETBENCH_CACHE")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if text is not None:
        write_card(tmp_path, text, user_config.CONFIG_FILE)
    assert user_config.load_user_config() == expected


def test_tests_do_not_collect_the_cards_of_the_developers_cache(tmp_path: Path) -> None:
    """`make test` failed where models had been trained: each became a case of the tests of retrievers."""
    line = "import tests.conftest; from retbench.system import user_config; print(user_config.get_cache_folder())"
    environment = {name: value for name, value in os.environ.items() if name != "RETBENCH_CACHE"}
    answer = subprocess.run(
        [sys.executable, "-c", line], env={**environment, "XDG_CACHE_HOME": str(tmp_path)},
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not Path(answer.stdout.strip()).is_relative_to(tmp_path)


def test_retbench_toml_adds_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_catalog: object) -> None:
    monkeypatch.chdir(tmp_path)
    write_card(tmp_path, 'cards = ["own"]\n', user_config.CONFIG_FILE)
    write_card(tmp_path, 'name = "mine"\n', "own/model_cards/mine.toml")
    assert catalog.find_model_card("mine").name == "mine"


def test_retbench_toml_is_validated_like_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_card(tmp_path, '\ncahce = "x"\n', user_config.CONFIG_FILE)
    with pytest.raises(DataError, match=r"retbench\.toml:2: cahce: unknown field") as caught:
        user_config.load_user_config()
    assert caught.value.next_step == "did you mean cache?"


def test_an_invalid_device_names_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETBENCH_DEVICE", "cdua")
    with pytest.raises(DataError, match=r"RETBENCH_DEVICE: 'cdua' is not allowed") as caught:
        user_config.load_user_config()
    assert "cuda" in caught.value.next_step


def test_the_cache_folder_is_configured_or_in_the_users_cache_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/users/me")
    monkeypatch.setenv("RETBENCH_CACHE", "~/c")
    assert user_config.get_cache_folder() == Path("/users/me/c")
    monkeypatch.delenv("RETBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert user_config.get_cache_folder() == Path("/x/retbench")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_config.get_cache_folder() == Path("/users/me/.cache/retbench")


@given(st.text())
@example("")
@example(".")
@example("..")
@example("../../etc")
@example("a/b\\c")
@example("nul\0")
@example(".hidden")
@example("100%")
def test_a_path_part_never_leaves_its_folder(name: str) -> None:
    part = user_config.encode_path_part(name)
    path = PurePosixPath("root") / part
    assert path.parts == ("root", part)
    assert not part.startswith(".")
    assert not set(part) & set('/\\:*?"<>|\0\n')
    if name:
        assert unquote(part) == name  # so two names never have the same path part


@pytest.mark.parametrize("name", ["qwen2.5-coder-7b", "qwen2.5@step=10", "name+q4_k_m"])
def test_a_path_part_keeps_plain_names(name: str) -> None:
    assert user_config.encode_path_part(name) == name


def test_lexical_cards_have_their_variant(write_own_card: OwnCards) -> None:
    write_own_card("model_cards/mine.toml", 'name = "mine"\nkind = "lexical"\n[lexical]\nvariant = "bm26"\n')
    with pytest.raises(DataError, match=r"lexical\.variant: 'bm26' is not allowed"):
        catalog.load_model_cards()


def test_every_card_dataclass_is_frozen() -> None:
    with pytest.raises(AttributeError):
        ModelCard("m").name = "n"  # type: ignore[misc]


def test_an_old_field_of_a_study_is_an_error_with_the_new_one(tmp_path: Path) -> None:
    text = 'name = "s"\ntitle = "s"\n[[stages]]\nname = "a"\nmodels = ["bm25"]\nbeside = ["b"]\n'
    file = write_card(tmp_path, text, "plan.toml")
    with pytest.raises(DataError, match=r"plan\.toml:6: stages\.1\.beside: this key is now compare_with") as refused:
        catalog.find_study(str(file))
    assert refused.value.next_step == "rename beside to compare_with"


def test_a_name_beside_a_folder_offers_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pantry").mkdir()
    (tmp_path / "model.gguf").touch()
    for find, name, step in (
        (catalog.find_task_card, "pantry", "write ./pantry for the folder pantry"),
        (catalog.find_model_card, "model.gguf", "write ./model.gguf for the file model.gguf"),
    ):
        with pytest.raises(UsageError) as caught:
            find(name)
        assert caught.value.next_step == step


def test_a_name_like_none_leads_to_the_list_and_not_to_twelve_others() -> None:
    with pytest.raises(UsageError) as caught:
        catalog.find_model_card("qqqqqqqqqqq")
    assert "`retbench list models` shows the" in caught.value.next_step


def test_a_wrong_option_is_named_without_a_line_number() -> None:
    with pytest.raises(UsageError) as caught:
        catalog.find_method("mean:layer=")
    assert caught.value.cause == "layer: expected int, found ''"


@pytest.mark.parametrize(
    ("tasks", "groups", "message"),
    [
        ('["a"]', 'mine = ["b"]', "the group mine is not in tasks"),
        ('["a", "mine"]', 'mine = ["a"]', "has a twice"),
        ('["a", "a"]', "", "has a twice"),
    ],
)
def test_a_suite_runs_all_its_groups_and_each_task_once(tasks: str, groups: str, message: str, tmp_path: Path) -> None:
    """A group outside of `tasks` was accepted, and its tasks were not run."""
    file = tmp_path / "suite.toml"
    file.write_text(f'name = "s"\ntasks = {tasks}\n[groups]\n{groups}\n')
    with pytest.raises(DataError, match=message):
        toml_parser.load_card(Suite, file)
