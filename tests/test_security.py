"""The promises of SECURITY.md without another test: no key in any output, no remote code without trust.

Elsewhere: pickles (test_weights.py), archives (test_beir_archives.py), ids and names as paths (test_collections.py,
test_cards.py), hostile names in the page (test_html_page.py), damaged input (test_fuzz.py).
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from retbench.cli.main import app
from retbench.engines import hub_weights, remote_code
from retbench.pipelines.evaluation.request import format_command_line
from tests import local_server, tiny_models
from tests.test_import_rules import FILES
from tests.test_run import run_command

KEYS = {
    "RETBENCH_ENDPOINT_KEY": "sk-do-not-tell-endpoint",
    "HF_TOKEN": "hf_doNotTellTheHubToken",
    "AWS_SECRET_ACCESS_KEY": "do-not-tell-of-the-store",
}


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[local_server.LocalServer]:
    """Set every key in the environment; yield them with a server."""
    with local_server.start_server() as running:
        monkeypatch.setenv("RETBENCH_ENDPOINT", running.address)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # otherwise doctor would connect to the hub
        for name, value in KEYS.items():
            monkeypatch.setenv(name, value)
        yield running


def find_keys_in(*texts: str) -> list[str]:
    return [name for name, value in KEYS.items() if any(value in text for text in texts)]


def iterate_files(*folders: Path) -> Iterator[tuple[Path, bytes]]:
    for folder in folders:
        for file in folder.rglob("*"):
            if file.is_file():
                yield file, file.read_bytes()


def find_files_with_keys(*folders: Path) -> list[Path]:
    return [
        file for file, content in iterate_files(*folders) if any(value.encode() in content for value in KEYS.values())
    ]


def build_run_command(task: Path, out: Path, *more: str) -> tuple[str, ...]:
    words = (
        "run",
        "--model",
        "a/b",
        "--task",
        str(task),
        "--out",
        str(out),
        "--engine",
        "endpoint:max_attempts=1,batch_size=8",
    )
    return (*words, *more)


def run_subprocess(words: tuple[str, ...]) -> tuple[int, str, str]:
    """Run the command in a new process with --verbose; return exit code, stdout and stderr."""
    command = [sys.executable, "-m", "retbench", "--verbose", *words]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    return process.returncode, process.stdout, process.stderr


def test_the_key_search_finds_a_key(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "x.json").write_text(f"key: {KEYS['HF_TOKEN']}!")
    assert find_files_with_keys(tmp_path)
    assert find_keys_in("", KEYS["AWS_SECRET_ACCESS_KEY"]) == ["AWS_SECRET_ACCESS_KEY"]


def test_a_run_writes_and_prints_no_key(keys: local_server.LocalServer, task: Path, out: Path, own_cache: Path) -> None:
    status, stdout, stderr = run_subprocess(build_run_command(task, out, "--json"))
    assert status == 0, stderr
    assert set(keys.keys) == {f"Bearer {KEYS['RETBENCH_ENDPOINT_KEY']}"}  # the key was needed and sent
    (cell,) = json.loads(stdout)
    pages = [run_command("report", out, "--format", form).output for form in ("markdown", "html", "json")]
    looks = [run_command("doctor", "--json").output, run_command("inspect", cell["record"]).output]
    assert find_keys_in(stdout, stderr, *pages, *looks) == []
    assert len(list(iterate_files(out, own_cache))) > 10
    assert find_files_with_keys(out, own_cache, task) == []


def answer_with_keys(body: dict[str, Any]) -> local_server.Answer:
    """Answer with an error that contains every key."""
    return 401, {}, f"bad key {' '.join(KEYS.values())}".encode()


FAULTS = {
    "refuses": (answer_with_keys, 3),
    "is overloaded": (lambda body: (503, {}, answer_with_keys(body)[2]), 5),
    "does not understand": (lambda body: (400, {}, answer_with_keys(body)[2]), 2),
    "sends half": (local_server.answer_half, 5),
    "says nothing of use": (lambda body: (200, {}, json.dumps({"error": KEYS["RETBENCH_ENDPOINT_KEY"]}).encode()), 5),
}


@pytest.mark.parametrize(("fault", "status"), FAULTS.values(), ids=FAULTS)
def test_a_failing_request_prints_no_key(
    fault: Any,
    status: int,
    keys: local_server.LocalServer,
    task: Path,
    out: Path,
    own_cache: Path,
) -> None:
    keys.answer = fault
    answer = run_command(*build_run_command(task, out, "--json"))
    assert answer.exit_code == status
    assert keys.requests
    assert find_keys_in(answer.output, answer.stderr) == []
    assert list(out.rglob("*.failed.json"))  # the failure was recorded without a key
    assert find_files_with_keys(out, own_cache) == []


def test_the_command_of_a_record_has_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shared with the record, and with the card of a trained model that is pushed."""
    monkeypatch.setenv("MY_SERVICE_API_KEY", "sk-0123456789")
    words = ["retbench", "run", "--model", "sk-0123456789", "--set", "url=http://me:word@host/v1", "--task", "/a/b"]
    monkeypatch.setattr(sys, "argv", words)
    assert format_command_line() == "retbench run --model *** --set url=http://***@host/v1 --task b"


def test_no_option_takes_a_key() -> None:
    """Keys are read only from the environment, so no shell history and no record contains one."""
    for words in (["run"], ["rerank"], ["finetune"], ["fetch"], ["verify"], ["study", "run"]):
        offered = run_command(*words, "--help").output.lower()
        assert not [value for value in ("--token", "--key", "--api-key", "--password") if value in offered]


# Code


