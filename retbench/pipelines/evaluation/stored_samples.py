"""The samples that `--minutes` found, in `samples.json` of the results folder: one for each command."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from retbench.errors import DataError
from retbench.pipelines.evaluation.request import EvaluationRequest
from retbench.store.digest import compute_digest
from retbench.system.checked_json import encode_checked_json, parse_checked_json
from retbench.system.durable_files import write_file_atomically

FILE = "samples.json"


@dataclass(frozen=True)
class StoredSample:
    """A sample that fits a number of minutes; `sample` is None if whole collections fit."""

    minutes: float
    sample: int | None
    expected_seconds: float
    command: str = ""

    def describe(self) -> str:
        """Say what is used, how long it takes, and how other models are run on the same queries."""
        expected = f"expected to take {self.expected_seconds / 60:.1f} minutes, {self.minutes:g} given"
        if self.sample is None:
            return f"all queries are used: {expected}"
        return (
            f"{self.sample} queries of each task ({expected}); other models on the same queries: --sample {self.sample}"
        )


@dataclass(frozen=True)
class StoredSamples:
    """The samples of a results folder."""

    results: Path

    @property
    def file(self) -> Path:
        """The file."""
        return self.results / FILE

    def find(self, request: EvaluationRequest, minutes: float) -> StoredSample | None:
        """Return the sample that the same request found before."""
        entry = self._read().get(_compute_key(request, minutes))
        return StoredSample(**entry) if entry else None

    def add(self, request: EvaluationRequest, found: StoredSample) -> None:
        """Store the sample of a request."""
        entry = asdict(replace(found, command=request.command))
        entries = {**self._read(), _compute_key(request, found.minutes): entry}
        write_file_atomically(self.file, encode_checked_json(entries))

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self.file.exists():
            return {}
        try:
            entries = parse_checked_json(self.file.read_bytes())
            for entry in entries.values():
                StoredSample(**entry)
        except (ValueError, TypeError, AttributeError) as problem:
            raise DataError(
                f"{self.file} is damaged: {problem}", "give --sample N, or remove the file: samples are measured again"
            ) from problem
        return dict(entries)


def _compute_key(request: EvaluationRequest, minutes: float) -> str:
    """Return a digest of what decides how long a sample takes."""
    return compute_digest(
        {
            "models": request.models,
            "methods": request.methods,
            **({"prompts": request.prompts} if request.prompts else {}),
            "tasks": request.tasks,
            "weights": request.weights,
            "overrides": request.overrides,
            "engine": request.engine,
            "devices": request.devices,
            "minutes": minutes,
        }
    )
