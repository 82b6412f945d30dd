"""Rows of token ids as one rectangle, padded on the right."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class PaddedRows(NamedTuple):
    """The ids of row i are `ids[i, :lengths[i]]`; zeros follow."""

    ids: Tensor
    lengths: Tensor

    @property
    def token_mask(self) -> Tensor:
        """Where a token stands, and not padding."""
        return torch.arange(self.ids.shape[1])[None, :] < self.lengths[:, None]


def pad_rows(rows: Sequence[np.ndarray]) -> PaddedRows:
    """Rows padded to the longest."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros((len(rows), int(lengths.max())), dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.from_numpy(row.astype(np.int64))
    return PaddedRows(ids, lengths)
