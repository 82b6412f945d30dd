"""`retbench finetune`: a model is trained, killed, resumed, saved and found by name; invalid requests are refused."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

import retbench
from retbench.cards import catalog
from retbench.cards.mining import MiningSettings
from retbench.cards.model import AdaptedVectors, ModelCard
from retbench.cards.recipe import (
    BatchSettings,
    LoraSettings,
    OptimizerSettings,
    QueryLikelihoodTraining,
    Recipe,
    apply_recipe_options,
)
from retbench.cards.task import LengthLimits
from retbench.cli.main import app
from retbench.engines import weights
from retbench.errors import DataError, ResourceError, RetbenchError, UsageError
from retbench.pipelines.finetuning.train_encoder import finetune_encoder
from retbench.system import toml_parser, toml_writer
from retbench.system.checked_json import parse_checked_json
from retbench.training import cost_estimate, step_plan
from retbench.training.training_data import TrainingRequest, remove_leaked_queries
from retbench.training.training_set import TrainingQuery, TrainingSet
from tests import small_collection, tiny_models
from tests.test_experiment_trackers import install_stand_in
from tests.test_flipped_bits import flip_bit
from tests.test_train_loop import RECIPE, write_jsonl

TrainModel = Callable[..., ModelCard]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    half = len(tiny_models.SENTENCES) // 2
    rows = [
        {
            "query": tiny_models.SENTENCES[n],
            "positives": [tiny_models.SENTENCES[half + n]],
            "negatives": [tiny_models.SENTENCES[half - n]],
        }
        for n in range(half)
    ]
    return write_jsonl(tmp_path_factory.mktemp("data") / "sentences.jsonl", *rows)


@pytest.fixture
def train(model: Path, data: Path, tmp_path: Path, fresh_catalog: Callable[[], None]) -> TrainModel:
    recipe = replace(RECIPE, optimizer=OptimizerSettings(learning_rate=1e-2, num_train_epochs=4))

    def train_model(name: str = "pupil", of: Path = data, **fields: Any) -> ModelCard:
        changes = {key: fields.pop(key) for key in tuple(fields) if hasattr(recipe, key)}
        request = TrainingRequest(str(of), str(model), out=tmp_path / name, **fields)
        return finetune_encoder(request, replace(recipe, **changes))

    return train_model


def tensors(card: ModelCard) -> dict[str, Any]:
    assert card.weights
    return load_file(Path(str(card.weights.path)) / "model.safetensors")


def has_same_weights(one: ModelCard, other: ModelCard) -> bool:
    first_tensors, second_tensors = tensors(one), tensors(other)
    return first_tensors.keys() == second_tensors.keys() and all(
        bool((first_tensors[name] == second_tensors[name]).all()) for name in first_tensors
    )


def test_a_trained_model_is_found_by_name_and_by_folder(train: TrainModel, tmp_path: Path) -> None:
    card = train()
    assert (card.name, card.parent, card.training_sets) == ("pupil", "tiny", ("unknown", "sentences"))
    pantry = str(small_collection.write_folder(tmp_path / "pantry"))
    by_name, by_folder = (
        retbench.evaluate([name], tasks=[pantry], out=tmp_path / name.rpartition("/")[2] / "r")[0]
        for name in ("pupil", str(tmp_path / "pupil"))
    )
    assert by_name.status == by_folder.status == "done"
    assert by_name.scores == by_folder.scores
    assert (by_name.method, by_name.seen) == ("m", "unknown")
    record = json.loads((Path(str(by_name.record)) / "record.json").read_text())
    assert record["settings"]["encoder"]["method"]["query"] == "Query: {text}"
    assert str(tmp_path) not in json.dumps(record["cards"]["model"])


def test_training_lowers_the_loss_and_logs_metrics(train: TrainModel) -> None:
    card = train()
    assert card.weights
    lines = [json.loads(line) for line in (Path(str(card.weights.path)) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[-1]["loss"] < lines[0]["loss"] / 2
    assert lines[0].keys() >= {"rate", "tokens_per_second", "memory_mb", "seconds_left", "norm"}


def test_an_adapter_gives_the_scores_of_the_merged_model(train: TrainModel, tmp_path: Path) -> None:
    pantry = str(small_collection.write_folder(tmp_path / "pantry"))
    train("whole"), train("part", output="adapter")
    assert not (tmp_path / "part" / "config.json").exists()
    merged, adapter = retbench.evaluate(["whole", "part"], tasks=[pantry], out=tmp_path / "results")
    assert merged.scores == adapter.scores
    assert merged.settings_id == adapter.settings_id  # the same bytes, so the same fingerprint


def test_a_causal_lm_adapter_is_merged_into_the_backbone(train: TrainModel, tmp_path: Path) -> None:
    train("whole"), train("part", output="adapter")
    config_file = tmp_path / "part" / "adapter_config.json"
    config_file.write_text(json.dumps({**json.loads(config_file.read_text()), "task_type": "CAUSAL_LM"}))
    pantry = str(small_collection.write_folder(tmp_path / "pantry"))
    merged, adapter = retbench.evaluate(["whole", "part"], tasks=[pantry], out=tmp_path / "results")
    assert merged.scores == adapter.scores


def test_the_seed_determines_the_weights(train: TrainModel) -> None:
    first = train("first")
    assert has_same_weights(first, train("second"))
    assert not has_same_weights(first, train("third", seed=2))


@pytest.mark.parametrize("lora", [None, LoraSettings(4, 8, 0.2)])
def test_a_resumed_training_equals_an_uninterrupted_one(train: TrainModel, lora: LoraSettings | None) -> None:
    merged = train("whole", lora=lora)

    class PowerCutError(Exception):
        pass

    def cut(facts: dict[str, Any]) -> None:
        if facts["step"] == 5:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        train("halved", lora=lora, log_metrics=cut)
    assert has_same_weights(merged, train("halved", lora=lora, resume=True))


KILLED_TRAINING_PROGRAM = """
import sys, time
from pathlib import Path
from retbench.pipelines.finetuning.train_encoder import finetune_encoder
from retbench.training.training_data import TrainingRequest
from tests.test_finetune import slow_recipe
data, model, out = sys.argv[1:]
request = TrainingRequest(data, model, out=Path(out), resume=True, log_metrics=lambda _: time.sleep(0.05))
finetune_encoder(request, slow_recipe())
"""


def slow_recipe() -> Recipe:
    return replace(
        RECIPE,
        optimizer=OptimizerSettings(learning_rate=1e-2, num_train_epochs=6),
        save_steps=1,
        lora=LoraSettings(4, 8, 0.2),
    )


def test_sigkill_and_resume_give_the_same_weights(train: TrainModel, data: Path, model: Path, tmp_path: Path) -> None:
    merged = train("whole", **{name: getattr(slow_recipe(), name) for name in ("optimizer", "save_steps", "lora")})
    out = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED_TRAINING_PROGRAM, str(data), str(model), str(out)]
    running = subprocess.Popen(command, env=os.environ, stderr=subprocess.DEVNULL)
    while running.poll() is None and not list(out.glob("checkpoint-*")):
        time.sleep(0.05)
    time.sleep(random.Random().uniform(0, 0.3))  # a random moment of the other eleven steps, which wait 0.05 s each
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert not (out / "card.toml").exists()
    subprocess.run(command, env=os.environ, check=True, capture_output=True)
    assert has_same_weights(merged, catalog.find_model_card(str(out)))


# Each of torchrun's processes imports once and trains every case in a fork, which has a meeting point of its own.
TWO_PROCESS_PROGRAM = """
import os, sys, traceback
from dataclasses import replace
from pathlib import Path
from retbench.pipelines.finetuning.train_encoder import finetune_encoder
from retbench.training.training_data import TrainingRequest
from tests.test_finetune import TWO_PROCESS_CASES, TWO_PROCESS_RECIPE, TWO_PROCESS_WEIGHTS
data, model, out, *ports = sys.argv[1:]
for number, ((sharding, weights), port) in enumerate(zip(TWO_PROCESS_CASES, ports, strict=True)):
    child = os.fork()
    if child == 0:
        os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=port, TORCHELASTIC_USE_AGENT_STORE="False")
        try:
            recipe = replace(TWO_PROCESS_RECIPE, sharding=sharding, **TWO_PROCESS_WEIGHTS[weights])
            finetune_encoder(TrainingRequest(data, model, out=Path(out, f"together-{number}")), recipe)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"{sharding}, {weights}: exit status {status}")
