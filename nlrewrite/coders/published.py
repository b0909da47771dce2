"""Take a coder from elsewhere: fetch it, read it, fit it to the subject's site, measure it there, write it down.

In: a repository at a revision or a local folder, the subject and its tokens. Out: the same files as training leaves,
`coder.safetensors`, `coder.json`, `training.json` (with no curve) and `record.json`. Invariant: the files are held to
what the spec says of them (width, and the k of a topk); what was measured decides nothing but the k of other coders,
their mean L0, and says through a warning when coder and site do not seem to fit.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nlrewrite.artifacts import Folder
from nlrewrite.coders import files, form, formats, record
from nlrewrite.coders.fitting import Fit, measured
from nlrewrite.coders.form import Coder
from nlrewrite.coders.formats import Loaded, folding
from nlrewrite.coders.record import Record
from nlrewrite.coding import FolderCoder, HubCoder
from nlrewrite.errors import SettingError, Unreachable
from nlrewrite.execution import Execution
from nlrewrite.subject import load, sites
from nlrewrite.subject.sites import Located
from nlrewrite.text.rows import rows

if TYPE_CHECKING:
    from nlrewrite.steps import Running

log = logging.getLogger(__name__)

TOKENS = 1 << 12  # measured on about so many, the last of the train split
WINDOW = 64
DRIFT = 0.05  # an FVU that differs from the recorded one by more is another coder, another site or other text
FACTOR = 2.0  # an L0 that differs from what the spec says by more is


def build(spec: HubCoder | FolderCoder, inputs: Mapping[str, Folder], out: Path, running: "Running") -> None:
    path, source = fetched(spec, running.execution)
    loaded, kept = formats.load(path, spec.format), recorded(path)
    model = load.model(inputs["subject"], running.execution)
    located = sites.locate(model, spec.site)
    hold(loaded, spec)
    coder, folded = fitted(loaded, model, located)
    centred = (folded and loaded.about.kind != "sae") or (kept is not None and kept.centred)
    with running.progress.stage("measure the coder", 1) as advance:
        ids_BT = held_out(inputs["tokens"], model, running.execution)
        fit = measured(coder, model, located, ids_BT, running.execution.batch_tokens, centred)
        advance(1, f"FVU {fit.fvu:.3f}")
    if coder.activation != "topk":
        coder = replace(coder, k=max(1, round(fit.l0)))
    for warning in warnings(loaded, fit, spec, kept):
        log.warning("%s", warning)
    form.save(coder, out)
    known = described(coder, loaded, fit, spec, source, kept).model_copy(update={"centred": centred})
    if folded:
        now = {"hook_in": f"{located.name}, input", "folded_from": loaded.about.hook_in}
        known = known.model_copy(update=now)
    record.write(known, out)
    summary = {"curve": [], "site": located.name, "tokens_seen": known.tokens or 0, **asdict(fit)}
    (out / "training.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")


# -- where it comes from ----------------------------------------------------------------------------------------------


def fetched(spec: HubCoder | FolderCoder, execution: Execution) -> tuple[Path, str]:
    """The coder's folder or file on this machine, and the words that name its source."""
    if isinstance(spec, FolderCoder):
        root = files.folder(execution)
        found = files.fingerprint(root, spec.path)
        named = spec.content in ("", found)
        if not (named or files.among_layers(spec.content, root, spec.path, spec.site.layer)):
            raise SettingError(
                f"the files of the coder in {root / spec.path} are not those whose sha256 begins with "
                f"{spec.content[:16]}. Put them back, or leave out coder.content"
            )
        return root / spec.path, f"sha256:{found}"
    patterns = tuple(files.patterns(spec.path))
    root = load.download(spec.repo, spec.revision, patterns, "coder.repo", "coder.revision")
    path = root / spec.path
    if not path.exists() or (path.is_dir() and not any((root / each).is_file() for each in patterns)):
        raise Unreachable(
            f"{spec.repo} at {spec.revision[:12]} has no coder at {spec.path or 'its top'}. Change --set coder.path"
        )
    return path, f"{spec.repo}@{spec.revision}" + (f"/{spec.path}" if spec.path else "")


def recorded(path: Path) -> Record | None:
    """The record that lies beside the files, as `nlrewrite coder convert` leaves one."""
    folder = path if path.is_dir() else path.parent
    return record.read(folder) if files.RECORD in {each.name for each in files.files(path)} else None


# -- what it must be --------------------------------------------------------------------------------------------------


def hold(loaded: Loaded, spec: HubCoder | FolderCoder) -> None:
    """Refuse a coder that is not what the spec says of it."""
    coder = loaded.coder
    if coder.latents != spec.width:
        raise SettingError(
            f"the coder has {coder.latents} latents, and the spec says {spec.width}. "
            f"Use --set coder.width={coder.latents}, or choose another coder"
        )
    if coder.activation == "topk" and coder.k != spec.k:
        raise SettingError(
            f"the coder keeps the {coder.k} largest latents, and the spec says {spec.k}. "
            f"Use --set coder.k={coder.k}, or choose another coder"
        )


