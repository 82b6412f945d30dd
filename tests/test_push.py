"""`retbench push` against a local imitation of the hub: files, model card, scores, and what is refused."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from huggingface_hub import ModelCard as HubModelCard
from huggingface_hub import parse_eval_result_entries

import retbench
from retbench.cards import catalog
from retbench.errors import MissingError, UsageError
from retbench.pipelines.push import plan_push, push_model
from tests import hub_repositories, small_collection
from tests.test_finetune import TrainModel, data, train
from tests.test_run import run_command

__all__ = ["data", "train"]  # fixtures
TASK = """
name = "hub-pantry"
fields = ["text"]
metric = "ndcg_at_10"
[source]
kind = "hub"
repo = "kitchen/pantry"
revision = "{revision}"
"""


@dataclass
class HubImitation:
    """What the imitation received: repositories, and the files of commits."""

    repositories: list[dict[str, object]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str | None] = field(default_factory=set)
    status: int = 200


@contextmanager
def serve_hub(hub: HubImitation) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Print nothing."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            hub.tokens.add(self.headers.get("Authorization"))
            answer: dict[str, object] = {"url": f"{address}/kitchen/pupil"}
            if self.path.endswith("/repos/create"):
                hub.repositories.append(json.loads(body))
            elif "/preupload/" in self.path:
                paths = [file["path"] for file in json.loads(body)["files"]]
                modes = {"uploadMode": "regular", "shouldIgnore": False}
                answer = {"files": [{"path": path, **modes} for path in paths]}
            elif "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                answer = {"commitUrl": f"{address}/kitchen/pupil/commit/{'b' * 40}", "commitOid": "b" * 40}
            content = json.dumps(answer).encode()
            self.send_response(hub.status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield address
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubImitation]:
    hub = HubImitation()
    with serve_hub(hub) as address:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield hub


@pytest.fixture
def hub_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_catalog: Callable[[], None]) -> str:
    """A task whose collection is on the hub, fetched."""
    configs = hub_repositories.build_retrieval_configs(
        small_collection.DOCUMENTS, small_collection.QUERIES, small_collection.TEST_JUDGMENTS
    )
    hub_repositories.write_fetched_repository("kitchen/pantry", hub_repositories.REVISION, configs)
    (tmp_path / "cards" / "tasks" / "kitchen").mkdir(parents=True)
    card = tmp_path / "cards" / "tasks" / "kitchen" / "hub-pantry.toml"
    card.write_text(TASK.format(revision=hub_repositories.REVISION))
    monkeypatch.setenv("RETBENCH_CARDS", str(tmp_path / "cards"))
    fresh_catalog()
    return "hub-pantry"


def test_a_trained_model_is_pushed_with_its_scores(
    train: TrainModel, tmp_path: Path, hub: HubImitation, hub_task: str
) -> None:
    train()
    pantry, results = str(small_collection.write_folder(tmp_path / "pantry")), tmp_path / "results"
    on_hub, local = retbench.evaluate("pupil", tasks=[hub_task, pantry], out=results)
    assert (on_hub.error, local.error) == (None, None)
    retbench.evaluate("pupil", tasks=pantry, out=results, sample=2)  # a sample is not listed
    answer = run_command("push", "pupil", "kitchen/pupil", "--results", results)
    assert answer.exit_code == 0, answer.output
    assert "2 scores" in answer.stdout
    assert hub.repositories[0]["name"] == "pupil"
    assert hub.tokens == {"Bearer hf_secret"}
    folder = tmp_path / "pupil"
    assert hub.files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert {"card.toml", "config.json", "tokenizer.json", "README.md"} < set(hub.files)
    assert not any(name.startswith(("metrics", "plan", "checkpoint")) for name in hub.files)
    page = HubModelCard(hub.files["README.md"].decode())
    (result,) = page.data.eval_results or []
    assert (result.dataset_type, result.metric_value) == ("kitchen/pantry", round(100 * (on_hub.main_score or 0), 3))
    assert f"| pantry | m | ndcg_at_10 | {100 * (local.main_score or 0):.2f} |" in page.text
    (name,) = (name for name in hub.files if name.startswith(".eval_results/"))
    (entry,) = parse_eval_result_entries(yaml.safe_load(hub.files[name]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("kitchen/pantry", "hub-pantry", result.metric_value)
    assert str(tmp_path) not in "".join(text.decode() for name, text in hub.files.items() if name.endswith("md"))


def test_a_run_of_other_weights_is_not_listed(train: TrainModel, tmp_path: Path) -> None:
    train()
    pantry, results = str(small_collection.write_folder(tmp_path / "pantry")), tmp_path / "results"
    retbench.evaluate("pupil", tasks=pantry, out=results)
    assert len(plan_push("pupil", "kitchen/pupil", results).scores) == 1
    for file in results.rglob("record.json"):
        record = json.loads(file.read_text())
        record["settings"]["encoder"]["weights"] = "f" * 64
        file.write_text(json.dumps(record))
    assert plan_push("pupil", "kitchen/pupil", results).scores == ()


def test_a_dry_run_sends_nothing(train: TrainModel, tmp_path: Path, hub: HubImitation) -> None:
    train()
    answer = run_command("push", "pupil", "kitchen/pupil", "--results", tmp_path / "none", "--dry-run")
    assert answer.exit_code == 0, answer.output
    assert "model.safetensors" in answer.stdout
    assert "No complete run yet." in answer.stdout
    assert hub.repositories == []


def test_a_refused_push_names_the_next_step(train: TrainModel, tmp_path: Path, hub: HubImitation) -> None:
    train()
    hub.status = 403
    with pytest.raises(MissingError, match="kitchen/pupil could not be pushed") as caught:
        push_model(plan_push("pupil", "kitchen/pupil", tmp_path), private=True)
    assert "HF_TOKEN" in caught.value.next_step


def test_only_models_of_retbench_are_pushed(model: Path) -> None:
    with pytest.raises(UsageError, match="was not trained by retbench"):
        plan_push(str(model), "kitchen/tiny", model)
    assert catalog.find_model_card(str(model)).training is None
