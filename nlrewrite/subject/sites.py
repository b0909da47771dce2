"""Places in the subject where a coder reads and writes: finding them, recording them, patching them.

In: a causal language model of one of four families and a `specs.Site`. Out: the tensors x (what the coder reads) and y
(what its reconstruction replaces) at every token, or the logits with y replaced, at one site or at several at once.
Windows are padded on the right, for attention is causal: no mask is given. Invariant: patching y by itself changes no
bit of the logits, and every way to a tensor or a logit here (`recorded`, `activations_upto`, `patched`, `Tail`, `Stem`)
runs the same operations on the same numbers.

| kind       | x                 | y                                                                                 |
|------------|-------------------|-----------------------------------------------------------------------------------|
| mlp        | input of the MLP  | output of the MLP, before Gemma 2's norm on it and before it joins the residual   |
| mlp-output | y                 | as above                                                                          |
| residual   | y                 | hidden states that leave the layer                                                |
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nlrewrite.errors import SettingError
from nlrewrite.specs import Site

Replace = Callable[[Tensor, Tensor], Tensor]
"""replace(x_BTD, y_BTD) -> the [batch, tokens, d] that stands in y's place; all float32."""
ORDER = ("mlp", "mlp-output", "residual")
"""Kinds of site in the order in which a layer comes to them; the first two are one tensor."""


@dataclass(frozen=True)
class Family:
    """Where a family of models keeps its layers and, inside a layer, its attention and its MLP."""

    layers: str
    attention: str
    mlp: str = "mlp"


FAMILIES = {
    "gpt_neox": Family("gpt_neox.layers", "attention"),
    "gpt2": Family("transformer.h", "attn"),
    "llama": Family("model.layers", "self_attn"),
    "gemma2": Family("model.layers", "self_attn"),
}


@dataclass(frozen=True)
class Located:
    """A site found in a model. `name` is the path of the module that is read and patched."""

    site: Site
    family: Family

    @property
    def name(self) -> str:
        return self.layer_name if self.site.kind == "residual" else f"{self.layer_name}.{self.family.mlp}"

    @property
    def layer_name(self) -> str:
        return f"{self.family.layers}.{self.site.layer}"

    @property
    def reads_input(self) -> bool:
        """Whether x is the module's input; else it is its output, which is always y."""
        return self.site.kind == "mlp"

    @property
    def depth(self) -> tuple[int, int]:
        """Sites in the order of their depths are in the order in which a forward pass comes to them."""
        return self.site.layer, ORDER.index(self.site.kind)


Patch = tuple[Located, Replace]


@dataclass
class Record:
    """What passed the site in the latest forward pass: detached, float32."""

    _x: Tensor | None = None
    _y: Tensor | None = None

    @property
    def x(self) -> Tensor:
        assert self._x is not None, "nothing has passed the site yet: run a forward pass first"
        return self._x

    @property
    def y(self) -> Tensor:
        assert self._y is not None, "nothing has passed the site yet: run a forward pass first"
        return self._y


def family(model_type: str) -> Family:
    if model_type not in FAMILIES:
        raise SettingError(
            f"sites are known for the model families {', '.join(FAMILIES)}: this subject's model_type is "
            f"{model_type!r}. Choose another with --set subject.model"
        )
    return FAMILIES[model_type]


def locate(model: nn.Module, site: Site) -> Located:
    """The site in `model`; a SettingError if the model has no such layer or is of no known family."""
    config: Any = model.config
    located = Located(site, family(config.model_type))
    layers = config.num_hidden_layers
    if site.layer >= layers:
        raise SettingError(
            f"the subject has layers 0 to {layers - 1}: coder.site.layer={site.layer}. Lower --set coder.site.layer"
        )
    return located


def dims(model: nn.Module, located: Located) -> tuple[int, int]:
    """Width of x and width of y: the residual stream's in all families and kinds."""
    config: Any = model.config
    return config.hidden_size, config.hidden_size


