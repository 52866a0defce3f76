"""The dataclasses of a run, with units, and the rules that one dataclass can check by itself. No torch, no Hydra."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gptlab.errors import ConfigError, did_you_mean
from gptlab.registry import SLOTS

LAYER_SLOTS = ("attention", "position", "norm", "mlp", "block")


@dataclass
class ModelConfig:
    """A decoder-only model: sizes in nanoGPT's names, and for each slot a variant's name or {name, **options}."""

    vocab_size: int | None = None  # None: the tokenizer's
    block_size: int = 128  # tokens of context in training
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128  # width of the residual stream
    dropout: float = 0.0  # probability, on embeddings, attention weights and what a sublayer adds
    bias: bool = False  # in every linear layer whose variant does not say otherwise
    tie_weights: bool = False  # the head is the embedding's matrix
    head_bias: bool = False  # in the head
    embedding_size: int | None = None  # width of embedding and head, a projection to and from n_embd; null: n_embd
    embedding_scale: Any = 1.0  # factor of the embeddings; sqrt: sqrt(n_embd)
    embedding_norm: Any = None  # a norm of the embeddings, positions included; null: none
    logit_scale: float = 1.0  # factor of the logits
    logit_softcap: float | None = None  # bound c of the logits, c tanh(logit / c); null: none
    z_loss: float = 0.0  # weight of the mean squared log of the softmax's denominator, for which all logits are held
    document_mask: bool = False  # a token sees its own document alone, and positions restart with it
    separator: int | None = None  # the id that ends a document, for document_mask; null: the tokenizer's
    source_end: int | None = None  # the id that ends a source, for attention.causal=prefix; a run has that of its data
    init_std: float = 0.02  # of linear and embedding weights
    attention: Any = "softmax"
    position: Any = "rope"
    norm: Any = "rmsnorm"
    mlp: Any = "plain"
    block: Any = "prenorm"
    layers: list[Any] = field(default_factory=list)  # [{at: "1::2", attention: {window: 64}}, ...]

    def __post_init__(self) -> None:
        for name in ("block_size", "n_head", "n_embd"):
            require(getattr(self, name) >= 1, f"model.{name} must be at least 1, but is {getattr(self, name)}.")
        require(self.n_layer >= 0, f"model.n_layer must be 0 or more, but is {self.n_layer}. 0 is a bigram model.")
        require(0 <= self.dropout < 1, f"model.dropout is a probability in [0, 1), but is {self.dropout}.")
        for name in ("init_std", "logit_scale", "logit_softcap", "embedding_size"):
            value = getattr(self, name)
            require(value is None or value > 0, f"model.{name} must be above 0, but is {value}.")
        require(self.z_loss >= 0, f"model.z_loss must be 0 or more, but is {self.z_loss}.")
        number = isinstance(self.embedding_scale, int | float) and self.embedding_scale > 0
        require(
            number or self.embedding_scale == "sqrt",
            f"model.embedding_scale must be a number above 0 or sqrt, but is {self.embedding_scale!r}.",
        )
        require(
            self.separator is None or self.document_mask,
            f"model.separator={self.separator} ends documents for model.document_mask, which is off: turn it on.",
        )

    @property
    def has_source(self) -> bool:
        """Whether a layer's attention sees a source both ways."""
        return any(slots["attention"].get("causal") == "prefix" for slots in self.slots_of_layers())

    def slots_of_layers(self) -> list[dict[str, Any]]:
        """For each layer, slot -> spec, with the overrides of `layers` applied in their order."""
        base = {slot: as_spec(getattr(self, slot)) for slot in LAYER_SLOTS}
        layers = [dict(base) for _ in range(self.n_layer)]
        for number, rule in enumerate(self.layers):
            where = f"model.layers[{number}]"
            changes = _changes(rule, where)
            for index in _selected(rule["at"], self.n_layer, where):
                layers[index].update({slot: merge_spec(layers[index][slot], new) for slot, new in changes.items()})
        return layers


