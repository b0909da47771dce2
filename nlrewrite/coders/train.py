"""Train a TopK coder on the subject's activations at a site.

In: the subject and the train split's token stream. Out: the coder, its loss curve and its share of live latents.
Invariant: it starts from the constant function (W_dec = W_skip = 0, b_dec = mean y, encoder bias centred on the first
batch), minimises the squared error alone, and the order of the data is a function of the seed.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nlrewrite.artifacts import Folder
from nlrewrite.coders import form
from nlrewrite.errors import SettingError
from nlrewrite.seeds import generator, torch_generator
from nlrewrite.specs import CoderSpec
from nlrewrite.subject import load, sites
from nlrewrite.text.tokens import read_stream

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nlrewrite.steps import Running

CONTEXT = 64
RESERVOIR_TOKENS = 1 << 16
HELD_OUT_TOKENS = 1 << 13
LIVE_TOKENS = 1 << 16
LIVE = 1e-4  # a latent is live when it is active on more than one token in ten thousand
WARM_UP = 50
DECAY = 0.3  # the share of training, at its end, in which the learning rate falls to zero


def build(spec: CoderSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    import torch

    model = load.model(inputs["subject"], running.execution)
    located = sites.locate(model, spec.site)
    stream_N = read_stream(inputs["tokens"])
    batches = _Activations(model, located, stream_N, spec, running.execution.batch_tokens)
    held_out_x, held_out_y = batches.next(HELD_OUT_TOKENS)
    coder = initial(spec, *batches.next(HELD_OUT_TOKENS))
    for parameter in coder.parameters():
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(coder.parameters(), lr=spec.rate, betas=(0.9, 0.999))
    curve = []
    with running.progress.stage("train the coder", spec.steps) as advance:
        for step in range(spec.steps):
            x_ND, y_NE = batches.next(spec.batch)
            code = coder.encode(x_ND)
            loss = (coder.decode(code) + coder.beside(x_ND) - y_NE).square().sum(-1).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = spec.rate * schedule(step, spec.steps)
            optimizer.step()
            if step % 50 == 0 or step == spec.steps - 1:
                with torch.no_grad():
                    curve.append({"step": step, "fvu": fvu(coder, held_out_x, held_out_y)})
                advance(0, f"FVU {curve[-1]['fvu']:.3f}")
            advance(1)
    with torch.no_grad():
        summary = {
            "curve": curve,
            "fvu": curve[-1]["fvu"],
            "live_share": live_share(coder, batches, LIVE_TOKENS),
            "site": located.name,
            "tokens_seen": spec.steps * spec.batch,
        }
    form.save(coder, out)
    (out / "training.json").write_text(json.dumps(summary, indent=1))


def initial(spec: CoderSpec, x_ND: "Tensor", y_NE: "Tensor") -> form.Coder:
    """The constant function: nothing decoded, no skip, the mean as bias; latents centred on the data."""
    import torch

    draws = torch_generator(spec.seed, "coder", "weights")
    enc_LD = torch.nn.functional.normalize(torch.randn(spec.width, x_ND.shape[1], generator=draws), dim=-1)
    enc_LD = enc_LD / x_ND.std(0).mean()
    return form.Coder(
        enc_LD=enc_LD,
        enc_bias_L=-(enc_LD @ x_ND.mean(0)),
        dec_LE=torch.zeros(spec.width, y_NE.shape[1]),
        dec_bias_E=y_NE.mean(0),
        skip_ED=torch.zeros(y_NE.shape[1], x_ND.shape[1]) if spec.skip else None,
        k=spec.k,
    )


def fvu(coder: form.Coder, x_ND: "Tensor", y_NE: "Tensor") -> float:
    """Fraction of variance unexplained."""
    error = (coder.decode(coder.encode(x_ND)) + coder.beside(x_ND) - y_NE).square().sum()
    return float(error / (y_NE - y_NE.mean(0)).square().sum())


def live_share(coder: form.Coder, batches: "_Activations", tokens: int) -> float:
    import torch

    counts = torch.zeros(coder.latents, dtype=torch.int64)
    for _ in range(tokens // HELD_OUT_TOKENS):
        code = coder.encode(batches.next(HELD_OUT_TOKENS)[0])
        counts += torch.bincount(code.indices[code.values > 0], minlength=coder.latents)
    return float((counts > LIVE * tokens).float().mean())


def schedule(step: int, steps: int) -> float:
    """Linear warm-up, constant, linear decay to zero."""
    return min(1.0, (step + 1) / WARM_UP, (steps - step) / max(1.0, DECAY * steps))


class _Activations:
    """An endless stream of (x, y) rows: random windows of the token stream, mixed in a reservoir."""

    def __init__(
        self, model: "nn.Module", located: sites.Located, stream_N: np.ndarray, spec: CoderSpec, batch_tokens: int
    ) -> None:
        self._model, self._located, self._stream_N = model, located, stream_N
        self._windows = generator(spec.seed, "coder", "windows")
        self._mixing = torch_generator(spec.seed, "coder", "mixing")
        self._windows_at_once = max(1, batch_tokens // CONTEXT)
        self._rows: tuple[Tensor, Tensor] | None = None
        self._at = 0
        if len(stream_N) <= CONTEXT:
            raise SettingError(
                f"the text is too short to train a coder on: the train split has {len(stream_N)} tokens, a window has "
                f"{CONTEXT}. Give more text"
            )

    def next(self, count: int) -> "tuple[Tensor, Tensor]":
        if self._rows is None or self._at + count > len(self._rows[0]):
            self._rows, self._at = self._fresh(max(RESERVOIR_TOKENS, count)), 0
        x_ND, y_NE = self._rows
        rows = slice(self._at, self._at + count)
        self._at += count
        return x_ND[rows], y_NE[rows]

    def _fresh(self, tokens: int) -> "tuple[Tensor, Tensor]":
        import torch

        starts = self._windows.integers(0, len(self._stream_N) - CONTEXT, -(-tokens // CONTEXT))
        ids = torch.from_numpy(self._stream_N[starts[:, None] + np.arange(CONTEXT)].astype(np.int64))
        parts = ids.split(self._windows_at_once)  # execution alone: which windows there are does not depend on it
        records = [sites.activations_upto(self._model, self._located, part) for part in parts]
        order = torch.randperm(ids.numel(), generator=self._mixing)
        x_ND = torch.cat([record.x.flatten(0, 1) for record in records])[order]
        return x_ND, torch.cat([record.y.flatten(0, 1) for record in records])[order]