def logits(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """Next-token logits [batch, tokens, vocabulary] in float32."""
    with torch.no_grad():
        return _forward(model, ids_BT).logits.float()


@contextmanager
def recorded(model: nn.Module, located: Located) -> Iterator[Record]:
    """While open, every forward pass leaves what passed the site in the record."""
    record = Record()

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        record._x, record._y = _tensors(located, args, output)

    handle = model.get_submodule(located.name).register_forward_hook(hook)
    try:
        yield record
    finally:
        handle.remove()


@contextmanager
def patched(model: nn.Module, located: Located, replace: Replace) -> Iterator[None]:
    """While open, y is replaced by `replace(x, y)` in every forward pass."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return _replaced(output, replace(*_tensors(located, args, output)))

    handle = model.get_submodule(located.name).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def patched_all(model: nn.Module, patches: Sequence[Patch]) -> Iterator[None]:
    """While open, y is replaced at all of the sites; what a later one is given, the patches below have changed."""
    _refuse_twice([located for located, _ in patches])
    with ExitStack() as stack:
        for located, replace in patches:
            stack.enter_context(patched(model, located, replace))
        yield


def activations_upto(model: nn.Module, located: Located, ids_BT: Tensor) -> Record:
    """What passes the site for `ids_BT`, without running what comes after it."""
    with recorded(model, located) as record, ending(model, located), torch.no_grad():
        try:
            _forward(model, ids_BT)
        except Reached:
            return record
    raise AssertionError(f"a forward pass never reached {located.name}")


@contextmanager
def ending(model: nn.Module, located: Located) -> Iterator[None]:
    """While open, a forward pass ends at the site with `Reached`, and leaves out what the site does not read.

    That is the attention of its layer where the MLP stands beside it.
    """

    def stop(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        raise Reached

    config: Any = model.config
    with ExitStack() as stack:
        stack.callback(model.get_submodule(located.name).register_forward_hook(stop).remove)
        if located.site.kind != "residual" and getattr(config, "use_parallel_residual", False):
            attention = model.get_submodule(f"{located.layer_name}.{located.family.attention}")
            stack.enter_context(_answering(attention, (torch.zeros(()), None)))
        yield


class Stem:
    """One pass over a batch, kept at several sites: many patches of one or more, each without what lies below them.

    The layers below the lowest patch and the attention beside it do not depend on it: they answer with what they gave
    in the first pass, and the lowest site with its patch. The rest runs as ever: the logits are those of `patched_all`,
    to the bit.
    """

    def __init__(self, model: nn.Module, located: Sequence[Located], ids_BT: Tensor) -> None:
        _refuse_twice(located)
        self._model, self._ids = model, ids_BT
        self._given: dict[tuple[str, str], Any] = {}
        with ExitStack() as hooks:
            self.records = {each: hooks.enter_context(recorded(model, each)) for each in located}
            handles = [handle for each in located for handle in self._keeping(each)]
            for handle in handles:
                hooks.callback(handle.remove)
            self.original = logits(model, ids_BT)

    def logits(self, patches: Sequence[Patch]) -> Tensor:
        """Logits [batch, tokens, vocabulary], float32, with y replaced at every one of these sites."""
        _refuse_twice([located for located, _ in patches])
        if not patches:
            return self.original
        (lowest, replace), *above = sorted(patches, key=lambda patch: patch[0].depth)
        record = self.records[lowest]
        output = _replaced(self._given["site", lowest.name], replace(record.x, record.y))
        layers = self._model.get_submodule(lowest.family.layers)
        assert isinstance(layers, nn.ModuleList)
        with patched_all(self._model, above), ExitStack() as stack:
            for below in layers[: lowest.site.layer]:
                stack.enter_context(_answering(below, self._given["below", lowest.layer_name]))
            attention = self._model.get_submodule(f"{lowest.layer_name}.{lowest.family.attention}")
            stack.enter_context(_answering(attention, self._given["attention", lowest.layer_name]))
            stack.enter_context(_answering(self._model.get_submodule(lowest.name), output))
            return logits(self._model, self._ids)

    def _keeping(self, located: Located) -> Iterator[Any]:
        layer = self._model.get_submodule(located.layer_name)
        yield layer.register_forward_pre_hook(self._keep_input(located.layer_name), with_kwargs=True)
        attention = layer.get_submodule(located.family.attention)
        yield attention.register_forward_hook(self._keep_output("attention", located.layer_name))
        yield self._model.get_submodule(located.name).register_forward_hook(self._keep_output("site", located.name))

    def _keep_input(self, name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._given["below", name] = args[0] if args else kwargs["hidden_states"]

        return hook

    def _keep_output(self, label: str, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._given[label, name] = output

        return hook


class Tail:
    """The part of the model above one site, over one batch: many patches, each without running what lies below."""

    def __init__(self, model: nn.Module, located: Located, ids_BT: Tensor) -> None:
        self._located, self._stem = located, Stem(model, [located], ids_BT)
        record = self._stem.records[located]
        self.original, self.x, self.y = self._stem.original, record.x, record.y

    def logits(self, replace: Replace) -> Tensor:
        """Logits [batch, tokens, vocabulary], float32, with y replaced by `replace(x, y)`."""
        return self._stem.logits([(self._located, replace)])


class Reached(Exception):
    """Leaves a forward pass at the site."""


def _refuse_twice(located: Sequence[Located]) -> None:
    """SettingError where two sites are one tensor: which of two patches would stand there depends on their order."""
    seen: dict[str, Located] = {}
    for each in located:
        if each.name in seen:
            raise SettingError(
                f"a tensor can be replaced once: {each.name} is written by two sites ({seen[each.name].site.kind} and "
                f"{each.site.kind} of layer {each.site.layer}). Leave one of them out"
            )
        seen[each.name] = each


def _forward(model: nn.Module, ids_BT: Tensor) -> Any:
    config: Any = model.config
    if ids_BT.shape[1] > config.max_position_embeddings:
        raise SettingError(
            f"the subject reads at most {config.max_position_embeddings} tokens: a window has {ids_BT.shape[1]}. "
            f"Lower --set tokens.window"
        )
    return model(input_ids=ids_BT, use_cache=False)


def _tensors(located: Located, args: tuple[Any, ...], output: Any) -> tuple[Tensor, Tensor]:
    y = _first(output).detach().float()
    return (args[0].detach().float() if located.reads_input else y), y


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _replaced(output: Any, y: Tensor) -> Any:
    """`output` of a module with the tensor `y`, in the module's own dtype, in the place of its (first) tensor."""
    old = _first(output)
    assert y.shape == old.shape, f"a patch must have the site's shape {tuple(old.shape)}, not {tuple(y.shape)}"
    new = y.to(old.dtype)
    return (new, *output[1:]) if isinstance(output, tuple) else new


@contextmanager
def _answering(module: nn.Module, output: Any) -> Iterator[None]:
    """While open, `module` gives `output` whatever it is asked, and computes nothing."""
    assert "forward" not in vars(module)
    module.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del module.forward
