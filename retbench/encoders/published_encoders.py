"""The encoders of published models without dense vectors: late interaction (ColBERT), learned sparse (SPLADE)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from retbench.encoders.backbone_base import BackboneEncoderBase
from retbench.encoders.pooling import scale_for_similarity
from retbench.encoders.prompt_tokenizer import TokenizedTexts
from retbench.encoders.text_encoder import RaggedVectors
from retbench.engines.padding import pad_rows
from retbench.engines.token_layers import TokenLayers

# padded tokens whose logits over the vocabulary are in memory at once; a GPU needs more to be fully used
LOGIT_TOKENS = {"cpu": 2048, "cuda": 16_384}


@dataclass(frozen=True)
class LateInteractionEncoder(BackboneEncoderBase):
    """One vector per token: the states through the folder's layers, without the tokens of skipped words."""

    layers: TokenLayers

    @property
    def dimension(self) -> int:
        """Width of a vector."""
        return self.layers.dimension or self.backbone.dimension

    def encode(self, batch: TokenizedTexts) -> RaggedVectors:
        """The vectors of one batch of token ids."""
        states = self.backbone.compute_states(list(batch), batch.attended).flat
        is_kept = self._find_kept_tokens(batch)
        kept = states[torch.from_numpy(is_kept).to(states.device)].float()
        vectors = scale_for_similarity(self.layers.transform(kept), self.spec.method.similarity)
        lengths = np.add.reduceat(is_kept, batch.offsets[:-1], dtype=np.int64)  # every text has a token
        return RaggedVectors(np.asarray(vectors.cpu().numpy()), np.concatenate(([0], np.cumsum(lengths))))

    def _find_kept_tokens(self, batch: TokenizedTexts) -> np.ndarray:
        settings, tokenizer = self.spec.method.late_interaction, self.prompt_tokenizer.tokenizer
        is_kept = np.ones(len(batch.flat), dtype=bool)
        if settings is None:
            return is_kept
        if settings.kept_tokens and batch.role == "document":
            is_kept = np.isin(batch.flat, settings.kept_tokens)
        if batch.role not in settings.skipped_in:
            return is_kept
        ids = {word: tokenizer.convert_tokens_to_ids(word) for word in settings.skipped_words}
        skipped = [i for word, i in ids.items() if i != tokenizer.unk_token_id or word == tokenizer.unk_token]
        return is_kept & ~np.isin(batch.flat, [i for i in skipped if i is not None])


@dataclass(frozen=True)
class LearnedSparseEncoder(BackboneEncoderBase):
    """Term weights: logits of a masked language model, pooled over the tokens; or stored weights of query tokens."""

    static_weights: np.ndarray | None

    @property
    def dimension(self) -> int:
        """The size of the vocabulary."""
        return int(self.backbone.model.config.vocab_size)

    def encode(self, batch: TokenizedTexts) -> RaggedVectors:
        """The weighted terms of one batch of token ids."""
        if batch.role == "query" and self.static_weights is not None:
            terms = [np.unique(row) for row in batch]
            weights = [self.static_weights[row] for row in terms]
        else:
            terms, weights = self._compute_terms(list(batch))
        if self.spec.method.similarity == "cosine":
            weights = [row / max(float(np.linalg.norm(row)), 1e-12) for row in weights]
        used = [row != 0 for row in weights]
        return RaggedVectors.stack(
            [row[mask].astype(np.float32) for row, mask in zip(weights, used, strict=True)],
            [row[mask] for row, mask in zip(terms, used, strict=True)],
        )

    def _compute_terms(self, rows: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        terms: list[np.ndarray] = []
        weights: list[np.ndarray] = []
        most = LOGIT_TOKENS.get(self.backbone.device.type, LOGIT_TOKENS["cpu"])
        while len(terms) < len(rows):
            waiting = rows[len(terms) :]
            longest = np.maximum.accumulate([len(row) for row in waiting])
            count = max(1, int((longest * np.arange(1, len(waiting) + 1) <= most).sum()))
            for row in self._compute_weights(waiting[:count]).cpu().numpy():
                terms.append(np.flatnonzero(row))
                weights.append(row[terms[-1]])
        return terms, weights

    @torch.inference_mode()
    def _compute_weights(self, rows: list[np.ndarray]) -> torch.Tensor:
        """The weight of every token of the vocabulary, a row for each text."""
        settings, padded, device = self.spec.method.learned_sparse, pad_rows(rows), self.backbone.device
        if settings is None:
            raise TypeError(f"method {self.spec.method.name} has no learned_sparse")
        mask = padded.token_mask.to(device)
        output: Any = self.backbone.model(input_ids=padded.ids.to(device), attention_mask=mask.long())
        logits: torch.Tensor = output.logits.float()
        weights = logits.relu_().mul_(mask[:, :, None])
        if settings.pooling == "max":  # a logarithm rises, so that of the largest is the largest
            weights = weights.amax(dim=1)
        for _ in range(1 + settings.double_log):
            weights = weights.log1p_()
        if settings.pooling == "sum":
            weights = weights.sum(dim=1)
        if settings.max_terms is None or settings.max_terms >= weights.shape[1]:
            return weights
        top = weights.topk(settings.max_terms, dim=1)
        return torch.zeros_like(weights).scatter_(1, top.indices, top.values)
