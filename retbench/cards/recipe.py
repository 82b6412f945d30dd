"""The recipe: how a backbone is trained. A recipe is a TOML file in `recipes/`, or a file of the user's own.

Sizes are those of the whole run, never of one device: two machines follow the same recipe and make the same model.
"""

from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from retbench.cards import options
from retbench.cards.method import Method
from retbench.cards.task import LengthLimits
from retbench.errors import DataError, UsageError, suggest_names

_LENGTHS, _LONGER = LengthLimits(32, 156), LengthLimits(200, 200)

Objective = Literal["contrastive", "llm2ir", "llm-ql", "e2rank"]


@dataclass(frozen=True)
class Contrast:
    """The loss: softmax cross-entropy of one positive against all other passages of a contrast.

    `temperature` divides the cosine. `negatives` is how many of its own a query brings, besides everybody else's
    passages. `both_directions` also asks each positive for its query. `spare_known` leaves out of a query's contrast
    what is known to be relevant to it. `matryoshka` lists shorter widths that are trained too. `distillation` is the
    share of the loss that follows a teacher's scores, which the data must hold.
    """

    temperature: float = 0.01
    hard_negatives: int = 0
    symmetric: bool = False
    mask_known_positives: bool = True
    matryoshka_dimensions: tuple[int, ...] = ()
    distillation_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise DataError(f"a temperature of {self.temperature}", "write a number above zero, such as 0.01")
        if not 0 <= self.distillation_weight <= 1:
            raise DataError(f"distillation = {self.distillation_weight}", "write a share from 0 to 1")


@dataclass(frozen=True)
class Mining:
    """Where a query's own negatives come from.

    `given`: those of the data. `bm25`: what BM25 ranks highest. `model`: what the model ranks highest before training.
    Taken are the ranks `first` to `last`, and of them only documents whose score is at most `margin` times that of the
    query's best positive (1.0 or more keeps nearly everything; nothing relevant is ever taken). `keep` of them are
    kept for each query. `file` is a mined file of an earlier run, used instead of mining.
    """

    source: Literal["given", "bm25", "model"] = "given"
    rank_from: int = 1
    rank_to: int = 50
    max_score_ratio: float | None = None
    negatives_per_query: int = 30
    file: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.rank_from <= self.rank_to:
            raise DataError(f"ranks {self.rank_from} to {self.rank_to}", "write first and last with 1 <= first <= last")


@dataclass(frozen=True)
class Batch:
    """`contrast` queries see each other's passages, `update` queries make one step of the optimiser.

    `tokens` bounds the padded tokens of one forward pass, whatever the batch. With `caching` no more than one such pass
    is held in memory: vectors are made without gradients first and each pass is then done again with them (the
    gradient is the same, at about a third more time).
    """

    contrastive_batch_size: int = 32
    train_batch_size: int = 32
    max_tokens: int = 4096
    gradient_caching: bool = False

    def __post_init__(self) -> None:
        if self.contrastive_batch_size < 1 or self.train_batch_size % self.contrastive_batch_size:
            raise DataError(
                f"{self.train_batch_size} queries an update, {self.contrastive_batch_size} a contrast", "write update as a multiple of contrast"
            )


