"""Published scores of a cell, compared with the computed scores.

Only a cell with the settings of its cards is compared: a sample, another split or any `--set` is another measurement.
A user's folder with the name and the rules of a known task is compared too, so that a wrong folder is noticed.
"""

from retbench.cards import catalog
from retbench.cards.model import ModelCard
from retbench.cards.task import ExpectedScore, TaskCard
from retbench.pipelines.evaluation.request import EvaluationRequest
from retbench.records.cell import Cell, ExpectedScoreCheck


def find_expected_scores(
    cell: Cell, model: ModelCard, task: TaskCard, request: EvaluationRequest
) -> tuple[ExpectedScoreCheck, ...]:
    """Return every published score of the cell, one per metric; the task card has priority over the model card."""
    if cell.sample or request.overrides or request.weights or cell.task not in catalog.load_task_cards():
        return ()
    known_task = catalog.find_task_card(cell.task)
    if _list_rules(task) != _list_rules(known_task):
        return ()
    of_model = [
        ExpectedScore(cell.model, score.metric, score.score, score.tolerance or 0.0, score.source)
        for score in model.reference
        if score.task == cell.task
    ]
    checks: dict[str, ExpectedScoreCheck] = {}
    for score in (*known_task.expected, *of_model):
        if score.model == cell.model and score.metric in cell.scores and _has_same_method(score, cell, model):
            computed = cell.scores[score.metric]
            check = ExpectedScoreCheck(score.metric, score.score, computed, score.tolerance, score.source)
            checks.setdefault(score.metric, check)
    return tuple(checks.values())


def _list_rules(card: TaskCard) -> tuple[object, ...]:
    return (card.split, card.fields, card.lengths, card.same_id, card.excluded, card.relevant_from, card.protocol)


def _has_same_method(score: ExpectedScore, cell: Cell, model: ModelCard) -> bool:
    default = model.method.default if model.method else cell.method
    return cell.method == (score.method or default)
