"""The contrastive loss over one group's vectors, in float32."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from retbench.cards.recipe import ContrastiveSettings
from retbench.training.contrastive_batches import ContrastiveBatch


def contrastive_loss(
    queries: Tensor, passages: Tensor, group: ContrastiveBatch, contrast: ContrastiveSettings
) -> Tensor:
    """The mean over the group's queries; with shorter widths, the mean over all widths."""
    widths = [queries.shape[1], *contrast.matryoshka_dimensions]
    parts = [_loss_at_width(queries[:, :width], passages[:, :width], group, contrast) for width in widths]
    return torch.stack(parts).mean()


def ranknet_loss(lists: Tensor, passages: Tensor, group: ContrastiveBatch, temperature: float) -> Tensor:
    """How the prompts' vectors order their queries' own passages against the teacher: logistic, a mean over pairs."""
    cosine = functional.normalize(lists, dim=1) @ functional.normalize(passages, dim=1).T / temperature
    owner, teacher = (
        torch.from_numpy(np.asarray(one)).to(cosine.device) for one in (group.owner, group.teacher_scores)
    )
    own = cosine[owner, torch.arange(len(owner), device=cosine.device)]
    above = (owner[:, None] == owner[None, :]) & (teacher[:, None] > teacher[None, :])
    if not bool(above.any()):
        return cosine.sum() * 0  # a teacher who prefers nothing
    return functional.softplus(own[None, :] - own[:, None])[above].mean()


def _loss_at_width(queries: Tensor, passages: Tensor, group: ContrastiveBatch, contrast: ContrastiveSettings) -> Tensor:
    cosine = functional.normalize(queries, dim=1) @ functional.normalize(passages, dim=1).T
    scores, target = cosine / contrast.temperature, torch.arange(len(queries), device=queries.device)
    if contrast.mask_known_positives:
        known = torch.from_numpy(group.relevant).to(scores.device)
        own = torch.zeros_like(known)
        own[target, target] = True
        scores = scores.masked_fill(known & ~own, -torch.inf)
    value = functional.cross_entropy(scores, target)
    if contrast.symmetric:
        value = (value + functional.cross_entropy(scores[:, : len(queries)].T, target)) / 2
    if contrast.distillation_weight and group.teacher_scores is not None:
        value = (1 - contrast.distillation_weight) * value + contrast.distillation_weight * _distillation_loss(
            cosine, group, contrast
        )
    return value


def _distillation_loss(cosine: Tensor, group: ContrastiveBatch, contrast: ContrastiveSettings) -> Tensor:
    """How far the scores of a query's own passages are from the teacher's, as a Kullback-Leibler divergence."""
    own = (
        torch.from_numpy(group.owner).to(cosine.device)[None, :]
        == torch.arange(len(cosine), device=cosine.device)[:, None]
    )
    teacher = torch.from_numpy(group.teacher_scores).to(cosine).expand_as(cosine)
    wanted = teacher.masked_fill(~own, -torch.inf).log_softmax(1)
    found = (cosine / contrast.temperature).masked_fill(~own, -torch.inf).log_softmax(1)
    difference = (wanted - found).masked_fill(~own, 0.0)
    return (wanted.exp() * difference).sum(1).mean()
