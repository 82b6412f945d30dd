"""What others published for a cell, beside what came out: a number nobody expected is a mistake until explained.

Only a cell run as its cards say is compared: a sample, another split or any --set makes it another measurement. A
folder of the user's own that has a known task's name and rules is compared too: so a wrong folder is noticed.
"""

from retbench.cards import catalog
from retbench.cards.model import ModelCard
from retbench.cards.task import ExpectedScore, TaskCard
from retbench.pipelines.evaluation.request import Request
from retbench.records.cell import Cell, Expectation


def expected(cell: Cell, model: ModelCard, card: TaskCard, request: Request) -> tuple[Expectation, ...]:
    """Every known score of this cell, one a metric; what the task card says goes before the model card."""
    if cell.sample or request.overrides or request.weights or cell.task not in catalog.load_task_cards():
        return ()
    if _rules(card) != _rules(catalog.find_task_card(cell.task)):
        return ()
    own = [
        ExpectedScore(cell.model, one.metric, one.score, one.tolerance or 0.0, one.source)
        for one in model.reference
        if one.task == cell.task
    ]
    found: dict[str, Expectation] = {}
    for one in (*catalog.find_task_card(cell.task).expected, *own):
        if one.model == cell.model and one.metric in cell.scores and _same_method(one, cell, model):
            known = Expectation(one.metric, one.score, cell.scores[one.metric], one.tolerance, one.source)
            found.setdefault(one.metric, known)
    return tuple(found.values())


def _rules(card: TaskCard) -> tuple[object, ...]:
    return (card.split, card.fields, card.lengths, card.same_id, card.excluded, card.relevant_from, card.protocol)


def _same_method(one: ExpectedScore, cell: Cell, model: ModelCard) -> bool:
    default = model.method.default if model.method else cell.method
    return cell.method == (one.method or default)
