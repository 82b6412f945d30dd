"""Keeps the equal parts of many runs once: they have the same cards, machine and queries.

A record of a dense run is about 100 kB in memory, most of it cards, so a scan of many runs needs a fraction of that.
"""

from dataclasses import dataclass, field, replace
from typing import Any

from retbench.records.scored_run import ScoredRun
from retbench.store.digest import compute_digest


@dataclass(frozen=True)
class SharedValues:
    """The values so far: the query ids of runs by themselves, parts of records by their digest."""

    queries: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)

    def share_parts(self, run: ScoredRun) -> ScoredRun:
        """Return the run with the parts of earlier runs where they are equal. Nobody may change a part."""
        cards = {kind: self._share(card) for kind, card in run.record.cards.items()}
        record = replace(run.record, cards=cards, machine=self._share(run.record.machine))
        return replace(run, record=record, queries=self.queries.setdefault(run.queries, run.queries))

    def _share(self, part: Any) -> Any:
        return self.parts.setdefault(compute_digest(part), part)
