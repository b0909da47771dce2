"""Specs of sparse coders: what a coder is, how it is trained or where it comes from, and what is made of several.

In: a profile and the user's overrides. Out: frozen models, each a part of what identifies a result. Invariant: that of
`specs.py`, which has all specs under one name. A coder is y_hat = W_dec' act(W_enc x + b_enc) + W_skip x + b_dec.
"""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from nlrewrite.errors import SettingError
from nlrewrite.material import HubDataset, Revision, Sha256, Spec

NEW: dict[str, Any] = {"since": 4}
Format = Literal["auto", "sparsify", "saelens", "gemma-scope", "gpt2-transcoders", "dictionary-learning", "openai"]


class Site(Spec):
    """A place in the subject: what the coder reads and what its reconstruction replaces."""

    kind: Literal["mlp", "mlp-output", "residual"] = Field(
        default="mlp", description="mlp: input to output (transcoder); mlp-output and residual: SAE of that tensor."
    )
    layer: int = Field(default=2, ge=0, le=1024, description="Index of the layer, from 0.")


# -- what a coder is trained on ---------------------------------------------------------------------------------------


class SplitTokens(Spec):
    """The train split of the corpus, as the tokens step has it."""

    kind: Literal["split"] = "split"


class HubTokens(HubDataset):
    """Documents of a Hugging Face dataset at a fixed revision, streamed, tokenized and packed on the way."""

    documents: int = Field(default=100_000_000, ge=1, description="Documents to read at most.")
    first: int = Field(default=0, ge=0, description="Documents to pass over first, for instance those of the corpus.")
    tokens: int = Field(default=10_000_000, ge=1024, description="Token ids to take, end-of-text ids included.")


class FolderTokens(Spec):
    """Every *.txt, *.md and *.rst file below the folder that the execution names (stream_folder), one document each."""

    kind: Literal["folder"] = "folder"
    content: Sha256 = Field(default="", description="Filled in: sha256 of the files.")


class TokenRows(Spec):
    """A file of token ids without a header (token_rows in the execution), rows of equal length one after another."""

    kind: Literal["rows"] = "rows"
    content: Sha256 = Field(default="", description="Filled in: sha256 of the file.")
    dtype: Literal["uint16", "uint32", "int32"] = Field(default="uint16", description="Type of an id, little-endian.")
    row: int = Field(default=2049, ge=2, le=1 << 20, description="Ids in a row; the published Pile has 2,049.")


CoderTokens = Annotated[SplitTokens | HubTokens | FolderTokens | TokenRows, Field(discriminator="kind")]


# -- coders -----------------------------------------------------------------------------------------------------------


