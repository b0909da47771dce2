"""What lies on this machine and identifies a result, by its content: filled into a spec before anything is named.

In: a spec and the execution that says where its local sources are. Out: the spec with their hashes and with the texts
of its prompts. Invariant: equal specs mean equal text, equal weights and equal words, wherever they lie; what a spec
names already stays as it is.
"""

from pathlib import Path
from typing import Any

from nlrewrite import specs
from nlrewrite.errors import SettingError
from nlrewrite.execution import Execution
from nlrewrite.specs import RewriteSpec


def filled(spec: RewriteSpec, execution: Execution) -> RewriteSpec:
    """`spec` with the content of its local sources, so that equal names mean equal text and equal weights."""
    from nlrewrite.text.sources import identified

    text, subject = spec.text, spec.subject
    update: dict[str, Any] = {"text": text.model_copy(update={"source": identified(text.source, execution)})}
    if isinstance(subject, specs.FolderSubject) and not subject.content:
        from nlrewrite.subject.load import fingerprint

        if execution.subject_folder is None:
            raise SettingError("subject.kind is folder and no folder is given. Name one with --subject-folder")
        update["subject"] = subject.model_copy(update={"content": fingerprint(Path(execution.subject_folder))})
    if isinstance(spec.coder, specs.CoderSpec):
        from nlrewrite.text import streams

        data = streams.identified(spec.coder.data, execution)
        streams.refuse_overlap(update["text"].source, data)
        update["coder"] = spec.coder.model_copy(update={"data": data})
    elif isinstance(spec.coder, specs.FolderCoder):
        from nlrewrite.coders import files

        update["coder"] = files.identified(spec.coder, execution)
    update |= _asked(spec, execution)
    return spec.model_copy(update=update)


def _asked(spec: RewriteSpec, execution: Execution) -> dict[str, Any]:
    """Who is asked and in which words, by content: the prompts of what is asked, and the files of local models."""
    from nlrewrite.language import template

    update: dict[str, Any] = {}
    written, judged = ("prompt", "refining", "reading"), ("detection", "fuzzing", "intruder")
    prompts = {"reader": {"ask": ("prompt",)}, "writer": {"write": written, "quiz": judged}}
    for who, sections in prompts.items():
        model = getattr(spec, who)
        if isinstance(model, specs.RuleReader):
            continue
        for section, fields in sections.items():
            words = getattr(spec, section)
            texts = {field: template.filled(getattr(words, field), execution.template_folder) for field in fields}
            update[section] = words.model_copy(update=texts)
        if isinstance(model, specs.FolderReader) and not model.content:
            from nlrewrite.subject.load import fingerprint

            if execution.reader_folder is None:
                raise SettingError(f"{who}.kind is folder and no folder is given. Name one with --reader-folder")
            content = fingerprint(Path(execution.reader_folder), "--reader-folder")
            update[who] = model.model_copy(update={"content": content})
    for who in ("reader", "writer", "screener"):
        model = getattr(spec, who)
        if isinstance(model, specs.TrainedReader) and not model.template:
            from nlrewrite.llm.reader import wording

            update[who] = model.model_copy(update={"template": wording()})
    return update
