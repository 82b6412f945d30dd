"""retbench: compare language models as dense retrievers, zero-shot and fine-tuned.

Each function does what the command of the same name does. Nothing heavy is imported before a function is called.

    import retbench

    cells = retbench.evaluate(["bm25", "minilm-l6"], tasks=["stdlib-text"], sample=50)
    table = retbench.load_results()
    comparison = retbench.compare(cells[0].record, cells[1].record)
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from retbench.cards.model import ModelCard
    from retbench.pipelines.mteb_bridge.search_model import MtebSearchModel
    from retbench.records.cell import Cell
    from retbench.reports.comparison import Comparison

__all__ = ["as_mteb", "compare", "evaluate", "finetune", "load_results"]


def evaluate(
    models: str | Path | Sequence[str | Path],
    *,
    tasks: str | Path | Sequence[str | Path] = (),
    suites: str | Sequence[str] = (),
    methods: str | Sequence[str] = (),
    prompts: str | Path | None = None,
    rerank: str | Sequence[str] = (),
    engine: str = "transformers",
    weights: str | None = None,
    sample: int | None = None,
    minutes: float | None = None,
    overrides: Mapping[str, str | int] | None = None,
    devices: int | str = 1,
    out: str | Path | None = None,
    report_to: str | Sequence[str] = (),
    log_status: Callable[[str], None] | None = None,
) -> list["Cell"]:
    """Evaluate models on tasks, as `retbench run` does.

    A failed cell is returned with its `error`; a finished cell is read from `out` and not run again.

        cells = retbench.evaluate(
            ["bm25", "minilm-l6"], tasks=["scifact"], sample=100, overrides={"max_length": 256}
        )
        for cell in cells:
            print(cell.model, cell.task, cell.main_score, cell.record)

    Args:
        models: Card names, hub ids, or folders and GGUF files as a `Path`.
        tasks: Task cards, or BEIR folders as a `Path`.
        suites: Suites, whose tasks are added to `tasks`.
        methods: Encoding methods, `name` or `name:key=value,...`; by default each model's own.
        prompts: A prompt set, by name or TOML file: each cell is also run with its prompts.
        rerank: Rerankers, `name:key=value,...`; each ranking is also reranked by each of them.
        engine: `transformers`, `sentence-transformers`, `vllm` or `endpoint:model=NAME`.
        weights: A folder or GGUF file with the weights of the only model.
        sample: Use only so many test queries, with their documents and distractors.
        minutes: Use the largest such sample that is expected to fit so many minutes on this machine.
        overrides: The options of `--set`: dtype, max_length, rope, split, depth, dimensions, vector_dtype, search.
        devices: The number of devices, "all", or "ray:store=ADDRESS".
        out: The results folder; by default `retbench-results`, or RETBENCH_RESULTS.
        report_to: Experiment trackers that get every finished cell, such as tensorboard.
        log_status: Called with each status line; by default there is no output.
    """
    from retbench.errors import UsageError
    from retbench.pipelines.evaluation import evaluate as pipeline
    from retbench.pipelines.evaluation.request import EvaluationRequest
    from retbench.pipelines.evaluation.track_cells import track_cells
    from retbench.system.user_config import get_results_folder

    model_names, task_names = _to_tuple(models), pipeline.expand_task_names(_to_tuple(suites), _to_tuple(tasks))
    if not task_names:
        raise UsageError("no task is given", "give `tasks` or `suites`, for example suites='stdlib'")
    if weights and len(model_names) > 1:
        raise UsageError("`weights` needs exactly one model", "evaluate the models one by one")
    request = EvaluationRequest(
        model_names, task_names, _to_tuple(methods), weights, sample, dict(overrides or {}), _to_tuple(rerank),
        out=Path(out) if out else get_results_folder(),
        engine=engine,
        devices=str(devices),
        prompts=str(prompts) if prompts else None,
        log_status=log_status or _ignore_status,
    )  # fmt: skip
    if minutes is not None:
        from retbench.pipelines.evaluation.fit_sample import fit_sample

        request = fit_sample(request, minutes)
    return list(track_cells(pipeline.evaluate(request), _to_tuple(report_to), request.out))


def finetune(
    dataset: str | Path,
    model: str,
    *,
    recipe: str | Path | None = None,
    objective: str | None = None,
    overrides: Mapping[str, str | int | float | bool] | None = None,
    split: str = "train",
    name: str | None = None,
    out: str | Path | None = None,
    eval_task: str | None = None,
    export: str | None = None,
    report_to: str | Sequence[str] = (),
    resume: bool = False,
    force: bool = False,
    log_status: Callable[[str], None] | None = None,
    log_metrics: Callable[[dict[str, Any]], None] | None = None,
) -> "ModelCard":
    """Train a model, as `retbench finetune` does, and return its card.

        card = retbench.finetune(
            "stdlib-code", "smollm2-135m-instruct", recipe="quick", overrides={"optimizer.learning_rate": 1e-4}
        )
        retbench.evaluate(card.name, tasks="stdlib-code")

    Args:
        dataset: A task with a train split, a BEIR folder, a jsonl file, or msmarco.
        model: The model to train: a card name, a hub id or a folder.
        recipe: A recipe name or a TOML file.
        objective: Without a recipe: contrastive, llm2ir, llm-ql, e2rank or adaptor.
        overrides: Recipe fields to change, by dotted name.
        split: The split of the dataset.
        name: The name of the new model.
        out: Its folder; by default one in the cache.
        eval_task: Evaluate on this task during training and keep the best checkpoint.
        export: Also write another format: "sentence-transformers".
        report_to: Experiment trackers, such as tensorboard.
        resume: Continue an interrupted training.
        force: Train even on a split that is evaluated; the model card notes it.
        log_status: Called with each status line; by default there is no output.
        log_metrics: Called with the loss, speed and other metrics of the newest step.
    """
    from retbench.pipelines.finetuning import choose_recipe, train_adaptor, train_encoder
    from retbench.system.toml_writer import format_toml_value
    from retbench.training.training_data import TrainingRequest

    trackers = _to_tuple(report_to)
    choose_recipe.check_objective(objective, {"export": export, "eval_task": eval_task, "report_to": trackers})
    changes = {k: v if isinstance(v, str) else format_toml_value(v) for k, v in (overrides or {}).items()}
    request = TrainingRequest(
        str(dataset), model, name, Path(out) if out else None, split, eval_task, export, trackers, resume, force,
        log_status=log_status or _ignore_status, log_metrics=log_metrics or _ignore_metrics,
    )  # fmt: skip
    recipe_name = str(recipe) if recipe else None
    if objective == choose_recipe.ADAPTOR:
        return train_adaptor.finetune_adaptor(request, choose_recipe.choose_adaptor_recipe(recipe_name, changes))
    return train_encoder.finetune_encoder(request, choose_recipe.choose_encoder_recipe(recipe_name, objective, changes))


def load_results(results: str | Path | None = None) -> "pd.DataFrame":
    """Load every finished cell of a results folder into one table, with a column per metric.

    A record that cannot be read is left out with a warning in the log.

        table = retbench.load_results()
        print(table.pivot_table(values="ndcg_at_10", index="model", columns="task"))

    Args:
        results: The results folder, by default that of `evaluate`.
    """
    import logging

    from retbench.pipelines.report import list_finished_cells
    from retbench.system.user_config import get_results_folder

    try:
        import pandas as pd
    except ImportError as problem:
        from retbench.errors import MissingError
        from retbench.system.installation import suggest_extra

        raise MissingError("load_results needs the package pandas", suggest_extra("pandas")) from problem

    cells, problems = list_finished_cells(Path(results) if results else get_results_folder())
    for unreadable in problems:
        logging.getLogger(__name__).warning("%s: it is left out", unreadable.cause)
    rows = [cell.to_json() for cell in cells]
    return pd.DataFrame([{**row, **row.pop("scores")} for row in rows])


def compare(
    a: str | Path,
    b: str | Path,
    *,
    results: str | Path | None = None,
    task: str | None = None,
    queries: int = 5,
    metric: str | None = None,
) -> "Comparison":
    """Compare two runs, as `retbench compare` does: settings, scores, significance test, queries that moved most.

        comparison = retbench.compare("0123456789ab", "ba9876543210")
        print(comparison.scores["ndcg_at_10"], comparison.test)

    Args:
        a: The folder or settings-id of a run, an mteb result file (.json), or a TREC run.
        b: The run to compare with, given in the same way.
        results: The results folder in which settings-ids are looked up.
        task: The task card or BEIR folder of a TREC run.
        queries: The number of queries with the largest difference to include.
        metric: The metric of the test, such as `recall@100`; by default the task's main metric.
    """
    from retbench.cards.task import parse_metric
    from retbench.pipelines.runs.compare import compare_runs

    return compare_runs(str(a), str(b), Path(results) if results else None, task, queries, parse_metric(metric))


def as_mteb(
    model: str, method: str | None = None, *, weights: str | None = None, overrides: dict[str, Any] | None = None
) -> "MtebSearchModel":
    """Wrap a model for `mteb.evaluate`, with the encoding, embedding cache and search of retbench.

        mteb.evaluate(retbench.as_mteb("minilm-l6"), mteb.get_tasks(tasks=["SciFact"]))

    Args:
        model: A card name, a hub id, a folder or a GGUF file.
        method: An encoding method; by default the model's own.
        weights: A folder or GGUF file with the model's weights.
        overrides: The options of `--set`, such as dtype and max_length.
    """
    from retbench.pipelines.mteb_bridge import search_model

    return search_model.as_mteb(model, method, weights, overrides)


def _to_tuple(names: str | Path | Sequence[str | Path]) -> tuple[str, ...]:
    """Names as a tuple. The path of a folder becomes absolute, so that it is never taken for the name of a card."""
    several = (names,) if isinstance(names, str | Path) else names
    return tuple(str(name.resolve()) if isinstance(name, Path) else name for name in several)


def _ignore_status(_: str) -> None:
    """Print no status lines."""


def _ignore_metrics(_: dict[str, Any]) -> None:
    """Print no metrics."""