class CoderSpec(Spec):
    """A sparse coder trained here."""

    kind: Literal["trained"] = Field(default="trained", json_schema_extra=NEW)
    site: Site = Site()
    width: int = Field(default=1024, ge=2, le=1 << 20, description="Number of latents.")
    k: int = Field(
        default=16, ge=1, le=4096, description="Latents active on a token: exactly (topk), or on average (batchtopk)."
    )
    skip: bool = Field(default=True, description="A linear path beside the latents (skip transcoder).")
    steps: int = Field(default=1500, ge=1, le=100_000_000)
    batch: int = Field(default=1024, ge=2, le=1 << 22, description="Tokens in one training step.")
    learning_rate: float | None = Field(
        default=2e-3,
        gt=0,
        lt=1,
        description="null: the sources' rule, 2e-4 (adam) or 5e-3 (signum) over the root of latents / 16,384.",
    )
    seed: int = Field(default=0, ge=0, lt=1 << 31)
    activation: Literal["topk", "batchtopk", "jumprelu", "relu"] = Field(
        default="topk",
        description="topk: the k largest of a token; batchtopk: the batch x k largest of a batch, and a threshold "
        "afterwards; jumprelu: those above a learned threshold; relu: those above zero.",
        json_schema_extra=NEW,
    )
    penalty: float = Field(
        default=0.0,
        ge=0,
        description="Weight of what keeps latents silent: their L1 norm (relu) or their number (jumprelu).",
        json_schema_extra=NEW,
    )
    penalty_warm_up: int = Field(
        default=0, ge=0, description="Steps in which the penalty rises to its weight.", json_schema_extra=NEW
    )
    threshold: float = Field(
        default=0.1, gt=0, description="Where the thresholds of jumprelu start.", json_schema_extra=NEW
    )
    bandwidth: float = Field(
        default=0.1, gt=0, description="Width of the window in which a threshold learns.", json_schema_extra=NEW
    )
    loss: Literal["squared", "fvu", "relative"] = Field(
        default="squared",
        description="squared: squared error of a token; fvu: that over the batch's variance; relative: that over the "
        "norm of what is to be written.",
        json_schema_extra=NEW,
    )
    init: Literal["constant", "uniform", "tied", "random"] = Field(
        default="constant",
        description="constant and uniform start from the mean, with encoder rows of unit length on the data's scale or "
        "uniform ones (the published transcoders); tied: the decoder is the encoder, of unit length (the SAEs); "
        "random: both are drawn, the decoder of unit length (for relu transcoders).",
        json_schema_extra=NEW,
    )
    unit_decoder: bool = Field(
        default=False, description="Keep the decoder's rows at unit length.", json_schema_extra=NEW
    )
    tied_bias: bool = Field(
        default=False, description="Subtract the decoder's bias from what is read (SAEs).", json_schema_extra=NEW
    )
    optimizer: Literal["adam", "signum"] = Field(
        default="adam", description="signum: schedule-free, without warm-up or decay.", json_schema_extra=NEW
    )
    momentum: float = Field(default=0.95, ge=0, lt=1, description="Of signum.", json_schema_extra=NEW)
    warm_up: int = Field(
        default=50, ge=0, description="Steps in which the learning rate of adam rises.", json_schema_extra=NEW
    )
    decay: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="Share of the steps after warm-up, at their end, in which the learning rate falls to zero.",
        json_schema_extra=NEW,
    )
    auxk: int = Field(
        default=0, ge=0, le=65536, description="Dead latents that reconstruct the error (AuxK).", json_schema_extra=NEW
    )
    auxk_weight: float = Field(default=1 / 32, ge=0, le=10, json_schema_extra=NEW)
    dead_after: int = Field(
        default=10_000_000, ge=1, description="Tokens without activation after which it is dead.", json_schema_extra=NEW
    )
    data: CoderTokens = Field(default=SplitTokens(), json_schema_extra=NEW)
    order: Literal["drawn", "shuffled", "sequential"] = Field(
        default="drawn",
        description="drawn: windows from anywhere in the stream; shuffled: whole rows, each once an epoch; "
        "sequential: rows as they stand (the published order).",
        json_schema_extra=NEW,
    )
    window: int = Field(
        default=64, ge=8, le=65536, description="Tokens the subject sees at a time.", json_schema_extra=NEW
    )
    mix: int = Field(
        default=1 << 16,
        ge=0,
        le=1 << 26,
        description="Tokens whose activations are mixed before they are used; 0: as they come.",
        json_schema_extra=NEW,
    )
    order_seed: int | None = Field(
        default=None, ge=0, lt=1 << 31, description="Seed of the data's order; null: seed.", json_schema_extra=NEW
    )
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="What the encoder multiplies in; weights and optimizer stay float32.",
        json_schema_extra=NEW,
    )

    @property
    def rate(self) -> float:
        """The learning rate at its highest."""
        if self.learning_rate is not None:
            return self.learning_rate
        return {"adam": 2e-4, "signum": 5e-3}[self.optimizer] / (self.width / (1 << 14)) ** 0.5

    @model_validator(mode="after")
    def _check(self) -> "CoderSpec":
        if self.k > self.width:
            raise ValueError(
                f"k must be at most the number of latents: k={self.k}, latents={self.width}. Lower --set coder.k"
            )
        if self.skip and self.site.kind != "mlp":
            raise ValueError(
                f"only an mlp site can have a skip term, for elsewhere it would copy its input: "
                f"site={self.site.kind}. Use --set coder.skip=false"
            )
        if self.site.kind == "mlp" and (self.tied_bias or self.init == "tied"):
            name = "tied_bias=false" if self.tied_bias else "init=uniform"
            raise ValueError(
                f"an mlp site reads one thing and writes another, and cannot tie them: tied_bias={self.tied_bias}, "
                f"init={self.init}. Use --set coder.{name}"
            )
        if self.unit_decoder and self.init not in ("tied", "random"):
            better = "random" if self.site.kind == "mlp" else "tied"
            raise ValueError(
                f"a decoder of unit length cannot start from zero: init={self.init}. Use --set coder.init={better}"
            )
        if self.penalty and self.activation not in ("relu", "jumprelu"):
            raise ValueError(
                f"only relu and jumprelu have a penalty: activation={self.activation}, penalty={self.penalty:g}. "
                f"Use --set coder.penalty=0"
            )
        if self.auxk and self.activation not in ("topk", "batchtopk"):
            raise ValueError(f"only topk and batchtopk have AuxK: auxk={self.auxk}. Use --set coder.auxk=0")
        if self.auxk > self.width:
            raise ValueError(
                f"auxk must be at most the number of latents: {self.auxk}, {self.width}. Lower --set coder.auxk"
            )
        return self


class PublishedCoder(Spec):
    """What is said of a coder that was trained elsewhere; the file is held to it."""

    format: Format = Field(default="auto", description="Whose file format; auto: told by the files.")
    path: str = Field(
        default="",
        description="Folder or file in the repository or folder, for instance layers.6.mlp; {layer} stands for the "
        "site's layer.",
    )
    site: Site = Site()
    width: int = Field(default=1024, ge=2, le=1 << 20, description="Number of latents the file must have.")
    k: int = Field(
        default=16, ge=1, le=4096, description="Latents active on a token; on average, where the file has no such k."
    )
    least_explained: float = Field(
        default=0.0,
        le=1,
        description="Share of variance that it must explain on a few tokens; below it the run warns, for then coder "
        "and site do not fit.",
    )


