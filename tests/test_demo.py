"""`make demo`: its sentences, and its plan on a fast and on a slow machine."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks import demo
from benchmarks.demo import DECODER, RECIPE, TRAINED, Demo, describe_difference
from retbench.cards import catalog
from retbench.cli.main import app


def row(model: str, score: float, letters: str) -> dict[str, Any]:
    return {"model": model, "main_score": score, "letters": letters, "queries": "sample of 40"}


@pytest.mark.parametrize("is_first", [True, False])
def test_a_significant_difference_names_the_better_model_first(is_first: bool) -> None:
    rows = [row("encoder", 0.5, "a"), row("bm25", 0.375, "bc")]
    sentence = describe_difference(*(rows if is_first else rows[::-1]))
    assert sentence == "- encoder is better than bm25, by 12.5 points of nDCG@10 on a sample of 40 queries."


def test_the_words_follow_the_letters_of_the_board() -> None:
    """Each pair was tested for itself, where the board corrects for all pairs: the words found more."""
    sentence = describe_difference(row("bm25", 0.4, "ab"), row("encoder", 0.5, "a"))
    assert sentence.startswith("- Whether encoder or bm25 is better is open: 10.0 points of nDCG@10")
    assert sentence.endswith("on a sample of 40 queries may be chance.")


def test_the_training_of_the_demo_has_ten_steps_and_none_of_them_warms_up() -> None:
    recipe = catalog.find_recipe(RECIPE)
    assert (recipe.optimizer.max_steps, recipe.optimizer.warmup_ratio, recipe.max_minutes) == (10, 0.0, None)


QUERY_TOKENS = 500  # of a query with its twenty documents
TRAINED_TOKENS = 20_000  # ten steps of 600 tokens; forward and backward take as long as 3.3 passes


@dataclass
class SimulatedMachine:
    """Answers the demo's commands without running them, and moves the clock by what they would take.

    The speeds are tokens per second, and the seconds are those of a start, a fetch, a load or a save.
    """

    encoder_speed: float
    decoder_speed: float
    start: float
    clock: float = 100.0
    queries: int = 0
    commands: list[tuple[str, ...]] = field(default_factory=list)

    def run(self, *words: str) -> int:
        self.commands.append(words)
        self.clock += self.start
        if words[0] == "finetune":
            self.clock += self.start + TRAINED_TOKENS / self.decoder_speed
            (Path(words[words.index("--out") + 1])).mkdir(parents=True)
        if words[0] == "run":
            if "--minutes" in words:
                seconds = 60 * float(words[words.index("--minutes") + 1])
                self.queries = max(5, int(0.9 * seconds * self.encoder_speed / QUERY_TOKENS))
                self.clock += 2.0  # the measurement
            speed = self.encoder_speed if "--minutes" in words else self.decoder_speed
            self.clock += self.queries * QUERY_TOKENS / speed
        if words[:1] == ("report",) and "--out" in words:
            Path(words[-1]).write_text("the board\n")
        return 0

    def read_board(self) -> dict[str, dict[str, Any]]:
        scores = {"bm25": 0.30, "minilm-l6": 0.35, DECODER: 0.01}
        if any(words[0] == "finetune" for words in self.commands):
            scores[TRAINED] = 0.4
        speed = {"tokens_per_second": self.decoder_speed}
        return {name: row(name, scores[name], letter) | speed for name, letter in zip(scores, "abcd", strict=False)}


def run_demo(machine: SimulatedMachine, has_fast_bf16: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Demo:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(demo, "has_fast_bf16", lambda: has_fast_bf16)
    monkeypatch.setattr(demo, "read_board", machine.read_board)
    monkeypatch.setattr(demo, "read_sample", lambda: ["--sample", str(machine.queries)])
    demo.RESULTS.mkdir()
    planned = Demo(3.0, machine.run, lambda: machine.clock)
    planned.run_all()
    return planned


@pytest.mark.parametrize(
    ("machine", "has_fast_bf16"),
    [
        (SimulatedMachine(encoder_speed=7061, decoder_speed=2400, start=9), True),  # AMX, a slow day
        (SimulatedMachine(encoder_speed=5024, decoder_speed=512, start=8), False),  # two threads with AVX2
    ],
)
def test_the_trained_row_is_on_the_board_within_three_minutes(
    machine: SimulatedMachine,
    has_fast_bf16: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    planned = run_demo(machine, has_fast_bf16, tmp_path, monkeypatch)
    assert [words[0] for words in machine.commands] == [
        "fetch", "run", "report", "fetch", "run", "finetune", "run", "report",
    ]  # fmt: skip
    assert machine.commands[-2][-4:] == ("--model", TRAINED, "--sample", str(machine.queries))
    assert ("dtype=bfloat16" in machine.commands[-3]) == has_fast_bf16
    assert planned.first_board <= 60
    assert planned.seconds <= 180
    assert machine.queries >= 25
    text = capsys.readouterr().out
    assert f"- {TRAINED} is better than {DECODER}, by 39.0 points of nDCG@10" in text
    assert "train the decoder" not in text


def test_a_training_that_does_not_fit_is_left_out_with_a_sentence_and_its_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = SimulatedMachine(encoder_speed=1000, decoder_speed=60, start=8)
    planned = run_demo(machine, False, tmp_path, monkeypatch)
    assert "finetune" not in [words[0] for words in machine.commands]
    assert planned.seconds <= 180
    text = capsys.readouterr().out
    assert "no training: it and the run of the new model would take about 525 s more, and of the 3 minutes" in text
    assert (
        f"retbench finetune stdlib-doc --model {DECODER} --recipe {RECIPE} --name {TRAINED} --out demo-results/" in text
    )
    assert f"{TRAINED} is better" not in text


def test_the_commands_of_the_demo_have_only_options_that_retbench_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = SimulatedMachine(encoder_speed=7061, decoder_speed=2400, start=9)
    run_demo(machine, True, tmp_path, monkeypatch)
    group: Any = typer.main.get_command(app)
    for words in machine.commands:
        group.commands[words[0]].make_context(words[0], list(words[1:]))  # raises a usage error


def test_a_failed_command_ends_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        Demo(3.0, lambda *_: 3, lambda: 0.0).run_all()
    assert stop.value.code == 3


def test_a_command_runs_in_the_process_of_the_demo_and_gives_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.run_command("list", "recipes") == 0
    assert RECIPE in capsys.readouterr().out
    assert demo.run_command("fetch") == 2
