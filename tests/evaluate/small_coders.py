"""Coders whose effect on a loss is known, a small subject, and windows of two splits."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from nlrewrite.artifacts import Artifact, Folder, Store
from nlrewrite.artifacts.manifest import Provenance
from nlrewrite.coders import form
from nlrewrite.coders.form import Coder
from nlrewrite.seeds import generator, torch_generator
from nlrewrite.specs import MeasureSpec, Site, Spec
from nlrewrite.subject import sites
from nlrewrite.subject.sites import Located
from nlrewrite.text.tokens import Windows
from tests.subject import small_models

WIDTH = small_models.WIDTH
SPEC = MeasureSpec(windows=100, resamples=200)
MADE = Provenance(
    time="2026-01-01T00:00:00Z", seconds=1.0, run="test", commit="", dirty=False, source="", packages={}, execution={}
)


def windows(count: int = 12, seed: int = 0) -> Windows:
    """Documents of two windows each, of several lengths."""
    draws = generator(seed, "windows")
    ids = draws.integers(1, small_models.VOCABULARY, (count, 13)).astype(np.int32)
    place = np.arange(count, dtype=np.int32)
    return Windows(ids, draws.integers(4, 13, count).astype(np.int32), place // 2, place // 2, np.zeros_like(place))


def spoken(model: torch.nn.Module, count: int = 24, seed: int = 0) -> Windows:
    """The same with what the model itself says, so that it loses by whatever is done to it."""
    every = windows(count, seed)
    ids = torch.from_numpy(every.tokens.astype(np.int64))
    draws = torch_generator(seed, "spoken")
    for place in range(ids.shape[1] - 1):
        chances = torch.softmax(2 * sites.logits(model, ids[:, : place + 1])[:, -1], -1)
        ids[:, place + 1] = torch.multinomial(chances, 1, generator=draws)[:, 0]
    return replace(every, tokens=ids.numpy().astype(np.int32))


def at(model: torch.nn.Module, layer: int, kind: str = "mlp") -> Located:
    return sites.locate(model, Site(kind=kind, layer=layer))


def identity(activation: str = "topk") -> Coder:
    """An SAE that gives x back to the bit: relu(x) - relu(-x)."""
    both = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    return Coder(both, torch.zeros(2 * WIDTH), both.clone(), torch.zeros(WIDTH), None, 2 * WIDTH, activation)


def silent(y_E: torch.Tensor, latents: int = 6) -> Coder:
    """A coder none of whose latents is ever active, so that it writes its bias."""
    return Coder(torch.zeros(latents, WIDTH), -torch.ones(latents), torch.ones(latents, WIDTH), y_E, None, 2)


def random(k: int, seed: int = 0, latents: int = 24) -> Coder:
    draws = torch_generator(seed, "coder")
    enc, dec = (torch.randn(latents, WIDTH, generator=draws) for _ in range(2))
    return Coder(enc, torch.zeros(latents), 0.1 * dec, torch.zeros(WIDTH), None, k)


def commit(store: Store, kind: str, files: Mapping[str, Any], spec: Any, number: int = 0) -> Folder:
    """An artifact with these files, JSON or bytes, or what a function writes into its folder."""
    artifact = Artifact(kind=kind, digest=f"{number:016x}")
    with store.attempt(artifact) as attempt:
        for name, content in files.items():
            if callable(content):
                content(attempt.folder)
            elif isinstance(content, bytes):
                (attempt.folder / name).write_bytes(content)
            else:
                (attempt.folder / name).write_text(json.dumps(content))
        store.commit(attempt, version=1, spec=spec, inputs={}, made=MADE, instead_of=None)
    return store.folder(artifact)


def saved(coder: Coder) -> Any:
    return lambda folder: form.save(coder, folder)


def subject(store: Store, family: str = "gpt2") -> Folder:
    model = small_models.fresh(family)

    def save(folder: Path) -> None:
        small_models.save(model, folder)

    return commit(store, "subject", {"model": save}, Spec())


def tokens(store: Store) -> Folder:
    def save(folder: Path) -> None:
        for seed, split in enumerate(("report", "explain")):
            save_file(asdict(windows(seed=seed)), folder / f"{split}.safetensors")

    return commit(store, "tokens", {"splits": save}, Spec())
