"""What all encoders with a backbone in this process share: everything but what they make of its states."""

from collections.abc import Iterable
from dataclasses import dataclass

from retbench.cards.method import Role
from retbench.encoders.batch_plan import estimate_shard_tokens
from retbench.encoders.encoder_spec import EncoderSpec
from retbench.encoders.prompt_tokenizer import PromptTokenizer, TokenizedTexts
from retbench.engines.backbone import Backbone
from retbench.engines.memory import get_thread_count


@dataclass(frozen=True)
class BackboneEncoderBase:
    """An encoder with a backbone in this process: engine `transformers`."""

    spec: EncoderSpec
    backbone: Backbone
    prompt_tokenizer: PromptTokenizer

    @property
    def kernel(self) -> str:
        """The attention kernel, for the record."""
        return self.backbone.kernel

    @property
    def computed_dtype(self) -> str:
        """The dtype of the loaded weights, for the record."""
        return self.backbone.computed_dtype

    @property
    def shard_tokens(self) -> int | None:
        """Tokens of about half a minute of work, estimated from the linear layers."""
        device = self.backbone.device.type
        return estimate_shard_tokens(self.backbone.flops_per_token, device, self.computed_dtype, get_thread_count())

    def peak_throughput(self) -> float | None:
        """Tokens per second if only the matrix products took time."""
        return self.backbone.peak_throughput()

    def tokenize(self, texts: Iterable[str], role: Role) -> TokenizedTexts:
        """Texts as token ids, truncated to the limit of the role."""
        return self.prompt_tokenizer.tokenize(texts, role, self.spec.get_limit(role))
