"""Sort keys of scored documents: integers whose order is the order of a ranking, by (-score, row).

The bits of a float32 score, made sortable, stand above those of the row, so one integer sort orders both.
"""

import numpy as np
import torch

EMPTY_KEY = torch.iinfo(torch.int64).min  # below all keys


def encode_keys(scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Integer keys that sort by (score, -row): the bits of the score, made sortable, above those of the row."""
    bits = (scores + 0.0).view(torch.int32)  # turns minus zero into zero
    return (torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() << 32) | (0xFFFFFFFF - rows)


def decode_scores(keys: torch.Tensor) -> torch.Tensor:
    """The scores of keys."""
    bits = (keys >> 32).int()
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(torch.float32)


def decode_rows(keys: torch.Tensor) -> torch.Tensor:
    """The rows of keys."""
    return 0xFFFFFFFF - (keys & 0xFFFFFFFF)


def select_largest(values: torch.Tensor, k: int) -> torch.Tensor:
    """The k largest values of each line, in any order."""
    if values.shape[1] <= k:
        return values
    if values.device.type != "cpu":
        return values.topk(k, dim=1, sorted=False).values
    position = values.shape[1] - k  # on a CPU, numpy's selection is several times faster
    largest = np.partition(values.numpy(), position, axis=1)[:, position:]
    return torch.from_numpy(largest.copy())  # a view would keep the whole array


def arrange_by_query(query_numbers: torch.Tensor, keys: torch.Tensor, queries: int) -> torch.Tensor:
    """The keys as a matrix with one line per query, padded with EMPTY_KEY. `query_numbers` is in ascending order."""
    counts = torch.bincount(query_numbers, minlength=queries)
    column = torch.arange(len(keys), device=keys.device) - (counts.cumsum(0) - counts)[query_numbers]
    lines = torch.full((len(counts), int(counts.max())), EMPTY_KEY, device=keys.device)
    lines[query_numbers, column] = keys
    return lines