"""
TWO_PROCESS_RECIPE = replace(RECIPE, batch=BatchSettings(8, 8, 100))
QUERY_LIKELIHOOD = QueryLikelihoodTraining(
    "Passage: {text}\nSummarization: ",
    lengths=LengthLimits(16, 24),
    optimizer=OptimizerSettings(learning_rate=1e-3, num_train_epochs=2),
    batch=BatchSettings(8, 8, 200),
)
TWO_PROCESS_WEIGHTS: dict[str, dict[str, Any]] = {
    "full": {"lora": None},
    "dropout": {"lora": LoraSettings(4, 8, 0.3)},
    "mined negatives": {"mining": MiningSettings("model", 1, 5)},
    "both stages of llm-ql": {
        "lora": LoraSettings(4, 8, 0.0), "objective": "llm-ql",
        "query_likelihood": replace(QUERY_LIKELIHOOD, batch=BatchSettings(8, 8, 100)),
    },
}  # fmt: skip


TWO_PROCESS_CASES = [
    ("none", "dropout"), ("none", "mined negatives"), ("fsdp", "full"), ("fsdp", "dropout"),
    ("fsdp", "both stages of llm-ql"),
]  # fmt: skip


@pytest.fixture(scope="module")
def two_process_models(data: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the models that two processes trained together, one for each case."""
    folder = tmp_path_factory.mktemp("together")
    program = folder / "together.py"
    program.write_text(TWO_PROCESS_PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d",
               "--rdzv-endpoint=localhost:0"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.run(
        [*command, str(program), str(data), str(model), str(folder), *find_free_ports(len(TWO_PROCESS_CASES))],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-2000:]
    return folder


def find_free_ports(count: int) -> list[str]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("localhost", 0))) for _ in range(count)]
        return [str(each.getsockname()[1]) for each in sockets]


