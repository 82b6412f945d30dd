"""The recipe: how a backbone is trained. A recipe is a TOML file in `recipes/`, or a file of the user's own.

Batch sizes count over all processes, not per device, so the result does not depend on the number of machines. Keys have
the names that Hugging Face, peft and Tevatron use, where those have one.
"""

from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from retbench.cards import options, recipe_keys
from retbench.cards.method import Method
from retbench.cards.mining import MiningSettings
from retbench.cards.model import SHORT_DTYPES
from retbench.cards.task import LengthLimits
from retbench.cards.teacher_scores import TeacherScores
from retbench.cards.value_checks import require_above_zero, require_at_least, require_share
from retbench.errors import DataError, UsageError, suggest_names
from retbench.system import toml_parser

_DEFAULT_LENGTHS, _PRETRAINING_LENGTHS = LengthLimits(32, 156), LengthLimits(200, 200)
_DEFAULT_MINING, _DEFAULT_TEACHER_SCORES = MiningSettings(), TeacherScores()

CROSS_ENCODER_TEACHER = "cross:"
ObjectiveName = Literal["contrastive", "llm2ir", "llm-ql", "e2rank"]


@dataclass(frozen=True)
class ContrastiveSettings:
    """The contrastive loss (InfoNCE): softmax cross-entropy of one positive against all other passages of a batch.

    `temperature` divides the method's similarity. `hard_negatives` are drawn for each query, besides the batch's own.
    `symmetric` adds the loss from each positive to its query. `mask_known_positives` leaves a query's other known
    positives out of its negatives. `matryoshka_dimensions` are shorter widths that are trained too.
    `distillation_weight` is the share of the loss that follows a teacher's scores: by `distillation_loss`, the
    Kullback-Leibler divergence of a query's passages (`kl`), or the squared error of the differences between the
    positive's and each negative's similarity (`margin-mse`), which `temperature` does not divide.
    """

    temperature: float = 0.01
    hard_negatives: int = 0
    symmetric: bool = False
    mask_known_positives: bool = True
    matryoshka_dimensions: tuple[int, ...] = ()
    distillation_weight: float = 0.0
    distillation_loss: Literal["kl", "margin-mse"] = "kl"

    def __post_init__(self) -> None:
        require_above_zero(self, "temperature")
        require_at_least(self, 0, "hard_negatives")
        require_share(self, "distillation_weight")
        if any(width < 1 for width in self.matryoshka_dimensions):
            raise DataError(f"matryoshka_dimensions = {list(self.matryoshka_dimensions)}: a width is below 1",
                            "write shorter widths, such as [64, 128]")  # fmt: skip


@dataclass(frozen=True)
class BatchSettings:
    """`contrastive_batch_size` queries share their in-batch negatives; `train_batch_size` queries make one step.

    `max_tokens` limits the padded tokens of one forward pass. With `gradient_caching` only one such pass is in memory:
    vectors are computed without gradients first, then each pass is run again with them. The gradient is the same, for
    about a third more time.
    """

    contrastive_batch_size: int = 32
    train_batch_size: int = 32
    max_tokens: int = 4096
    gradient_caching: bool = False

    def __post_init__(self) -> None:
        require_at_least(self, 1, "contrastive_batch_size", "train_batch_size", "max_tokens")
        if self.train_batch_size % self.contrastive_batch_size:
            raise DataError(
                f"train_batch_size = {self.train_batch_size} cannot be split into contrastive batches of "
                f"{self.contrastive_batch_size}",
                "write train_batch_size as a multiple of contrastive_batch_size",
            )


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its learning rate.

    The rate rises over `warmup_steps` (or over `warmup_ratio` of all steps), then falls to zero by `lr_scheduler_type`.
    `warmup_type = "logarithmic"` is learning_rate x ln(step + 1) / ln(warmup_steps) with steps counted from zero,
    over at least two steps: DeepSpeed's WarmupDecayLR as it is by default (which sets a rate after a step, for
    the next one).
    `max_grad_norm` clips the gradient; 0 turns clipping off.
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

    def __post_init__(self) -> None:
        require_at_least(self, 0, "learning_rate", "warmup_steps", "weight_decay", "max_grad_norm")
        require_at_least(self, 1, "num_train_epochs", "max_steps")
        require_share(self, "warmup_ratio")


@dataclass(frozen=True)
class LoraSettings:
    """LoRA adapters (library peft). `target_modules` names linear layers; `all-linear` means all of the blocks."""

    r: int = 32
    lora_alpha: int = 64
    lora_dropout: float = 0.1
    target_modules: tuple[str, ...] = ("all-linear",)

    def __post_init__(self) -> None:
        require_at_least(self, 1, "r", "lora_alpha")
        require_share(self, "lora_dropout")


