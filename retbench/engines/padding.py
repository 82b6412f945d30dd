"""Rows of token ids as one tensor, padded on the right."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class PaddedRows(NamedTuple):
    """The ids of row i are `ids[i, :lengths[i]]`; the rest is zero."""

    ids: Tensor
    lengths: Tensor

    @property
    def token_mask(self) -> Tensor:
        """True for tokens, False for padding."""
        return torch.arange(self.ids.shape[1])[None, :] < self.lengths[:, None]


def pad_rows(rows: Sequence[np.ndarray]) -> PaddedRows:
    """Pad rows to the length of the longest."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros((len(rows), int(lengths.max())), dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.from_numpy(row.astype(np.int64))
    return PaddedRows(ids, lengths)