@pytest.mark.parametrize("case", range(len(TWO_PROCESS_CASES)), ids=[", ".join(case) for case in TWO_PROCESS_CASES])
def test_two_processes_give_the_weights_of_one(train: TrainModel, two_process_models: Path, case: int) -> None:
    import torch

    changes = TWO_PROCESS_WEIGHTS[TWO_PROCESS_CASES[case][1]]
    single_process = train("alone", batch=TWO_PROCESS_RECIPE.batch, optimizer=RECIPE.optimizer, **changes)
    trained_together = catalog.find_model_card(str(two_process_models / f"together-{case}"))
    first, second = tensors(single_process), tensors(trained_together)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], atol=5e-5, rtol=1e-4
        )  # Adam's first steps amplify small differences
    losses = [
        [json.loads(line)["loss"] for line in (Path(str(card.weights.path)) / "metrics.jsonl").read_text().splitlines()]
        for card in (single_process, trained_together)
        if card.weights
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_the_best_evaluated_checkpoint_is_kept(train: TrainModel, tmp_path: Path) -> None:
    small_collection.write_folder(tmp_path / "pantry")
    card = train(eval_task=f"{tmp_path / 'pantry'}:sample=2", eval_steps=2)
    assert card.weights
    assert card.training
    lines = [json.loads(line) for line in (Path(str(card.weights.path)) / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["score"] for line in lines if "score" in line}
    assert list(scores) == [2, 4, 6, 8]
    run = card.training.run
    assert run["best"] == max(scores.values())
    assert scores[run["best_step"]] == run["best"]


def test_training_queries_that_are_all_evaluated_are_an_error() -> None:
    training_set = TrainingSet("kettles", [TrainingQuery("a hot  drink", (0,))], ["tea"], "f")
    with pytest.raises(DataError, match="kettles: all 1 training queries are also queries of an evaluation"):
        remove_leaked_queries(training_set, ["a hot drink"])


def test_evaluation_queries_are_removed_from_training(train: TrainModel, tmp_path: Path) -> None:
    pantry = small_collection.write_folder(tmp_path / "pantry")
    queries = (pantry / "queries.jsonl").read_text()
    (pantry / "queries.jsonl").write_text(queries.replace("animals that hunt at night", "how to brew  a hot drink"))
    with pytest.raises(DataError, match="needs at least two"):
        train(of=pantry, contrastive=replace(RECIPE.contrastive, hard_negatives=0))
    card = train("second", of=pantry, contrastive=replace(RECIPE.contrastive, hard_negatives=1),
                 mining=replace(RECIPE.mining, source="bm25"))  # fmt: skip
    assert card.training
    assert card.training.data["leaked_queries_removed"] == 1
    assert card.training.data["pairs"] == 1


def test_training_on_an_evaluation_split_is_refused_unless_forced(train: TrainModel, tmp_path: Path) -> None:
    pantry = small_collection.write_folder(tmp_path / "pantry")
    with pytest.raises(UsageError, match="evaluated on its split 'test'"):
        train(of=pantry, split="test")
    card = train(of=pantry, split="test", force=True)
    assert card.training
    assert card.training.data["evaluated_split"] is True


@pytest.mark.parametrize("source", ["bm25", "model"])
def test_mined_hard_negatives_are_saved_and_reused(train: TrainModel, tmp_path: Path, source: Any) -> None:
    mined = replace(RECIPE.mining, source=source, rank_to=5, negatives_per_query=3)
    first = train("first", mining=mined)
    file = tmp_path / "first" / "negatives.jsonl"
    head, *lines = map(json.loads, file.read_text().splitlines())
    assert head["negatives"]["source"] == source
    assert all(len(line["negatives"]) <= 3 for line in lines)
    assert has_same_weights(first, train("second", mining=replace(mined, file=str(file))))
    for name in ("card.toml", "plan.json"):  # as if it was killed after the mining; the file was used for any settings
        (tmp_path / "first" / name).unlink()
    with pytest.raises(DataError, match="was mined otherwise: rank_to was 5, now 6"):
        train("first", mining=replace(mined, rank_to=6), resume=True)
    with pytest.raises(DataError, match="mined for other queries"):
        train("third", of=small_collection.write_folder(tmp_path / "pantry"), mining=replace(mined, file=str(file)))


def test_a_card_that_contradicts_its_checkpoint_is_an_error(train: TrainModel, tmp_path: Path) -> None:
    train()
    file = tmp_path / "pupil" / "card.toml"
    merged = file.read_text()
    for old, new, reason in (("Query: {text}", "Query:{text}", "method"), ("id = 0", "id = 1", "eos")):
        file.write_text(merged.replace(old, new))
        with pytest.raises(DataError, match=f"disagree about {reason}"):
            weights.find_local_weights(catalog.find_model_card(str(tmp_path / "pupil")))
    file.write_text(merged)
    tensors = tmp_path / "pupil" / "model.safetensors"
    content = tensors.read_bytes()
    tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="disagree about weights"):
        weights.find_local_weights(catalog.find_model_card(str(tmp_path / "pupil")))


def test_a_damaged_adapter_is_not_merged(train: TrainModel, tmp_path: Path) -> None:
    card = train(output="adapter")
    file = tmp_path / "pupil" / "adapter_model.safetensors"
    flip_bit(file, 8 * (file.stat().st_size - 10))
    with pytest.raises(DataError, match="disagree about weights"):
        weights.obtain_weights(card)


def test_a_nan_loss_stops_names_the_batch_and_keeps_the_checkpoint(train: TrainModel, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"NaN or infinite at step \d+; its first query is '.+'"):
        train(
            optimizer=OptimizerSettings(learning_rate=1e30, max_grad_norm=0, num_train_epochs=4),
            lora=None,
            save_steps=1,
        )
    assert list((tmp_path / "pupil").glob("checkpoint-*"))


def test_a_model_too_big_is_refused_before_loading(train: TrainModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_estimate, "_get_free_bytes_per_process", lambda: 1000.0)
    with pytest.raises(ResourceError, match=r"0\.0 GB are free"):
        train()


def test_a_full_disk_at_a_checkpoint_keeps_the_previous_one(
    train: TrainModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retbench.training import checkpoint

    real = checkpoint.save_file

    def full(tensors: Any, file: Path) -> None:
        if "00000004" in str(file):
            raise OSError(28, "No space left on device")
        real(tensors, file)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(ResourceError, match="No space left"):
        train()
    assert [path.name for path in (tmp_path / "pupil").glob("checkpoint-*")] == ["checkpoint-00000002"]


def test_another_recipe_cannot_resume_in_a_folder(train: TrainModel, tmp_path: Path) -> None:
    train()
    with pytest.raises(UsageError, match="is not empty"):
        train()
    (tmp_path / "pupil" / "card.toml").unlink()
    with pytest.raises(DataError, match=r"begun with another recipe: seed was 1, now 3$"):
        train(resume=True, seed=3)


def test_another_training_cannot_resume_in_a_finished_folder(train: TrainModel, tmp_path: Path) -> None:
    """It said that nothing was to do, and an export then had the prompts of the recipe that was not trained."""
    train()
    prompts = replace(RECIPE.method, query="Other: {text}")
    with pytest.raises(DataError, match=r"is finished, and it was trained otherwise: method\.query was"):
        train(resume=True, method=prompts, export="sentence-transformers")
    assert not (tmp_path / "pupil" / "sentence-transformers").exists()
    other_data = write_jsonl(tmp_path / "others.jsonl", {"query": "a", "positives": ["b"], "negatives": ["c"]})
    with pytest.raises(DataError, match="otherwise: dataset was 'sentences', now 'others'"):
        train(resume=True, of=other_data)


def test_a_finished_training_with_damaged_weights_is_not_taken_as_finished(train: TrainModel, tmp_path: Path) -> None:
    train()
    assert train(resume=True).name == "pupil"
    flip_bit(tmp_path / "pupil" / "model.safetensors", 8 * 9000)
    with pytest.raises(DataError, match="its checkpoint disagree about weights"):
        train(resume=True)


def test_a_training_begun_before_a_recipe_field_existed_can_be_resumed(train: TrainModel, tmp_path: Path) -> None:
    train()
    (tmp_path / "pupil" / "card.toml").unlink()
    plan_file = tmp_path / "pupil" / "plan.json"
    plan = parse_checked_json(plan_file.read_bytes())  # a plan of that time has no checksum
    for table, field in (("optimizer", "warmup_type"), ("contrastive", "mask_known_positives"), ("method", "layer")):
        del plan["recipe"][table][field]
    del plan["recipe"]["teacher"]
    del plan["recipe"]["listwise"]
    plan_file.write_text(json.dumps(plan))
    assert train(resume=True).name == "pupil"
    (tmp_path / "pupil" / "card.toml").unlink()
    changed = "begun with another recipe: optimizer.warmup_type was 'linear', now 'logarithmic'"
    with pytest.raises(DataError, match=changed):  # the old training had the default
        train(resume=True, optimizer=OptimizerSettings(1e-2, num_train_epochs=4, warmup_type="logarithmic"))


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"recipe": 1, "steps": 2}', '{"recipe": {}, "steps": "x"}'])
def test_a_damaged_plan_is_refused_with_its_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(DataError, match=r"plan\.json"):
        step_plan.load_or_create_plan(tmp_path, {}, lambda: 1)


def run_command(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_the_dry_run_shows_the_plan_and_writes_nothing(model: Path, data: Path, tmp_path: Path) -> None:
    sizes = ("--set", "batch.train_batch_size=8", "--set", "batch.contrastive_batch_size=8")
    answer = run_command("finetune", data, "--model", model, "--recipe", "quick", *sizes,
                         "--out", tmp_path / "o", "--dry-run", "--json")  # fmt: skip
    assert answer.exit_code == 0, answer.output
    plan = json.loads(answer.stdout)
    assert (plan["queries"], plan["steps"], plan["recipe"]) == (16, 2, "quick")
    assert plan["tokens_per_second"] > 0
    assert not (tmp_path / "o").exists()


def test_the_measured_batch_of_a_dry_run_is_small_where_steps_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    from retbench.pipelines.finetuning import dry_run

    sizes: list[int] = []

    class SlowObjective:
        def backward(self, _: int) -> tuple[float, int]:
            time.sleep(0.02)
            return 0.0, 10

    def resize(objective: SlowObjective, size: int) -> SlowObjective:
        sizes.append(size)
        return objective

    monkeypatch.setattr(dry_run, "_resize_batches", resize)
    monkeypatch.setattr(dry_run, "MEASURED_SECONDS", 0.05)
    monkeypatch.setattr(dry_run, "measure_tokens_per_second", lambda _: 7.0)
    speed, size = dry_run._measure_speed(SlowObjective(), 100)  # type: ignore[arg-type]  # a stand-in
    assert (speed, sizes) == (7.0, [2, size])
    assert 2 < size < 10


def test_a_dry_run_mines_nothing_and_measures_small_steps(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retbench.pipelines.finetuning import dry_run
    from retbench.training import contrastive_objective, hard_negatives

    measured: list[int] = []
    backward = contrastive_objective.backward_batch

    def note_size(encoder: Any, batch: Any, *rest: Any) -> Any:
        measured.append(len(batch.queries))
        return backward(encoder, batch, *rest)

    monkeypatch.setattr(contrastive_objective, "backward_batch", note_size)
    monkeypatch.setattr(hard_negatives, "build_bm25_ranker", lambda _: pytest.fail("a dry run mines nothing"))
    monkeypatch.setattr(dry_run, "MEASURED_TOKENS", 100)
    monkeypatch.setattr(dry_run, "MAX_SAMPLED", 7)
    changes = ("mining.source=bm25", "contrastive.hard_negatives=2", "batch.train_batch_size=8",
               "batch.contrastive_batch_size=8")  # fmt: skip
    sets = [word for change in changes for word in ("--set", change)]
    answer = run_command("finetune", data, "--model", model, "--recipe", "quick", *sets, "--dry-run", "--json")
    assert answer.exit_code == 0, answer.output
    plan = json.loads(answer.stdout)
    assert (plan["queries"], plan["steps_of_an_epoch"]) == (16, 2)  # of all data, though seven queries were sampled
    assert plan["not_included"] == ["mining of hard negatives by bm25"]
    assert max(measured) < 8
    measured.clear()
    monkeypatch.setattr(dry_run, "MEASURED_SECONDS", 0.0)  # as if the first two queries alone took long
    answer = run_command("finetune", data, "--model", model, "--recipe", "quick", *sets, "--dry-run", "--json")
    assert (answer.exit_code, measured) == (0, [2])


def test_a_dry_run_of_crops_reads_a_sample_of_the_texts(
    model: Path, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from retbench.pipelines.finetuning import dry_run
    from retbench.training.random_crops import CropBatchSource

    sizes: list[int] = []
    build = CropBatchSource.build

    def note_size(texts: Any, *rest: Any) -> CropBatchSource:
        sizes.append(len(texts))
        return build(texts, *rest)

    monkeypatch.setattr(CropBatchSource, "build", staticmethod(note_size))
    monkeypatch.setattr(dry_run, "MAX_SAMPLED", 10)
    sets = ("--set", "crops.min_tokens=2", "--set", "lora=none", "--set", "output=merged")
    answer = run_command("finetune", task, "--model", model, "--recipe", "llm2ir", *sets, "--dry-run", "--json")
    assert answer.exit_code == 0, answer.output
    assert sizes == [10]
    assert json.loads(answer.stdout)["queries"] == 18  # nine of the ten are long enough; that share of 20


def test_a_dry_run_with_many_processes_equals_that_of_one(
    model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    answer = run_command("finetune", data, "--model", model, "--recipe", "quick", "--out", tmp_path / "o", "--dry-run")
    assert (answer.exit_code, answer.output) == (0, "")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--objective", "triplet"), 2, "no objective 'triplet'"),
        (("--recipe", "quik"), 2, "did you mean quick"),
        (("--recipe", "quick", "--set", "optimizer.learning_rates=1"), 2, "did you mean learning_rate"),
        (("--recipe", "quick", "--set", "seed"), 2, "for example --set optimizer.learning_rate=1e-4"),
        (("--recipe", "quick", "--set", "batch.train_batch_size=3"), 2, "a multiple of contrastive_batch_size"),
        (("--recipe", "quick", "--objective", "llm2ir"), 2, "has objective contrastive"),
        (("--recipe", "quick", "--export", "onnx"), 2, "known: sentence-transformers"),
        (("--recipe", "quick", "--set", 'lora.target_modules=["nothing"]'), 4, "named nothing(?s:.)*q_proj"),
        (("--recipe", "quick", "--set", 'lora.target_modules=["q_proj","nothing"]'), 4, "nothing(?s:.)*all-linear"),
        (("--recipe", "quick", "--set", "lora.target_modules=q_proj"), 2, "expected a list"),
        (("--recipe", "nowhere.toml"), 3, "no recipe at nowhere.toml"),
    ],
)
def test_wrong_arguments_are_usage_errors(
    model: Path, data: Path, words: tuple[str, ...], code: int, message: str
) -> None:
    import re

    answer = run_command("finetune", data, "--model", model, *words)
    assert answer.exit_code == code, answer.output
    assert re.search(message, answer.output)


def test_a_folder_in_ms_marcos_layout_without_a_test_split(train: TrainModel, tmp_path: Path) -> None:
    folder = tmp_path / "marco"
    folder.mkdir()
    (folder / "collection.tsv").write_text("".join(f"{n}\t{text}\n" for n, text in enumerate(tiny_models.SENTENCES)))
    (folder / "queries.train.tsv").write_text("".join(f"{n}\t{tiny_models.SENTENCES[n]}?\n" for n in range(9)))
    (folder / "qrels.train.tsv").write_text("".join(f"{n} 0 {n + 1} 1\n" for n in range(9)))
    status_lines: list[str] = []
    card = train(of=folder, log_status=status_lines.append, mining=replace(RECIPE.mining, source="bm25"))
    assert card.training
    assert (card.training.data["pairs"], card.training.data["negatives"]["source"]) == (9, "bm25")
    assert any("were not checked" in line for line in status_lines)


def test_msmarco_without_network_names_the_next_step(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("it would try for a minute"))
    answer = run_command("finetune", "msmarco", "--model", model)
    assert answer.exit_code == 3
    assert "collection.tsv" in answer.output


def test_bm25_cannot_be_trained(data: Path) -> None:
    answer = run_command("finetune", data, "--model", "bm25", "--recipe", "quick")
    assert (answer.exit_code, "no weights to train" in answer.output) == (2, True)


def test_the_backbone_of_an_adaptor_is_not_trained_under_its_name(train: TrainModel, monkeypatch: Any) -> None:
    """The adaptor was left out in silence, and the card named it as parent."""
    adapted = replace(
        catalog.find_model_card("minilm-l6"), name="adapted", adapted=AdaptedVectors("minilm-l6", "a", "0" * 64)
    )
    monkeypatch.setattr(catalog, "find_model_card", lambda _: adapted)
    with pytest.raises(UsageError, match="adapted is an adaptor on the vectors of minilm-l6"):
        train()


def test_a_matryoshka_width_must_be_shorter_than_the_vectors(train: TrainModel) -> None:
    with pytest.raises(UsageError, match="100 is not shorter than the vectors, which have 64"):
        train(contrastive=replace(RECIPE.contrastive, matryoshka_dimensions=(32, 100)))


def test_a_card_reads_back_as_it_was_written(train: TrainModel, tmp_path: Path) -> None:
    card = train()
    file = tmp_path / "again.toml"
    file.write_text(toml_writer.format_card(card))
    assert toml_parser.load_card(ModelCard, file) == card


def test_recipe_fields_are_overridden_by_dotted_path() -> None:
    recipe = apply_recipe_options(
        catalog.find_recipe("quick"), {"seed": "3", "optimizer.learning_rate": "1e-3", "lora": "none"}
    )
    assert (recipe.seed, recipe.optimizer.learning_rate, recipe.lora) == (3, 1e-3, None)
    with pytest.raises(RetbenchError, match="no option 'optimzer'"):
        apply_recipe_options(recipe, {"optimzer.learning_rate": "1"})


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_sentence_transformers_gives_the_same_vectors(train: TrainModel, tmp_path: Path, pooling: Any) -> None:
    import numpy as np

    sentence_transformers = pytest.importorskip("sentence_transformers")
    from retbench.cards.task import TaskCard
    from retbench.pipelines.models.model import ResolvedModel
    from retbench.pipelines.models.overrides import Overrides

    method = replace(RECIPE.method, pooling=pooling, eos=pooling == "last")
    card = train(export="sentence-transformers", method=method)
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "pupil" / "sentence-transformers"), device="cpu")
    candidate = ResolvedModel.resolve(card, None, lambda _: None)
    task = small_collection.build_card(tmp_path / "x")
    assert isinstance(task, TaskCard)
    encoder = candidate.load_encoder(candidate.build_encoder_spec(method, task, Overrides(dtype="float32")))
    texts = ["a short one", tiny_models.SENTENCES[3], "a longer text " * 200]
    for role, prompt in (("query", "query"), ("document", "document")):
        ours = encoder.encode(encoder.tokenize(texts, role))  # type: ignore[arg-type]
        their_vectors = theirs.encode(texts, prompt_name=prompt)
        assert float(np.abs(ours - their_vectors).max()) < 2e-6


@pytest.mark.parametrize("more", [{"document": "{text}:"}, {"post": "whiten"}], ids=["document", "post"])
def test_a_method_that_is_more_than_a_prefix_is_not_exported(
    train: TrainModel, tmp_path: Path, more: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="supports only prefixes and pooling"):
        train(export="sentence-transformers", method=replace(RECIPE.method, **more))
    assert not (tmp_path / "pupil").exists()  # refused before the training


def test_two_stages_are_one_command_and_resume_between_stages(train: TrainModel, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"objective": "llm-ql", "query_likelihood": QUERY_LIKELIHOOD}
    merged = train("whole", **settings)
    assert (tmp_path / "whole" / "stage-1" / "card.toml").exists()

    class PowerCutError(Exception):
        pass

    def cut(at: int) -> Callable[[dict[str, Any]], None]:
        def report(facts: dict[str, Any]) -> None:
            if (facts["steps"], facts["step"]) == (at, 3):
                raise PowerCutError

        return report

    for steps in (4, 8):  # stage 1, then stage 2
        with pytest.raises(PowerCutError):
            train("cut", **settings, log_metrics=cut(steps), resume=True)
    (tmp_path / "cut" / "plan.json").rename(tmp_path / "plan.json")  # as if it was cut right after stage 1
    other_stage = {**settings, "query_likelihood": replace(QUERY_LIKELIHOOD, corruption_ratio=0.1)}
    with pytest.raises(DataError, match=r"stage-1 was begun .* query_likelihood\.corruption_ratio was"):
        train("cut", **other_stage, resume=True)
    (tmp_path / "plan.json").rename(tmp_path / "cut" / "plan.json")
    resumed = train("cut", **settings, resume=True)
    assert has_same_weights(merged, resumed)
    assert not has_same_weights(merged, train("without", objective="llm-ql", query_likelihood=None))
    assert not has_same_weights(
        merged, train("no-stop", objective="llm-ql", query_likelihood=replace(QUERY_LIKELIHOOD, attention_stop=False))
    )
    assert not has_same_weights(
        merged, train("no-gaps", objective="llm-ql", query_likelihood=replace(QUERY_LIKELIHOOD, corruption_ratio=0.0))
    )


def test_the_first_stage_is_a_model_with_its_head(train: TrainModel, tmp_path: Path) -> None:
    train(objective="llm-ql", query_likelihood=QUERY_LIKELIHOOD)
    stage_card = catalog.find_model_card(str(tmp_path / "pupil" / "stage-1"))
    assert (stage_card.name, stage_card.parent) == ("pupil-stage-1", "tiny")
    config = json.loads((tmp_path / "pupil" / "stage-1" / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"]


def test_candidates_are_ranked_by_query_likelihood(train: TrainModel, model: Path, tmp_path: Path) -> None:
    train(objective="llm-ql", query_likelihood=QUERY_LIKELIHOOD)
    pantry = str(small_collection.write_folder(tmp_path / "pantry"))
    run = str(retbench.evaluate(["bm25"], tasks=[pantry], out=tmp_path / "results")[0].record)
    reranker = f"likelihood:model={tmp_path / 'pupil' / 'stage-1'},depth=4"
    answer = run_command("rerank", run, "--with", reranker, "--out", tmp_path / "results", "--json")
    assert answer.exit_code == 0, answer.output
    first, ranked = json.loads(answer.stdout)
    assert ranked["rerank"] == ["likelihood:depth=4,model=pupil-stage-1"]
    assert ranked["scores"]["recall_at_100"] == first["scores"]["recall_at_100"]
    headless = run_command(
        "rerank", run, "--with", f"likelihood:model={tmp_path / 'pupil'}", "--out", tmp_path / "results"
    )
    assert "no language-model head" in headless.output
    cells = retbench.evaluate([str(model)], tasks=[pantry], rerank=["likelihood:depth=2"], out=tmp_path / "results")
    assert [cell.status for cell in cells] == ["done", "done"]  # a folder has no name by which it is found again


def test_a_tracker_receives_every_step(train: TrainModel, monkeypatch: pytest.MonkeyPatch) -> None:
    events = install_stand_in(monkeypatch)
    train(report_to=("tensorboard",))
    started, *logged, finished = events
    assert (started.facts["optimizer.learning_rate"], started.facts["objective"]) == (1e-2, "contrastive")
    assert [(event.kind, event.step) for event in logged] == [("log", step) for step in range(1, 9)]
    assert {"loss", "rate", "tokens_per_second", "memory_mb"} <= logged[0].facts.keys()
    assert finished.kind == "finish"
    with pytest.raises(UsageError, match="no tracker called 'tensorbord'"):
        train("other", report_to=("tensorbord",))


def test_mining_respects_ranks_and_margin() -> None:
    import numpy as np

    from retbench.cards.mining import MiningSettings
    from retbench.retrievers.ranking import Ranking
    from retbench.training.hard_negatives import mine_hard_negatives
    from retbench.training.training_set import TrainingQuery, TrainingSet

    training = TrainingSet("s", [TrainingQuery("q", (2,))], [str(n) for n in range(8)], "f")
    ranking = Ranking([np.array([5, 2, 0, 1, 3, 4])], [np.array([9.9, 8.0, 7.9, 7.0, 6.0, 5.0])])

    def negatives(**settings: Any) -> tuple[int, ...]:
        return (
            mine_hard_negatives(training, MiningSettings("bm25", **settings), lambda *_: ranking, "x")
            .queries[0]
            .negatives
        )

    assert negatives() == (5, 0, 1, 3, 4)
    assert negatives(rank_from=2, rank_to=4) == (0, 1, 3)
    assert negatives(max_score_ratio=0.95) == (1, 3, 4)  # 9.9 and 7.9 are above 0.95 x the positive's 8.0
    assert negatives(max_score_ratio=0.95, negatives_per_query=1) == (1,)


@pytest.mark.parametrize("same_id", ["keep", "drop"])
def test_a_document_that_the_task_never_ranks_is_no_hard_negative(same_id: Any, tmp_path: Path) -> None:
    """In ArguAna every query is a document too; it was the first hard negative of itself."""
    from retbench.cards.task import SourceSpec, TaskCard
    from retbench.corpora.open_collection import open_collection
    from retbench.training.hard_negatives import build_bm25_ranker, mine_hard_negatives
    from retbench.training.teachers import add_scores_from_run
    from retbench.training.training_set import build_training_set

    folder = tmp_path / "twins"
    (folder / "qrels").mkdir(parents=True)
    texts = {"a": "red apples are sweet", "b": "green apples are sour", "c": "sweet red wine", "d": "a dry white wine"}
    rows = "".join(json.dumps({"_id": name, "text": text}) + "\n" for name, text in texts.items())
    for file in ("corpus", "queries"):
        (folder / f"{file}.jsonl").write_text(rows)
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\na\tb\t1\nc\td\t1\n")
    card = TaskCard("twins", SourceSpec("folder", path=str(folder)), split="train", same_id=same_id)
    training_set = build_training_set(card, open_collection(card))
    own = [0, 2]  # the rows of a and c
    settings = MiningSettings("bm25", rank_to=1)
    mined = mine_hard_negatives(training_set, settings, build_bm25_ranker(training_set), "bm25").queries
    assert [query.negatives[0] for query in mined] == (own if same_id == "keep" else [2, 0])
    run = {query: [("a", 3.0), ("b", 2.0), ("c", 1.5), ("d", 1.0)] for query in "ac"}
    taught = add_scores_from_run(training_set, run, "theirs", 3).queries
    assert [row in query.negatives for query, row in zip(taught, own, strict=True)] == [same_id == "keep"] * 2


def test_a_name_is_taken_while_its_folder_exists(train: TrainModel, tmp_path: Path) -> None:
    train("first/pupil")
    with pytest.raises(UsageError, match="already a model called pupil"):
        train("second/pupil")
    shutil.rmtree(tmp_path / "first")
    catalog.load_model_cards.cache_clear()
    assert train("second/pupil").name == "pupil"
    with pytest.raises(UsageError, match="already a model called bm25"):
        train("bm25")
