"""The reader step: the language model that is asked, trained here or named.

In: a reader's spec; for one that is trained here the subject's tokenizer and the explain split. Out: a folder with
`reader.json` (which kind; for a trained one how it was trained and how well it reads) and a fast tokenizer; for a
trained one a model in Hugging Face's format too, for a local folder its files' fingerprint. Invariant: what is named
here is what will be asked: a folder that changed, a model without safetensors or without a fast tokenizer is refused
now and not at the first question.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlrewrite.errors import SettingError
from nlrewrite.questions import (
    FolderReader,
    HubReader,
    PromptSpec,
    ReaderSpec,
    RuleReader,
    ServedReader,
    TrainedReader,
)

if TYPE_CHECKING:
    from nlrewrite.artifacts import Folder
    from nlrewrite.steps import Running

REFERENCE = "reader.json"
TEMPLATE = "reader"
MOST_TOKENS = 8192
"""Tokens of a subject that are single tokens of the reader, the most common ones; others are spelled by bytes."""


def build(spec: ReaderSpec, inputs: Mapping[str, "Folder"], out: Path, running: "Running") -> None:
    match spec:
        case TrainedReader():
            about = _trained(spec, inputs, out, running)
        case HubReader():
            about = _from_hub(spec, out)
        case FolderReader():
            about = _from_folder(spec, running.execution.reader_folder, out)
        case ServedReader():
            about = _served(spec, inputs, out)
        case RuleReader():
            raise AssertionError("the rule reader is no model: there is nothing to keep of it")
    told = {**spec.model_dump(mode="json"), **about}
    (out / REFERENCE).write_text(json.dumps(told, indent=1, sort_keys=True) + "\n", encoding="utf-8")


# -- trained here ------------------------------------------------------------------------------------------------------


def _trained(spec: TrainedReader, inputs: Mapping[str, "Folder"], out: Path, running: "Running") -> dict[str, Any]:
    from transformers.utils import logging as transformers_logging

    from nlrewrite.llm import training
    from nlrewrite.text.positions import positions
    from nlrewrite.text.tokenizer import token_texts
    from nlrewrite.text.tokens import read_windows

    words = wording()
    if spec.template not in ("", words):
        raise SettingError(
            f"the template {TEMPLATE!r} is not the one that this result is named after: its text is {words[:12]}..., "
            f"not {spec.template[:12]}.... Run again to name it anew"
        )
    transformers_logging.disable_progress_bar()
    where = positions(read_windows(inputs["tokens"], "explain"))
    texts = token_texts(inputs["subject"].root())
    cuts, material = taught(spec, where, texts)
    trained = training.train(spec, material, cuts, running.progress, running.work)
    trained.model.save_pretrained(out)
    cuts.save_pretrained(out)
    return {
        "parameters": sum(parameter.numel() for parameter in trained.model.parameters()),
        "cpu_seconds": round(trained.cpu_seconds, 3),
        "curve": trained.curve,
        "judged": trained.judgement.fields(),
        "strengths_alone": trained.control.fields(),
        "trained_on": {
            "split": "explain",
            "questions": spec.steps * spec.batch,
            "template": TEMPLATE,
            "prompt_sha256": words,
        },
    }


def prompt() -> PromptSpec:
    """The prompt that a reader trained here is trained on, and is to be asked with."""
    from nlrewrite.language.template import filled

    return filled(PromptSpec(name=TEMPLATE), None)


def wording() -> str:
    """sha256 of that prompt's text, by which a reader that is trained with it is named."""
    return hashlib.sha256(prompt().text.encode()).hexdigest()


def taught(spec: TrainedReader, where: Any, texts: list[bytes]) -> tuple[Any, Any]:
    """The reader's tokenizer, and what its lessons are made of. `where`: the positions of the explain split."""
    import numpy as np

    from nlrewrite.language.prompts import prompts
    from nlrewrite.language.template import template
    from nlrewrite.language.vocabulary import Vocabulary
    from nlrewrite.llm import spelling, training
    from nlrewrite.llm.lessons import Teacher

    vocabulary = Vocabulary(tuple(texts))
    seen = np.bincount(vocabulary.first_V[where.token], minlength=len(texts))
    common = np.argsort(-seen, kind="stable")[:MOST_TOKENS]
    known = [texts[token] for token in common.tolist() if texts[token]]
    words = spelling.words_of(" ".join(piece for piece in template(prompt()).turn))
    cuts = spelling.tokenizer(known, words)
    asked = prompts(template(prompt()), cuts, spec.order)
    ids = cuts([form for text in texts for form in spelling.forms(text)], add_special_tokens=False)["input_ids"]
    spelled = [np.array(each, dtype=np.int64) for each in ids]
    teacher = Teacher(where, vocabulary, spec.window, spec.held_out, spec.seed)
    return cuts, training.Material(teacher, asked, spelled[::2], spelled[1::2], spec.window)


# -- named -------------------------------------------------------------------------------------------------------------


def _from_hub(spec: HubReader, out: Path) -> dict[str, Any]:
    """Keep the tokenizer; the weights are fetched when the model is loaded."""
    from nlrewrite.subject import load

    root = load.download(spec.model, spec.revision, ("config.json", *load.TOKENIZER))
    where = f"{spec.model} at {spec.revision[:12]}"
    names = load.hub_files(spec.model, spec.revision, ("model*.safetensors", "pytorch_model*.bin"))
    if not any(name.endswith(".safetensors") for name in names):
        load.refuse_pickles(where, names)
        raise SettingError(f"{where} has no model.safetensors. Choose another with --set reader.revision")
    copy_tokenizer(root, out, where)
    return {}


def _from_folder(spec: FolderReader, folder: str | None, out: Path) -> dict[str, Any]:
    from nlrewrite.subject import load

    if folder is None:
        raise SettingError("reader.kind is folder and no folder is named. Name one with --reader-folder")
    root = Path(folder)
    found = load.fingerprint(root)
    if found != spec.content:
        raise SettingError(
            f"{root} is not the folder that this result is named after: its content is {found[:12]}..., not "
            f"{spec.content[:12] or 'given'}.... Run again to name it anew"
        )
    copy_tokenizer(root, out, str(root))
    return {}


def _served(spec: ServedReader, inputs: Mapping[str, "Folder"], out: Path) -> dict[str, Any]:
    from nlrewrite.subject import load

    if not spec.tokenizer:
        if "subject" not in inputs:
            raise SettingError(
                "a served reader needs a tokenizer that cuts its prompts, and none is named. "
                "Name one with --set reader.tokenizer and --set reader.tokenizer_revision"
            )
        copy_tokenizer(inputs["subject"].root(), out, "the subject")
        return {}
    if not spec.tokenizer_revision:
        raise SettingError(
            f"the revision of the tokenizer {spec.tokenizer} is not chosen. "
            f"Choose one with --set reader.tokenizer_revision=<commit>"
        )
    copy_tokenizer(load.download(spec.tokenizer, spec.tokenizer_revision, load.TOKENIZER), out, spec.tokenizer)
    return {}


def copy_tokenizer(root: Path, out: Path, where: str) -> None:
    """The files that make a fast tokenizer."""
    from nlrewrite.subject.load import TOKENIZER

    if not (root / "tokenizer.json").is_file():
        raise SettingError(
            f"{where} has no tokenizer.json. Save the model and its fast tokenizer to a folder, each with "
            f"save_pretrained, and use --set reader.kind=folder"
        )
    for name in (*TOKENIZER, "chat_template.jinja"):
        if (root / name).is_file():
            shutil.copyfile(root / name, out / name)