def write_model_with_code(folder: Path, marker: Path) -> Path:
    """Write a tiny model whose config names classes in a file beside its weights; if it runs, it writes `marker`."""
    tiny_models.build_model(folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"}
    config |= {"model_type": "own-of-somebody", "architectures": ["OwnModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    parent = "Qwen2"
    (folder / "own.py").write_text(
        f"from pathlib import Path\nfrom transformers import {parent}Config, {parent}Model\n"
        f"Path({str(marker)!r}).write_text('ran')\n"
        f"class OwnConfig({parent}Config):\n    model_type = 'own-of-somebody'\n"
        f"class OwnModel({parent}Model):\n    config_class = OwnConfig\n"
    )
    return folder


@pytest.fixture
def model_with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setenv(remote_code.TRUST_VARIABLE, "")  # restored after the test
    return write_model_with_code(tmp_path / "stranger", tmp_path / "mark"), tmp_path / "mark"


def test_code_beside_weights_does_not_run(model_with_code: tuple[Path, Path], task: Path, out: Path) -> None:
    folder, mark = model_with_code
    answer = run_command("run", "--model", folder, "--task", task, "--out", out, "--method", "mean")
    assert answer.exit_code == 4
    assert "only be loaded by running the Python code beside its weights" in answer.output
    assert "retbench --trust-remote-code run" in answer.output
    assert not mark.exists()


def test_code_beside_a_tokenizer_does_not_run(
    model_with_code: tuple[Path, Path], task: Path, out: Path, tmp_path: Path
) -> None:
    stranger, mark = model_with_code
    folder = tiny_models.build_model(tmp_path / "tokenizer-of-a-stranger")
    (folder / "own.py").write_text((stranger / "own.py").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {
        "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]},
        "tokenizer_class": "OwnTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    answer = run_command("run", "--model", folder, "--task", task, "--out", out, "--method", "mean")
    assert answer.exit_code in (0, 4), answer.output
    assert "unexpected" not in answer.output
    assert not mark.exists()


def test_trusted_code_runs_and_its_digest_is_in_the_record(
    model_with_code: tuple[Path, Path],
    task: Path,
    out: Path,
) -> None:
    folder, mark = model_with_code
    words = (
        "--trust-remote-code",
        "run",
        "--model",
        folder,
        "--task",
        task,
        "--out",
        out,
        "--method",
        "mean",
        "--json",
    )
    (first,) = json.loads(run_command(*words, "--json").stdout)
    assert first["status"] == "done"
    assert mark.read_text() == "ran"
    record = json.loads((Path(first["record"]) / "record.json").read_text())
    assert record["settings"]["encoder"]["code"] == remote_code.compute_code_digest(folder)
    with (folder / "own.py").open("a") as code_file:
        code_file.write("# another line\n")
    (second,) = json.loads(run_command(*words, "--json").stdout)
    assert second["settings_id"] != first["settings_id"]  # changed code gives another cell


def test_no_file_can_grant_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(remote_code.TRUST_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "retbench.toml").write_text("trust_remote_code = true\n")
    assert not remote_code.is_remote_code_trusted()
    for value, expected in {"1": True, "true": True, "0": False, "no": False, "": False}.items():
        monkeypatch.setenv(remote_code.TRUST_VARIABLE, value)
        assert remote_code.is_remote_code_trusted() is expected


def test_help_names_the_variable_that_grants_trust() -> None:
    (option,) = [one for one in get_command(app).params if one.name == "trust"]
    assert option.envvar == remote_code.TRUST_VARIABLE


def iterate_calls(name: str) -> Iterator[tuple[str, ast.Call]]:
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", None)) == name:
                yield f"{file.name}:{node.lineno}", node


def test_every_load_call_sets_trust_remote_code() -> None:
    """Without the argument transformers asks at the terminal, where a user may agree by mistake."""
    actual = [(location, {value.arg for value in node.keywords}) for location, node in iterate_calls("from_pretrained")]
    assert len(actual) > 8
    unset = [location for location, arguments in actual if not arguments & {"trust_remote_code", "gguf_file"}]
    assert [
        location for location in unset if "adapters.py" not in location
    ] == []  # a call of peft, which loads no code


def test_nothing_is_unpickled() -> None:
    actual = {location: node for name in ("load", "loads", "read_pickle") for location, node in iterate_calls(name)}
    names = {location: ast.unparse(node.func) for location, node in actual.items()}
    pickles = ("pickle.", "joblib.", "dill.", "cloudpickle.", "marshal.", "shelve.", "pd.read_pickle")
    assert [location for location, name in names.items() if name.startswith(pickles)] == []
    torch_loads = [node for location, node in actual.items() if names[location] == "torch.load"]
    assert all("weights_only=True" in ast.unparse(node) for node in torch_loads)
    numpy_loads = [node for location, node in actual.items() if names[location] == "np.load"]
    assert not any("allow_pickle=True" in ast.unparse(node) for node in numpy_loads)


def test_only_safe_files_are_requested_from_the_hub(tmp_path: Path) -> None:
    """The file patterns exclude pickles and code before anything is fetched."""
    from fnmatch import fnmatch

    from retbench.engines.model_folders import WANTED_PATTERNS

    def asked(name: str) -> bool:
        return any(fnmatch(name, p) for p in WANTED_PATTERNS) and not any(
            fnmatch(name, p) for p in hub_weights.IGNORED_PATTERNS
        )

    safe = ["model.safetensors", "config.json", "tokenizer.json"]
    assert [name for name in (*safe, "pytorch_model.bin", "model.pt", "x.pkl", "own.py", "a.sh") if asked(name)] == safe