def fitted(loaded: Loaded, model: nn.Module, located: Located) -> tuple[Coder, bool]:
    """The coder of what the site reads, and whether the subject's LayerNorm was folded into it for that."""
    coder, about = loaded.coder, loaded.about
    reads, writes = sites.dims(model, located)
    if (coder.enc_LD.shape[1], coder.dec_LE.shape[1]) != (reads, writes):
        raise SettingError(
            f"the coder reads {coder.enc_LD.shape[1]} numbers and writes {coder.dec_LE.shape[1]}, and the site "
            f"{located.name} of the subject has {reads} and {writes}. Choose another coder, or change --set coder.site"
        )
    config: Any = model.config
    if not folding.reads_normalised(about.hook_in):
        return coder, False
    if config.model_type not in folding.NORMS and loaded.format != "gpt2-transcoders":
        return coder, False  # taken as what the MLP reads: there is no bias to fold, and no mean was taken off
    return folding.folded(coder, *folding.norm_before(model, located)), True


def held_out(tokens: Folder, model: nn.Module, execution: Execution) -> Tensor:
    """Windows [B, T] from the end of the train split."""
    config: Any = model.config
    found = rows(tokens, execution, min(WINDOW, config.max_position_embeddings))
    return torch.from_numpy(found.read(found.held_out(TOKENS)))


def warnings(loaded: Loaded, fit: Fit, spec: HubCoder | FolderCoder, kept: Record | None) -> list[str]:
    """What speaks against this coder at this site."""
    about, site, found = loaded.about, spec.site, list[str]()
    where = f"{site.kind} of layer {site.layer}"
    if not fit.fvu <= 1 - spec.least_explained:
        hook = about.hook_in or (kept.hook_in if kept is not None else None)
        model = about.model or (kept.model if kept is not None else None)
        found.append(
            f"the coder leaves {fit.fvu:.3g} of the variance at the {where} unexplained, more than "
            f"{1 - spec.least_explained:.3g}: coder and site do not seem to fit. Its files "
            + (
                f"say that it reads {hook or 'a place they do not name'}"
                if hook or model
                else "do not say what it reads"
            )
            + (f" of {model}" if model else "")
        )
    if kept is not None and kept.fvu is not None and abs(kept.fvu - fit.fvu) > DRIFT:
        found.append(f"the coder's record says FVU {kept.fvu:.3g}, and here it is {fit.fvu:.3g} at the {where}")
    before = about.layer is not None and (about.hook_in or "").endswith("hook_resid_pre")
    layer = about.layer - 1 if about.layer is not None and before else about.layer
    if layer is not None and layer != site.layer:
        found.append(f"the coder's files name layer {layer} ({about.hook_in}), and it stands at the {where}")
    if (about.kind != "sae") != (site.kind == "mlp"):
        wanted = "a residual or mlp-output site" if about.kind == "sae" else "an mlp site"
        found.append(
            f"the coder's files say that it is of kind {about.kind}, for {wanted}, and it stands at the {where}"
        )
    if loaded.coder.activation != "topk" and not 1 / FACTOR <= fit.l0 / spec.k <= FACTOR:
        found.append(
            f"the spec says that about {spec.k} latents are active on a token, and {fit.l0:.3g} are: "
            f"--set coder.k={max(1, round(fit.l0))} says so to what plans by it"
        )
    return found


# -- what is written down ---------------------------------------------------------------------------------------------


def described(
    coder: Coder, loaded: Loaded, fit: Fit, spec: HubCoder | FolderCoder, source: str, kept: Record | None
) -> Record:
    about = loaded.about
    own = Record(
        kind=record.kind_of(coder, spec.site),
        format=loaded.format,
        source=source,
        site=spec.site,
        hook_in=about.hook_in,
        hook_out=about.hook_out,
        model=about.model,
        data=_word(loaded, "dataset_path", "dataset"),
        steps=_number(loaded, "steps"),
        tokens=_number(loaded, "total_training_tokens", "training_tokens"),
        width=coder.latents,
        k=coder.k,
        fvu=fit.fvu,
        l0=fit.l0,
        measured_on=fit.tokens,
    )
    if kept is None:
        return own
    of_training = ("hook_in", "hook_out", "model", "revision", "data", "steps", "tokens")
    return own.model_copy(update={name: getattr(kept, name) for name in of_training if getattr(own, name) is None})


def _said(loaded: Loaded, names: tuple[str, ...]) -> Any:
    """The first of these settings that the files have, at their top or one level below."""
    levels = [loaded.about.said, *(each for each in loaded.about.said.values() if isinstance(each, dict))]
    return next((level[name] for level in levels for name in names if level.get(name) is not None), None)


def _word(loaded: Loaded, *names: str) -> str | None:
    found = _said(loaded, names)
    return found if isinstance(found, str) else None


def _number(loaded: Loaded, *names: str) -> int | None:
    found = _said(loaded, names)
    return int(found) if isinstance(found, int | float) else None
