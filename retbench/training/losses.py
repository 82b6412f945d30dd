"""The losses of one contrastive batch, computed from its vectors in float32."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from retbench.cards.method import Similarity
from retbench.cards.recipe import ContrastiveSettings
from retbench.encoders.pooling import scale_for_similarity
from retbench.training.contrastive_batches import ContrastiveBatch


def contrastive_loss(
    queries: Tensor,
    passages: Tensor,
    batch: ContrastiveBatch,
    settings: ContrastiveSettings,
    similarity: Similarity = "cosine",
) -> Tensor:
    """The mean over the batch's queries; with Matryoshka dimensions, the mean over all widths."""
    widths = [queries.shape[1], *settings.matryoshka_dimensions]
    losses = [
        _compute_loss(_compare(queries[:, :width], passages[:, :width], similarity), batch, settings)
        for width in widths
    ]
    return torch.stack(losses).mean()


def _compare(queries: Tensor, passages: Tensor, similarity: Similarity) -> Tensor:
    """The similarity of every query with every passage."""
    return scale_for_similarity(queries, similarity) @ scale_for_similarity(passages, similarity).T


def ranknet_loss(
    lists: Tensor, passages: Tensor, batch: ContrastiveBatch, temperature: float, similarity: Similarity = "cosine"
) -> Tensor:
    """RankNet: how the list vectors order their queries' own passages, against the teacher; a mean over pairs."""
    compared = _compare(lists, passages, similarity) / temperature
    owner, teacher = (torch.from_numpy(np.asarray(a)).to(compared.device) for a in (batch.owner, batch.teacher_scores))
    scores = compared[owner, torch.arange(len(owner), device=compared.device)]
    preferred = (owner[:, None] == owner[None, :]) & (teacher[:, None] > teacher[None, :])
    if not bool(preferred.any()):
        return compared.sum() * 0  # the teacher scores all passages alike
    return functional.softplus(scores[None, :] - scores[:, None])[preferred].mean()


def _compute_loss(compared: Tensor, batch: ContrastiveBatch, settings: ContrastiveSettings) -> Tensor:
    """The loss from the similarity of every query with every passage."""
    scores, target = compared / settings.temperature, torch.arange(len(compared), device=compared.device)
    if settings.mask_known_positives:
        known_positives = torch.from_numpy(batch.relevant).to(scores.device)
        own_positives = torch.zeros_like(known_positives)
        own_positives[target, target] = True
        scores = scores.masked_fill(known_positives & ~own_positives, -torch.inf)
    loss = functional.cross_entropy(scores, target)
    if settings.symmetric:
        loss = (loss + functional.cross_entropy(scores[:, : len(compared)].T, target)) / 2
    if settings.distillation_weight and batch.teacher_scores is not None:
        weight, distill = settings.distillation_weight, DISTILLATION_LOSSES[settings.distillation_loss]
        loss = (1 - weight) * loss + weight * distill(compared, batch, settings)
    return loss


def _find_own_passages(compared: Tensor, batch: ContrastiveBatch) -> Tensor:
    """Which passages were drawn for which query."""
    owner = torch.from_numpy(batch.owner).to(compared.device)
    return owner[None, :] == torch.arange(len(compared), device=compared.device)[:, None]


def _kl_loss(compared: Tensor, batch: ContrastiveBatch, settings: ContrastiveSettings) -> Tensor:
    """The Kullback-Leibler divergence of a query's scores of its own passages from the teacher's."""
    is_own = _find_own_passages(compared, batch)
    teacher_scores = torch.from_numpy(batch.teacher_scores).to(compared).expand_as(compared)
    teacher = teacher_scores.masked_fill(~is_own, -torch.inf).log_softmax(1)
    student = (compared / settings.temperature).masked_fill(~is_own, -torch.inf).log_softmax(1)
    difference = (teacher - student).masked_fill(~is_own, 0.0)
    return (teacher.exp() * difference).sum(1).mean()


def _margin_mse_loss(compared: Tensor, batch: ContrastiveBatch, _: ContrastiveSettings) -> Tensor:
    """MarginMSE: the squared error of the positive's lead over each of the query's own negatives; a mean over those."""
    is_negative = _find_own_passages(compared, batch)
    target = torch.arange(len(compared), device=compared.device)
    is_negative[target, target] = False
    if not bool(is_negative.any()):
        return compared.sum() * 0  # no query of the batch has a negative of its own
    teacher_scores = torch.from_numpy(batch.teacher_scores).to(compared)
    teacher_margins = teacher_scores[target][:, None] - teacher_scores[None, :]
    margins = compared[target, target][:, None] - compared
    return functional.mse_loss(margins[is_negative], teacher_margins[is_negative])


DISTILLATION_LOSSES = {"kl": _kl_loss, "margin-mse": _margin_mse_loss}
