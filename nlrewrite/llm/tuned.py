"""The tuned step: a reader taught further on the true digits of the explain split, in the words it will be asked in.

In: a reader with weights at hand, sentences, windows, and the activations of the explain split. Out: a folder in
Hugging Face's format with `reader.json`, which is opened as a reader trained here is: the same config and tokenizer,
other weights. Invariants: nothing of a later split is read; how well it reads is told of latents it was not taught by.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from nlrewrite.activations.pairs import Active
from nlrewrite.activations.pairs import read as read_pairs
from nlrewrite.artifacts import Folder
from nlrewrite.language.prompts import Prompts, prompts
from nlrewrite.language.template import template
from nlrewrite.llm import loading, opening
from nlrewrite.llm.reader import copy_tokenizer
from nlrewrite.llm.tuning import Truth, Tuned, digits, fine_tune
from nlrewrite.questions import TunedSpec
from nlrewrite.simulate.rules import read_sentences
from nlrewrite.text.positions import Positions, last_tokens, positions
from nlrewrite.text.tokenizer import token_texts
from nlrewrite.text.tokens import read_windows

if TYPE_CHECKING:
    from nlrewrite.steps import Running

SPLIT = "explain"
WHO = ("kind", "model", "revision", "content", "dtype", "layers", "width", "steps")
"""What of a reader's own account is told of the one that was taught."""


class Shown(Sequence[str]):
    """The context that ends at each position, as the prompt shows it, written out when it is asked for."""

    def __init__(self, where: Positions, texts: Sequence[bytes], window: int, compiled: Prompts) -> None:
        self._where, self._texts, self._window, self._compiled = where, texts, window, compiled

    def __len__(self) -> int:
        return len(self._where)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        tokens = last_tokens(self._where, self._texts, range(len(self))[index], self._window)
        return self._compiled.shown(tokens, (len(tokens) - 1,))


def truths(active: Active, latents: int) -> list[Truth]:
    """Where each latent is active, with its digit there: ninths of its largest activation."""
    grouped = active.by_latent(latents)
    found: list[Truth] = []
    for latent in range(latents):
        position, value = grouped.of(latent)
        found.append(Truth(position, digits(value, float(value.max(initial=0.0)))))
    return found


def build(spec: TunedSpec, inputs: dict[str, Folder], out: Path, running: "Running") -> None:
    about: dict[str, Any] = json.loads(inputs["reader"].path(opening.REFERENCE).read_text(encoding="utf-8"))
    assert about["kind"] in ("trained", "hub", "folder") and not about.get("quantisation"), "it has no weights to teach"
    sentences = read_sentences(inputs["explanations"])
    compiled = prompts(template(spec.prompt), opening.tokenizer(inputs["reader"]), spec.order, name=spec.prompt.name)
    where = positions(read_windows(inputs["tokens"], SPLIT))
    shown = Shown(where, token_texts(inputs["subject"].root()), spec.window, compiled)
    true = truths(read_pairs(inputs["activations"]), len(sentences))
    root = opening.weights(inputs["reader"], about, running.execution)
    dtype = about.get("dtype", "float32")
    model: Any = loading.load(root, running.execution, dtype, attention="sdpa")[0]
    tuned = fine_tune(model, compiled, sentences, shown, true, spec.tune, running.progress)
    _save(model, root, inputs["reader"].root(), out)
    known = sum(bool(sentence) and len(truth.context) > 0 for sentence, truth in zip(sentences, true, strict=True))
    told = _told(spec, tuned, about, dtype, known)
    (out / opening.REFERENCE).write_text(json.dumps(told, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _save(model: Any, root: Path, cuts: Path, out: Path) -> None:
    """The weights; config and tokenizer are those that there were."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig()  # a published one may be refused when it is saved
    model.save_pretrained(out)
    for name in ("config.json", "generation_config.json"):
        (out / name).unlink(missing_ok=True)
        if (root / name).is_file():
            shutil.copyfile(root / name, out / name)
    copy_tokenizer(cuts, out, str(root))


def _told(spec: TunedSpec, tuned: Tuned, about: dict[str, Any], dtype: str, known: int) -> dict[str, Any]:
    last = tuned.losses[-max(1, len(tuned.losses) // 10) :]
    return {
        "kind": "trained",
        "dtype": dtype,
        "tuned_from": {name: about[name] for name in WHO if name in about},
        "tuned_on": {
            "split": SPLIT,
            "latents": known - tuned.after.sentences,
            "template": spec.prompt.name,
            "prompt_sha256": hashlib.sha256(spec.prompt.text.encode()).hexdigest(),
            "order": spec.order,
            "window": spec.window,
        },
        "tune": spec.tune.model_dump(mode="json"),
        "loss": {"first": tuned.losses[0], "last": sum(last) / len(last)},
        "before": tuned.before.fields(),
        "after": tuned.after.fields(),
    }
