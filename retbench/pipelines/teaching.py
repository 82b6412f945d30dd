"""Who teaches a training: the data, its judgments, or a run that lies on this disk."""

from pathlib import Path

from retbench.errors import MissingError
from retbench.records.load_run import read_run, scored_run
from retbench.records.results_folder import RECORD, unworded
from retbench.records.scored_run import raw_scores
from retbench.training import teachers
from retbench.training.training_data import TrainingRequest
from retbench.training.training_set import TrainingSet


def add_teacher_scores(training: TrainingSet, wish: TrainingRequest) -> TrainingSet:
    """The set with the teacher's scores that the recipe asks for."""
    teacher = wish.recipe.teacher
    if teacher == teachers.GIVEN:
        return training
    if teacher == teachers.JUDGMENTS:
        return teachers.add_scores_from_judgments(training)
    place = Path(teacher).expanduser()
    made = teachers.add_scores_from_run(
        training, _read_scored_ranking(place), place.name, wish.recipe.mining.negatives_per_query
    )
    left = made.facts["teacher"]["queries_without_teacher"]
    wish.say(
        f"{place.name} teaches {len(made.queries):,} queries; {left:,} whose positives it does not rank are left out"
    )
    return made


def _read_scored_ranking(place: Path) -> teachers.ScoredRanking:
    """A record of ours with its raw scores, or anybody's TREC run."""
    if not place.exists():
        raise MissingError(f"there is no run at {place}", "name a run's folder, a TREC run file, or judgments")
    if not (place / RECORD).is_file():
        return scored_run(place)
    scores = raw_scores(place)
    found = {unworded(query): list(map(unworded, ids)) for query, ids in read_run(place / "run.trec.gz").items()}
    return {query: list(zip(ids, scores[query], strict=True)) for query, ids in found.items()}
