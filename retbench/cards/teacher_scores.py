"""How the scores of a teacher are calibrated before a model follows them."""

import math
from dataclasses import dataclass
from typing import Literal

from retbench.errors import DataError


@dataclass(frozen=True)
class TeacherScores:
    """The scale of a teacher's scores, which are then divided by `temperature`.

    `raw`: as they are. `minmax`: from 0 to 1 over the passages of one query. `probability`: the sigmoid, for the logits
    of a cross-encoder. A cross-encoder's logits spread over 10 or more, a cosine over 2 at most.
    """

    scale: Literal["raw", "minmax", "probability"] = "raw"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise DataError(f"temperature = {self.temperature} is not above 0", "write a number such as 1.0")