@dataclass(frozen=True)
class CropSettings:
    """Training pairs without labels: two contiguous crops of one text, drawn independently.

    A crop has from `min_ratio` to `max_ratio` of the text's tokens, and at least `min_tokens`.
    """

    min_ratio: float = 0.1
    max_ratio: float = 0.5
    min_tokens: int = 8

    def __post_init__(self) -> None:
        require_at_least(self, 1, "min_tokens")
        if not 0 < self.min_ratio <= self.max_ratio <= 1:
            raise DataError(
                f"min_ratio = {self.min_ratio} and max_ratio = {self.max_ratio} are no range",
                "write 0 < min_ratio <= max_ratio <= 1",
            )


@dataclass(frozen=True)
class QueryLikelihoodTraining:
    """Stage 1 of llm-ql: predict the query from one bottleneck token behind the document.

    `document` is the template before the bottleneck, which is the tokenizer's end-of-sequence token. `lengths.document`
    limits the prompt without the bottleneck (`cut = "tokens"`), or the document before it enters the template (`cut =
    "text"`). With `attention_stop` the query cannot attend to the document itself. `corruption_ratio` of the document's
    words are replaced by `mask_word`. All weights are trained, by the `optimizer` and `batch` of this table.
    """

    document: str
    cut: Literal["text", "tokens"] = "text"
    attention_stop: bool = True
    corruption_ratio: float = 0.6
    mask_word: str = "_"
    lengths: LengthLimits = _PRETRAINING_LENGTHS
    optimizer: OptimizerSettings = OptimizerSettings()
    batch: BatchSettings = BatchSettings()

    def __post_init__(self) -> None:
        require_share(self, "corruption_ratio")
        require_at_least(self.lengths, 1, "query", "document")


@dataclass(frozen=True)
class SourceInstructions:
    """The instructions of one source of a mixed training set: before its queries, and in its listwise prompts."""

    query: str
    prompt: str


@dataclass(frozen=True)
class ListwiseTraining:
    """The second loss of e2rank (RankNet): one prompt lists a query's documents and must rank them as the teacher does.

    A prompt has at most `max_documents`, in a random order or as the data lists them (`order = "given"`). The teacher
    is the data's `scores` or `ranking`; without them positives rank above negatives. `temperature` divides
    similarities. The total loss is the contrastive loss plus `weight` times this one. A prompt has about `max_tokens`
    at most, divided equally among its documents.
    Rows may name their `source`: of each at most `max_queries_per_source` are drawn, and `source_instructions` replace
    the instruction of the method and of the prompt.
    """

    max_documents: int = 16
    weight: float = 2.0
    temperature: float = 0.1
    max_tokens: int = 32768
    order: Literal["shuffled", "given"] = "shuffled"
    max_queries_per_source: int | None = None
    source_instructions: dict[str, SourceInstructions] | None = None

    def __post_init__(self) -> None:
        if self.max_documents < 2:
            raise DataError(f"max_documents = {self.max_documents} leaves nothing to rank", "write 2 or more")
        require_above_zero(self, "temperature")
        require_at_least(self, 0, "weight")
        require_at_least(self, 1, "max_tokens", "max_queries_per_source")