@dataclass(frozen=True)
class Optimiser:
    """AdamW and its rate: up over `warmup_steps` (or `warmup_share` of all), then down by `decay` to zero.

    `warmup = "logarithmic"` is rate x ln(step + 1) / ln(warmup_steps), as DeepSpeed's WarmupDecayLR does it.
    """

    learning_rate: float = 1e-4
    num_train_epochs: int = 1
    max_steps: int | None = None
    warmup_type: Literal["linear", "logarithmic"] = "linear"
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters. `targets` are names of linear layers; `all-linear` means every one of the blocks."""

    rank: int = 32
    alpha: int = 64
    dropout: float = 0.1
    targets: tuple[str, ...] = ("all-linear",)


@dataclass(frozen=True)
class Crops:
    """Pairs without labels: two contiguous crops of one text, drawn independently of each other.

    A crop has from `shortest` to `longest` of the text's tokens, and never fewer than `least` tokens.
    """

    shortest: float = 0.1
    longest: float = 0.5
    least: int = 8


@dataclass(frozen=True)
class Likelihood:
    """Stage 1 of llm-ql: the query is to be predicted from the document's bottleneck alone.

    `document` is the template before the bottleneck, which is the tokenizer's end-of-sequence token. With
    `attention_stop` nothing after the bottleneck sees anything before it. `corruption` is the share of the document's
    words replaced by `blank`. All weights are trained, by `optimiser` and `batch` of this table.
    """

    document: str
    attention_stop: bool = True
    corruption: float = 0.6
    blank: str = "_"
    lengths: LengthLimits = _LONGER
    optimiser: Optimiser = Optimiser()
    batch: Batch = Batch()


@dataclass(frozen=True)
class Lists:
    """The second loss of e2rank: a query's documents as one prompt must rank them as the teacher does (RankNet).

    A list has up to `documents` of a query's documents, in an order that is drawn; the teacher is the data's `scores`
    or `ranking`, else positives stand above negatives. Cosines are divided by `temperature`, and the loss weighs
    `weight` times the contrastive one. A prompt has about `length` tokens at most, shared equally by its documents.
    """

    documents: int = 16
    weight: float = 2.0
    temperature: float = 0.1
    length: int = 32768

    def __post_init__(self) -> None:
        if self.documents < 2 or self.temperature <= 0:
            raise DataError("a list of one document, or a temperature of none", "write documents = 2 or more")


@dataclass(frozen=True)
class Recipe:
    """One way to train.

    `dtype` is that of the arithmetic: with `bfloat16`, frozen weights are held in it too, and what is trained stays in
    float32. `recompute` drops activations and computes them again (gradient checkpointing). `max_minutes` shortens the
    plan to what a short measurement says will fit. A checkpoint is written every `save_steps`, and `--eval-task` is
    scored every `eval_steps`. `output` is what the finished folder holds. With `sharding = "fsdp"` the processes of a
    run share weights, gradients and moments out among them (torch's FSDP); without, each holds them all.

    `teacher` says whose scores distillation and lists follow: `given` (the data's), `judgments` (the grades; what is
    not judged has 0), or the path of a run, ours or a TREC run file, which brings the passages too (`mining.keep`).
    """

    name: str
    title: str
    fidelity: Literal["exact", "reconstructed", "ours"]
    source: str
    objective: Objective
    method: Method
    description: str | None = None
    aliases: tuple[str, ...] = ()
    lengths: LengthLimits = _LENGTHS
    contrast: Contrast = Contrast()
    mining: Mining = Mining()
    teacher: str = "given"
    batch: Batch = Batch()
    optimiser: Optimiser = Optimiser()
    lora: Lora | None = None
    crops: Crops | None = None
    lists: Lists | None = None
    likelihood: Likelihood | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    recompute: bool = False
    sharding: Literal["none", "fsdp"] = "none"
    max_minutes: float | None = None
    save_steps: int = 25
    eval_steps: int = 100
    output: Literal["merged", "adapter"] = "merged"
    seed: int = 1

    def __post_init__(self) -> None:
        if self.objective == "llm2ir" and self.crops is None:
            raise DataError("objective llm2ir without [crops]", "add a [crops] table, which may be empty")
        if (self.objective == "e2rank") != (self.lists is not None):
            raise DataError("[lists] belong to objective e2rank, and it to them", "add a [lists] table, or remove it")
        if self.teacher not in ("given", "judgments") and (self.mining.source != "given" or self.mining.file):
            raise DataError("a run as teacher brings its own passages", 'write mining source = "given", and no file')
        if self.objective != "e2rank" and self.batch.contrastive_batch_size * (1 + self.contrast.hard_negatives) < 2:
            raise DataError("a contrast of one passage has nothing to tell apart", "write batch contrast = 2 or more")
        if self.sharding != "none" and self.likelihood is not None:
            raise DataError("stage 1 of llm-ql is not shared out", 'write sharding = "none", or likelihood = none')
        if self.output == "adapter" and self.likelihood is not None:
            raise DataError("an adapter beside weights that stage 1 changes", 'write output = "merged"')
        if self.output == "adapter" and self.lora is None:
            raise DataError("output adapter without [lora]", 'add a [lora] table, or write output = "merged"')


def on_card(recipe: Recipe) -> dict[str, Any]:
    """A recipe as a model card holds it: where files lie here is nobody's business."""
    table = asdict(recipe)
    for part, key in ((table, "teacher"), (table["mining"], "file")):
        part[key] = Path(part[key]).name if part[key] and Path(part[key]).is_absolute() else part[key]
    return table


def changed(recipe: Recipe, wanted: dict[str, str]) -> Recipe:
    """A recipe with fields overruled: `seed=2`, `likelihood.optimiser.rate=1e-5`, and `lora=none` for full weights."""
    found: Recipe = _changed(recipe, wanted, fixed=("name", "method"))
    return found


def _changed(card: Any, wanted: dict[str, str], fixed: tuple[str, ...] = ()) -> Any:
    own = {key: value for key, value in wanted.items() if "." not in key and value != "none"}
    absent: dict[str, Any] = {key: None for key, value in wanted.items() if value == "none" and "." not in key}
    deeper: dict[str, dict[str, str]] = {}
    for key, value in wanted.items():
        table, dot, field = key.partition(".")
        if dot:
            deeper.setdefault(table, {})[field] = value
    for name in (*deeper, *absent):
        if not hasattr(card, name):
            raise UsageError(f"there is no option {name!r}", suggest_names(name, [f.name for f in fields(card)]))
        if name in deeper and not is_dataclass(getattr(card, name)):
            raise UsageError(f"the recipe has no [{name}] to change", "use another recipe, or a file of yours")
    tables = {name: _changed(getattr(card, name), change) for name, change in deeper.items()}
    return replace(options.apply_options(card, own, fixed=fixed), **tables, **absent)