@dataclass
class TrainerConfig:
    """How long, how much at a time, how often to look, and on what."""

    steps: int = 500  # optimizer steps
    batch_size: int = 32  # sequences in a micro-batch
    accumulate: int = 1  # micro-batches in a step
    tokens_per_step: int | None = None  # sets accumulate: as many micro-batches as hold so many tokens
    clip: float = 1.0  # largest gradient norm; 0 = no clipping
    log_every: int = 10  # steps
    eval_every: int = 250  # steps; 0 = only at the end
    save_every: int = 250  # steps; 0 = only at the end
    keep: int = 2  # newest checkpoints kept
    sample_every: int = 250  # steps; 0 = only at the end
    sample_tokens: int = 300  # length of a sample
    sample_prompt: str = ""  # what a sample begins with; empty: the border between two documents
    sample_temperature: float = 0.8
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    precision: str = "auto"  # auto, fp32, bf16, fp16
    residual_in_fp32: bool = True  # false: in bf16 and fp16 the residual stream is too, which is faster on a GPU
    compile: str = "auto"  # auto, true, false
    cuda_graphs: str = "auto"  # auto, true, false: replay a compiled step's kernels; auto: if launching takes longest
    activation_checkpointing: str = "none"  # none; compute again in the backward pass: block, or selective, no products
    on_nonfinite: str = "stop"  # stop, skip: what a loss that is NaN or infinite does
    eval_part: str = "all"  # all, first, second: the half of the validation split that is evaluated on
    patience: int = 0  # evaluations without a better validation loss after which training stops; 0 = never
    parallel: str = "auto"  # auto, ddp, fsdp: whether each rank of torchrun's has the model or a part; auto is ddp
    shard: int = 0  # ranks that have one model between them, beside others that have it too; 0 = all, for fsdp
    save: str = "wait"  # wait, async: whether training goes on while a checkpoint is written

    def __post_init__(self) -> None:
        self.compile, self.cuda_graphs = str(self.compile).lower(), str(self.cuda_graphs).lower()
        for name in ("steps", "batch_size", "accumulate", "log_every", "keep", "sample_tokens"):
            require(getattr(self, name) >= 1, f"trainer.{name} must be at least 1, but is {getattr(self, name)}.")
        for name in ("clip", "eval_every", "save_every", "sample_every", "patience", "shard"):
            require(getattr(self, name) >= 0, f"trainer.{name} must be 0 or more, but is {getattr(self, name)}.")
        require_choice("trainer.precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        require_choice("trainer.compile", self.compile, ("auto", "true", "false"))
        require_choice("trainer.cuda_graphs", self.cuda_graphs, ("auto", "true", "false"))
        require(
            self.cuda_graphs != "true" or (self.accumulate == 1 and self.compile != "false"),
            "trainer.cuda_graphs=true replays a compiled step of one micro-batch: leave trainer.accumulate at 1 and "
            "trainer.compile at auto.",
        )
        checkpointing = self.activation_checkpointing
        require_choice("trainer.activation_checkpointing", checkpointing, ("none", "selective", "block"))
        require_choice("trainer.on_nonfinite", self.on_nonfinite, ("stop", "skip"))
        require_choice("trainer.eval_part", self.eval_part, ("all", "first", "second"))
        require_choice("trainer.parallel", self.parallel, ("auto", "ddp", "fsdp"))
        require_choice("trainer.save", self.save, ("wait", "async"))
        require(
            not self.shard or self.parallel == "fsdp",
            f"trainer.shard={self.shard} is about parts of a model, but trainer.parallel is {self.parallel}: "
            "set trainer.parallel=fsdp.",
        )
        require(
            not self.patience or self.eval_every > 0,
            f"trainer.patience={self.patience} counts evaluations, but trainer.eval_every is 0: set it too.",
        )


@dataclass
class LoraConfig:
    """Fine-tuning by a product of two thin matrices beside each frozen one. Hu et al. 2021, arXiv:2106.09685."""

    rank: int = 0  # of the products; 0 = no LoRA, every parameter learns
    alpha: float = 16.0  # a product is added times alpha / rank
    on: list[str] = field(default_factory=lambda: ["q", "v"])  # linear layers of the blocks: q, mlp.proj, ...
    train: list[str] = field(default_factory=list)  # what learns besides, by a part of its name: norm, head, ...

    def __post_init__(self) -> None:
        require(self.rank >= 0, f"lora.rank must be 0 or more, but is {self.rank}.")
        require(self.alpha > 0, f"lora.alpha must be above 0, but is {self.alpha}.")
        require(not self.rank or bool(self.on), "lora.on must name a linear layer, but is empty: try [q,v].")
        told = (self.alpha, self.on, self.train) != (16.0, ["q", "v"], [])
        require(bool(self.rank) or not told, "lora.alpha, lora.on and lora.train need a lora.rank: try lora.rank=8.")


@dataclass
class RunConfig:
    """One training run, whole: what `config.yaml` in its directory holds."""

    name: str = "gptlab"  # first folder under runs/, and the W&B project
    seed: int = 0  # of initial values, batches and dropout
    run_dir: str | None = None  # where this run's files go; null: runs/<name>/<date>_<time>
    resume: str | None = None  # a run directory, or latest
    init: str | None = None  # weights to begin with: gpt2, org/name, a directory, a .safetensors file, a run directory
    plugins: list[str] = field(default_factory=list)  # modules and files that register variants
    logger: str = "auto"  # auto, wandb, none
    model: ModelConfig = field(default_factory=ModelConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    data: Any = "python"
    tokenizer: Any = "byte"
    optimizer: Any = "adamw"
    schedule: Any = "cosine"
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        if self.trainer.tokens_per_step is not None:
            self.trainer.accumulate = _micro_batches(self.trainer, self.model.block_size)
        require(
            re.fullmatch(r"\w[\w.-]*", self.name) is not None,
            f"name is one folder under runs/, of letters, digits and . _ -, but is {self.name!r}.",
        )
        require_choice("logger", self.logger, ("auto", "wandb", "none"))
        require(0 <= self.seed < 2**63, f"seed must be a whole number from 0 to 2**63 - 1, but is {self.seed}.")
        require(self.init != "", "init names weights to begin with, but is empty: name them, or leave it out.")
        require(
            self.init is not None or not self.lora.rank,
            f"lora.rank={self.lora.rank} tunes weights that exist: name them, as in init=gpt2.",
        )


def from_dict(tree: Mapping[str, Any]) -> RunConfig:
    """A RunConfig from plain nested data (a composed or a saved config). ConfigError for a key that is not one."""
    tree = dict(tree)
    tree["model"] = _construct(ModelConfig, tree.get("model", {}), "model")
    tree["lora"] = _construct(LoraConfig, tree.get("lora", {}), "lora")
    tree["trainer"] = _construct(TrainerConfig, tree.get("trainer", {}), "trainer")
    return _construct(RunConfig, tree, "")


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The config as plain nested data, for YAML, JSON and W&B."""
    return dataclasses.asdict(config)


def as_spec(spec: str | Mapping[str, Any]) -> dict[str, Any]:
    """A spec in its long form: {name, **options}. ConfigError for what is neither a name nor a mapping."""
    if not isinstance(spec, str | Mapping):
        raise ConfigError(f"A variant is a name, or a mapping of its options, but {spec!r} is neither.")
    return {"name": spec} if isinstance(spec, str) else dict(spec)


def merge_spec(base: Mapping[str, Any], new: str | Mapping[str, Any]) -> dict[str, Any]:
    """`new` over `base`: another variant replaces it whole, the same variant (or none named) changes only options."""
    change = as_spec(new)
    if change.get("name", base["name"]) != base["name"]:
        return change
    return {**base, **change}


def require(rule_holds: bool, message: str) -> None:
    """ConfigError with `message` unless the rule holds."""
    if not rule_holds:
        raise ConfigError(message)


def require_choice(where: str, value: str, choices: tuple[str, ...]) -> None:
    """ConfigError unless `value` is one of `choices`."""
    require(value in choices, f"{where} must be one of {', '.join(choices)}, but is {value!r}.")


def _micro_batches(plan: TrainerConfig, block_size: int) -> int:
    """How many hold `tokens_per_step`. ConfigError where no number does, or `accumulate` says another."""
    wanted, each = plan.tokens_per_step or 0, plan.batch_size * block_size
    n, rest = divmod(wanted, each)
    require(
        n > 0 and rest == 0,
        f"trainer.tokens_per_step must be a multiple of a micro-batch of {each:,} tokens (trainer.batch_size x "
        f"model.block_size), but is {wanted:,}: the nearest is {max(1, round(wanted / each)) * each:,}.",
    )
    require(
        plan.accumulate in (1, n),
        f"trainer.tokens_per_step={wanted:,} asks for {n} micro-batches, but trainer.accumulate={plan.accumulate}: "
        "leave one of the two out.",
    )
    return n


def _construct(cls: type[Any], tree: Mapping[str, Any], where: str) -> Any:
    known = {f.name for f in dataclasses.fields(cls)}
    for key in tree:
        if key not in known:
            path = f"{where}.{key}" if where else key
            raise ConfigError(f"There is no setting {path!r}. {did_you_mean(str(key), known)}")
    return cls(**tree)


def _changes(rule: Any, where: str) -> dict[str, Any]:
    """The slot changes of one rule of `layers`."""
    if not isinstance(rule, Mapping) or "at" not in rule:
        raise ConfigError(f'{where} must be like {{at: "1::2", attention: {{window: 64}}}}, but is {rule!r}.')
    changes = {slot: change for slot, change in rule.items() if slot != "at"}
    require(bool(changes), f"{where} changes nothing: name a slot ({', '.join(LAYER_SLOTS)}) beside at.")
    for slot in changes:
        if slot not in LAYER_SLOTS:
            raise ConfigError(
                f"{where} names {slot!r}, which is not a slot of a layer. {did_you_mean(slot, LAYER_SLOTS)}"
            )
    return changes


def _selected(at: int | str, n_layer: int, where: str) -> range:
    """The layer indices that a Python index or slice picks. ConfigError when it picks none."""
    try:
        if ":" in str(at):
            picked = range(n_layer)[slice(*(int(part) if part.strip() else None for part in str(at).split(":")))]
        else:
            picked = range(n_layer)[int(at) :][: -n_layer <= int(at)]
    except (ValueError, TypeError):
        raise ConfigError(
            f'{where}.at must be a Python index or slice like "0", "-1" or "1::2", but is {at!r}.'
        ) from None
    require(len(picked) > 0, f"{where}.at = {at!r} picks none of the {n_layer} layers.")
    return picked


assert set(LAYER_SLOTS) <= set(SLOTS)