@dataclass(frozen=True)
class Recipe:
    """One way to train.

    `dtype` is the type of the arithmetic. With `bfloat16` frozen weights are bfloat16 too; trained weights are always
    float32. `gradient_checkpointing` computes activations again instead of keeping them. `max_minutes` cuts the number
    of steps to the time that a short measurement predicts. A checkpoint is written every `save_steps`; `--eval-task` is
    evaluated every `eval_steps`. `output` is merged weights or a LoRA adapter. With `sharding = "fsdp"` the processes
    share weights, gradients and optimizer states (torch's FSDP); without it each process holds all of them.

    `teacher` gives the scores for distillation and listwise training: `given` (in the data), `judgments` (the grades,
    0 for what is not judged), `cross:model=NAME` (a cross-encoder scores the passages), or the path of a run (a
    record's folder or a TREC run file). A run also brings the passages, at most `mining.negatives_per_query` negatives
    each. `teacher_scores` calibrates the scores of any teacher.
    """

    name: str
    title: str
    fidelity: Literal["exact", "reconstructed", "ours"]
    source: str
    objective: ObjectiveName
    method: Method
    description: str | None = None
    aliases: tuple[str, ...] = ()
    lengths: LengthLimits = _DEFAULT_LENGTHS
    contrastive: ContrastiveSettings = ContrastiveSettings()
    mining: MiningSettings = _DEFAULT_MINING
    teacher: str = "given"
    teacher_scores: TeacherScores = _DEFAULT_TEACHER_SCORES
    batch: BatchSettings = BatchSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    lora: LoraSettings | None = None
    crops: CropSettings | None = None
    listwise: ListwiseTraining | None = None
    query_likelihood: QueryLikelihoodTraining | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    sharding: Literal["none", "fsdp"] = "none"
    max_minutes: float | None = None
    save_steps: int = 25
    eval_steps: int = 100
    output: Literal["merged", "adapter"] = "merged"
    seed: int = 1

    def __post_init__(self) -> None:
        require_at_least(self, 1, "save_steps", "eval_steps")
        require_at_least(self, 0, "seed")
        require_above_zero(self, "max_minutes")
        require_at_least(self.lengths, 1, "query", "document")  # a task may say 0 for "no limit"; a training needs one
        if self.objective == "llm2ir":
            self._check_crops()
        if (self.objective == "e2rank") != (self.listwise is not None):
            raise DataError(
                "objective e2rank and the [listwise] table need each other", "add a [listwise] table, or remove it"
            )
        if self.has_run_as_teacher and (self.mining.source != "given" or self.mining.file or self.mining.cross_encoder):
            raise DataError(
                "a run as teacher brings its own passages, so nothing is mined",
                'write mining source = "given", and no mining file',
            )
        self._check_cross_encoders()
        if self.objective != "e2rank" and self.batch.contrastive_batch_size * (1 + self.contrastive.hard_negatives) < 2:
            raise DataError(
                "contrastive training needs at least two passages per batch",
                "write contrastive_batch_size = 2 or more, or hard_negatives = 1 or more",
            )
        self._check_output()

    @property
    def has_run_as_teacher(self) -> bool:
        """Whether the teacher is a run, which brings its own passages."""
        return self.teacher not in ("given", "judgments") and not self.teacher.startswith(CROSS_ENCODER_TEACHER)

    @property
    def crop_settings(self) -> CropSettings:
        """How crops are drawn."""
        return self.crops or CropSettings()

    def _check_cross_encoders(self) -> None:
        """A cross-encoder takes long, so one whose scores nothing uses is an error."""
        if self.mining.cross_encoder and not self.contrastive.hard_negatives:
            raise DataError(
                "mining.cross_encoder filters hard negatives, and contrastive.hard_negatives is 0",
                "write contrastive.hard_negatives = 1 or more",
            )
        follows_teacher = self.contrastive.distillation_weight or self.listwise
        if self.teacher.startswith(CROSS_ENCODER_TEACHER) and not follows_teacher:
            raise DataError(
                f"the teacher {self.teacher} is not followed: contrastive.distillation_weight is 0",
                "write contrastive.distillation_weight = 0.5, or another share of the loss",
            )

    def _check_crops(self) -> None:
        if self.crops is None:
            raise DataError("objective llm2ir needs a [crops] table", "add one; it may be empty")
        is_mined_before = self.mining.source != "bm25" or self.mining.file or self.mining.cross_encoder
        if self.contrastive.hard_negatives and is_mined_before:
            raise DataError(
                "crops get their hard negatives from BM25 while they train",
                'write mining source = "bm25", no mining file and no cross_encoder, or hard_negatives = 0',
            )

    def _check_output(self) -> None:
        if self.output == "adapter" and self.query_likelihood is not None:
            raise DataError(
                "stage 1 of llm-ql changes all weights, so an adapter alone is not the model", 'write output = "merged"'
            )
        if self.output == "adapter" and self.lora is None:
            raise DataError("output adapter needs a [lora] table", 'add [lora], or write output = "merged"')


def load_recipe(file: Path) -> Recipe:
    """Read a recipe file; an old key is an error that names the new one."""
    recipe_keys.check_file_keys(file)
    return toml_parser.load_card(Recipe, file)


def apply_recipe_options(recipe: Recipe, changes: dict[str, str]) -> Recipe:
    """A recipe with `--set` applied: `seed=2`, `query_likelihood.optimizer.learning_rate=1e-5`, `lora=none`."""
    recipe_keys.check_option_keys(changes)
    if "dtype" in changes:
        changes = {**changes, "dtype": SHORT_DTYPES.get(changes["dtype"], changes["dtype"])}
    changed_recipe: Recipe = _apply_nested_options(recipe, changes, fixed=("name", "method"))
    return changed_recipe


def _apply_nested_options(card: Any, changes: dict[str, str], fixed: tuple[str, ...] = ()) -> Any:
    own_changes = {key: value for key, value in changes.items() if "." not in key and value != "none"}
    removed: dict[str, Any] = {key: None for key, value in changes.items() if value == "none" and "." not in key}
    table_changes: dict[str, dict[str, str]] = {}
    for key, value in changes.items():
        table, dot, field = key.partition(".")
        if dot:
            table_changes.setdefault(table, {})[field] = value
    for name in (*table_changes, *removed):
        if not hasattr(card, name):
            raise UsageError(f"there is no option {name!r}", suggest_names(name, [f.name for f in fields(card)]))
        if name in removed and type(None) not in get_args(get_type_hints(type(card))[name]):
            raise UsageError(f"{name} cannot be none", "give it a value, or leave it out: then the recipe's applies")
        if name in table_changes and not is_dataclass(getattr(card, name)):
            raise UsageError(
                f"the recipe has no [{name}] table to change", "use another recipe, or a recipe file with that table"
            )
    tables = {name: _apply_nested_options(getattr(card, name), values) for name, values in table_changes.items()}
    return options.apply_options(card, own_changes, fixed=fixed, parsed={**tables, **removed})