class HubCoder(PublishedCoder):
    """A coder of a Hugging Face repository at a fixed revision."""

    kind: Literal["hub"] = "hub"
    repo: str = Field(min_length=1, description="Repository, for instance EleutherAI/sae-pythia-160m-32k.")
    revision: Revision


class FolderCoder(PublishedCoder):
    """A coder in a local folder or file; the execution says where (coder_folder)."""

    kind: Literal["folder"] = "folder"
    content: Sha256 = Field(default="", description="Filled in: sha256 of its files.")


def _named(spec: Any) -> Any:
    """A coder that does not say where it is from is trained here, as all were once."""
    return {"kind": "trained", **spec} if isinstance(spec, dict) else spec


AnyCoderSpec = Annotated[
    Annotated[CoderSpec | HubCoder | FolderCoder, Field(discriminator="kind")], BeforeValidator(_named)
]
Coders = CoderSpec | HubCoder | FolderCoder


def at_layer(coder: Coders, layer: int) -> Coders:
    """The same coder at another layer: its site, and the layer that its path names."""
    site = coder.site.model_copy(update={"layer": layer})
    update: dict[str, Any] = {"site": site}
    if isinstance(coder, PublishedCoder):
        update["path"] = coder.path.replace("{layer}", str(layer))
    return coder.model_copy(update=update)


# -- what is made of several coders -----------------------------------------------------------------------------------


class SweepSpec(Spec):
    """Coders that differ in one setting, trained by one pass of the subject, and what each costs."""

    over: Literal["k", "penalty", "seed", "layer", "width"] = Field(
        default="k", description="The setting of the coder that varies."
    )
    values: tuple[float, ...] = Field(
        default=(4, 8, 16, 32), min_length=1, max_length=64, description="Its values, one coder each."
    )

    @model_validator(mode="after")
    def _once(self) -> "SweepSpec":
        if len(set(self.values)) < len(self.values):
            named = ", ".join(f"{each:g}" for each in self.values)
            raise ValueError(f"sweep.values names one twice: {named}. Name each once")
        broken = next((each for each in self.values if each != int(each)), None)
        if self.over != "penalty" and broken is not None:
            raise ValueError(
                f"sweep.values are whole numbers when sweep.over={self.over}, not {broken:g}. Change --set sweep.values"
            )
        return self

    def coders(self, coder: Coders) -> "dict[str, Coders]":
        """One coder for each value, by label; coders that differ in their seed read the data in one order."""
        return {f"coder-{value:g}": _varied(coder, self.over, value) for value in self.values}


def _varied(coder: Coders, over: str, value: float) -> Coders:
    if over == "layer":
        return at_layer(coder, int(value))
    if not isinstance(coder, CoderSpec):
        raise SettingError(
            f"only a coder trained here has another {over}: coder.kind={coder.kind}. Use --set sweep.over=layer"
        )
    if over == "penalty" and coder.activation not in ("relu", "jumprelu"):
        raise SettingError(
            f"only relu and jumprelu have a penalty to vary: coder.activation={coder.activation}. "
            f"Use --set sweep.over=k, or --set coder.activation=relu"
        )
    if over == "k" and coder.activation not in ("topk", "batchtopk"):
        raise SettingError(
            f"only topk and batchtopk keep k latents: coder.activation={coder.activation}, and its coders would be "
            f"alike. Use --set sweep.over=penalty"
        )
    update: dict[str, Any] = {over: value if over == "penalty" else int(value)}
    if over == "seed":
        update["order_seed"] = coder.seed if coder.order_seed is None else coder.order_seed
    try:
        return CoderSpec.model_validate(coder.model_dump() | update)
    except ValidationError as error:
        message = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise SettingError(f"sweep.over={over}, value {value:g}: {message}") from error


class MeasureSpec(Spec):
    """What a coder in place of what it stands for costs: next-token loss and KL, beside mean and zero ablation."""

    windows: int = Field(default=512, ge=1, description="Windows of the report split to measure on, at most.")
    resamples: int = Field(default=1000, ge=200, le=100_000, description="Bootstrap resamples over document groups.")
    seed: int = Field(default=0, ge=0, lt=1 << 31)


class LayersSpec(Spec):
    """The layers whose sites are replaced at the same time, one coder each; the coder's other settings are shared."""

    layers: tuple[Annotated[int, Field(ge=0, le=1024)], ...] = Field(
        default=(0, 1, 2), min_length=1, description="Every layer to replace, named one by one."
    )

    @model_validator(mode="after")
    def _once(self) -> "LayersSpec":
        if len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers.layers names one twice: {', '.join(map(str, self.layers))}. Name each once")
        return self

    def coders(self, coder: Coders) -> "dict[str, Coders]":
        """One coder for each layer, by label."""
        return {f"coder-{layer}": at_layer(coder, layer) for layer in self.layers}
