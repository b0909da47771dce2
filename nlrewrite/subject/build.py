"""The subject step: a model folder in the store, whoever made the model.

In: a subject spec and the corpus it may be trained on. Out: `subject.json` (kind, dtype, model type; model id and
revision of a hub subject), the tokenizer, and the weights unless they stay on the hub. Invariant: what is stored is
what the spec names: a folder that changed since it was named, pickled weights and unknown families are refused here and
not at the first forward pass.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from nlrewrite import specs
from nlrewrite.artifacts import Folder
from nlrewrite.errors import SettingError
from nlrewrite.steps import Running
from nlrewrite.subject import load


def build(spec: specs.SubjectSpec, inputs: Mapping[str, Folder], out: Path, running: Running) -> None:
    match spec:
        case specs.TinySubject():
            from nlrewrite.subject import tiny

            tiny.train(spec, _texts(inputs["corpus"], "train"), _texts(inputs["corpus"], "explain"), out, running)
            model_type = _known_family(out)
        case specs.HubSubject():
            model_type = _from_hub(spec, out)
        case specs.FolderSubject():
            model_type = _from_folder(spec, running.execution.subject_folder, out)
    named = spec.model_dump(include={"kind", "dtype", "model", "revision"})
    about = {"dtype": "float32", **named, "model_type": model_type}
    (out / load.REFERENCE).write_text(json.dumps(about, indent=1, sort_keys=True))


def _texts(corpus: Folder, split: specs.Split) -> list[str]:
    import pyarrow.parquet as parquet

    table = parquet.read_table(
        corpus.path("documents.parquet"), columns=["text", "split"], filters=[("split", "=", split)]
    )
    return table["text"].to_pylist()


def _from_hub(spec: specs.HubSubject, out: Path) -> str:
    """Keep the tokenizer; the weights are fetched when the model is loaded."""
    root = load.download(spec.model, spec.revision, ("config.json", *load.TOKENIZER))
    model_type = _known_family(root)
    where = f"{spec.model} at {spec.revision[:12]}"
    names = load.hub_files(spec.model, spec.revision, ("model*.safetensors", "pytorch_model*.bin"))
    if not any(name.endswith(".safetensors") for name in names):
        load.refuse_pickles(where, names)
        raise SettingError(f"{where} has no model.safetensors. Choose another with --set subject.revision")
    if not (root / "tokenizer.json").is_file():
        raise SettingError(
            f"{where} has no tokenizer.json. Save the model and its fast tokenizer to a folder, each with "
            f"save_pretrained, and use --set subject.kind=folder"
        )
    for name in load.TOKENIZER:
        if (root / name).is_file():
            shutil.copyfile(root / name, out / name)
    return model_type


def _from_folder(spec: specs.FolderSubject, folder: str | None, out: Path) -> str:
    if folder is None:
        raise SettingError("subject.kind is folder and no folder is named. Name one with --subject-folder")
    root = Path(folder)
    found = load.fingerprint(root)
    if found != spec.content:
        raise SettingError(
            f"{root} is not the folder that this result is named after: its content is {found[:12]}..., not "
            f"{spec.content[:12] or 'given'}.... Run again to name it anew"
        )
    model_type = _known_family(root)
    for name in load.model_files(root):
        shutil.copyfile(root / name, out / name)
    return model_type


def _known_family(folder: Path) -> str:
    from nlrewrite.subject import sites

    model_type = str(json.loads((folder / "config.json").read_text()).get("model_type"))
    sites.family(model_type)
    return model_type
