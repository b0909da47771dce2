"""The command line: `nlrewrite run | study | train-coder | sweep | replace | plan | pilot | status | show | ...`.

In: options and a few environment variables. Out: text on standard output, progress and errors on standard error, and an
exit code that says which kind of failure it was (`errors.py`). Invariant: nothing but the parser is imported before a
command is known, so that help is instant, and a run whose steps are all there loads no numeric library.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nlrewrite.options import Act, parser

if TYPE_CHECKING:
    from nlrewrite.artifacts import Artifact, Store
    from nlrewrite.execution import Execution
    from nlrewrite.profiles import Overrides
    from nlrewrite.spending import Spent
    from nlrewrite.terminal import Output


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser(ACTS).parse_args(arguments)
    import logging

    from nlrewrite.terminal import Output, guarded, show_log

    output = Output(json=options.json, quiet=options.quiet, verbose=options.verbose)
    told = options.command in WALK_OF and not (output.json or output.quiet)
    show_log(logging.INFO if told or output.verbose else logging.WARNING)
    return guarded(lambda: options.act(options, output), output)


# -- commands ---------------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace, output: "Output") -> int:
    from nlrewrite import filling, pipeline, printing, profiles, terminal
    from nlrewrite.coders import followers

    execution = _execution(options)
    overrides, _ = _spent(options, execution)
    walk = WALK_OF[options.command]
    spec = profiles.settled(options.profile, overrides)
    profiles.require_runnable(options.profile, spec, walk)
    pipeline.check_refresh(options.refresh, pipeline.labels(spec, walk))
    for library in ("OMP", "OPENBLAS", "MKL", "RAYON"):
        os.environ[f"{library}_NUM_THREADS"] = str(execution.threads)
    os.environ["TQDM_DISABLE"] = "1"  # bars of libraries, which would tear ours
    if not (options.local or followers.several()):
        _hand_over_to_flow(options, overrides, execution, output)
    with followers.together(execution) as leads:
        if not leads:
            return 0
        spec = filling.filled(spec, execution)
        silent = output.quiet or output.json
        progress = terminal.progress(silent)
        outcome = pipeline.run_local(spec, options.profile, options.refresh, execution, progress, walk)
    print(printing.finished(outcome, output))
    return 0


def _hand_over_to_flow(
    options: argparse.Namespace, overrides: "Overrides", execution: "Execution", output: "Output"
) -> None:
    """Become the process that runs the flow; does not come back."""
    import json

    from nlrewrite.errors import SettingError

    checkouts = (Path.cwd(), Path(__file__).resolve().parents[1])
    root = next((folder for folder in checkouts if (folder / "flows" / "launch.py").is_file()), None)
    if root is None:
        raise SettingError(
            "the Prefect flows live in the checkout, and there is none here. "
            "Change into it, or run the same steps in this process with: nlrewrite run --local"
        )
    places = (
        *("store", "runs", "scratch", "text_folder", "subject_folder", "reader_folder", "template_folder"),
        *("coder_folder", "stream_folder", "token_rows"),
    )
    absolute = {
        name: os.path.abspath(value)
        for name in places
        if (value := getattr(execution, name)) is not None and "://" not in value
    }
    parameters = {
        "flow": {"run": "rewrite"}.get(options.command, options.command),
        "profile": options.profile,
        "overrides": overrides.model_dump(mode="json"),
        "refresh": options.refresh,
        "execution": execution.model_copy(update=absolute if root != Path.cwd() else {}).model_dump(mode="json"),
    }
    output.write(os.environ)
    os.chdir(root)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "flows.launch", json.dumps(parameters)])


def _plan(options: argparse.Namespace, output: "Output") -> int:
    from nlrewrite import planning, printing, profiles
    from nlrewrite.llm.rates import Prices

    execution = _execution(options)
    overrides, spent = _spent(options, execution)
    spec = profiles.resolve(options.profile, overrides, execution)
    plan = planning.plan(options.profile, spec, options.refresh, execution, Prices.parse(options.price))
    if output.json:
        _print_json(plan.printable() | ({} if spent is None else {"spent": spent.printable()}))
    else:
        print(printing.plan_text(plan))
        if spent is not None:
            print(f"\n{printing.spent_text(spent)}")
        if plan.needs:
            print(f"not here yet: {'; '.join(profiles.CAPABILITIES[need] for need in plan.needs)}")
    return 0


def _pilot(options: argparse.Namespace, output: "Output") -> int:
    from nlrewrite import filling, pipeline, planning, printing, profiles, terminal

    execution = _execution(options)
    spec = profiles.settled(options.profile, _overrides(options))
    profiles.require_runnable(options.profile, spec)
    spec = filling.filled(spec, execution)
    result = pipeline.run_pilot(spec, options.profile, execution, terminal.progress(output.quiet or output.json))
    whole = planning.plan(options.profile, spec, (), execution).whole
    if output.json:
        _print_json({**result, "whole_queries": whole})
    else:
        print(printing.pilot_text(result, whole))
    return 0


def _status(options: argparse.Namespace, output: "Output") -> int:
    from nlrewrite import planning, profiles, terminal

    execution = _execution(options)
    spec = profiles.resolve(options.profile, _overrides(options), execution)
    plan = planning.plan(options.profile, spec, (), execution)
    if output.json:
        _print_json(plan.printable())
        return 0
    rows = [
        (
            row.step,
            str(row.artifact),
            row.state,
            row.made,
            terminal.size(row.bytes) if row.bytes is not None else "",
            "sources edited since" if row.drift else "",
        )
        for row in plan.rows
    ]
    print(terminal.table(("step", "artifact", "state", "built", "size", "drift"), rows, right=("size",)))
    return 0


def _show(options: argparse.Namespace, output: "Output") -> int:
    from nlrewrite import terminal
    from nlrewrite.errors import StoreError

    store = _store(options)
    artifact = _named(store, options.artifact)
    finding = store.find(artifact)
    manifest = finding.manifest
    if manifest is None:
        raise StoreError(f"{artifact} is not in {store.uri}. See what is there with: nlrewrite status")
    if output.json:
        _print_json({"state": finding.state, "why": finding.why, **manifest.model_dump(mode="json")})
        return 0
    import json

    print(f"{artifact}  {finding.state}: {finding.why}")
    print(f"attempt {manifest.attempt}, version {manifest.version}, {terminal.size(manifest.bytes)}\n")
    print(f"spec: {json.dumps(manifest.spec, indent=1, ensure_ascii=False)}\n")
    if manifest.inputs:
        inputs = [(name, str(record.artifact), record.attempt) for name, record in manifest.inputs.items()]
        print(f"{terminal.table(('input', 'artifact', 'attempt'), inputs)}\n")
    files = [(entry.path, str(entry.bytes), entry.sha256[:16]) for entry in manifest.files]
    print(f"{terminal.table(('file', 'bytes', 'sha256'), files, right=('bytes',))}\n")
    print(f"made: {json.dumps(manifest.made.model_dump(mode='json'), indent=1)}")
    return 0


def _verify(options: argparse.Namespace, output: "Output") -> int:
    from nlrewrite.errors import CorruptArtifact

    store = _store(options)
    artifacts = [_named(store, name) for name in options.artifacts] or store.listed()
    problems = {str(artifact): found for artifact in artifacts if (found := store.verify(artifact))}
    if output.json:
        _print_json({"verified": len(artifacts), "problems": problems})
    else:
        for found in problems.values():
            print("\n".join(found))
        print(f"{len(artifacts) - len(problems)} of {len(artifacts)} artifacts in {store.uri} are as they were written")
    return CorruptArtifact.exit_code if problems else 0


def _gc(options: argparse.Namespace, output: "Output") -> int:
    store = _store(options)
    garbage = store.garbage()
    removed = 0 if options.dry_run else store.collect(garbage)
    if output.json:
        _print_json({"attempts": sorted(garbage), "removed_objects": removed})
    else:
        for attempt in sorted(garbage):
            print(attempt)
        print(f"attempts that {'would go' if options.dry_run else 'are gone'}: {len(garbage)}, of {store.uri}")
    return 0


def _report(options: argparse.Namespace, output: "Output") -> int:
    from nlrewrite.errors import SettingError
    from nlrewrite.profiles import chosen

    chosen(options.profile)
    folder = Path(options.runs) / options.profile
    report, results = folder / "report.html", folder / "results.json"
    if not report.is_file():
        raise SettingError(f"there is no report at {report}. Make it with: nlrewrite run --profile {options.profile}")
    if output.json:
        _print_json({"report": str(report), "results": str(results)})
    else:
        print(report)
    if options.open:
        import webbrowser

        webbrowser.open(report.resolve().as_uri())
    return 0


def _prompts(options: argparse.Namespace, output: "Output") -> int:
    from nlrewrite import terminal
    from nlrewrite.language import showing, template

    name, folder = options.template, options.template_folder
    if name is None:
        listed = showing.listed(folder)
        if output.json:
            _print_json(dict(listed))
        else:
            print(terminal.table(("template", "asks"), listed))
        return 0
    text = template.text_of(name, folder)
    read = template.read(text, name)
    if options.example:
        text = showing.example(read, name, options.order, options.model, options.scored)
    if output.json:
        _print_json({"name": name, "text": text})
    else:
        print(text)
    return 0


def _coder(options: argparse.Namespace, output: "Output") -> int:
    from nlrewrite import steps, terminal
    from nlrewrite.coders import showing

    place = Path(options.coder)
    named = not place.exists() and options.coder.partition("/")[0] in steps.STEPS
    store = _store(options) if named else None
    folder = store.folder(_named(store, options.coder)) if store is not None else place
    shown = showing.opened(folder, options.source)
    known = (
        showing.convert(shown, Path(options.target), options.format) if "target" in options else showing.facts(shown)
    )
    if output.json:
        _print_json(known)
    else:
        print(terminal.table(("of the coder", "is"), showing.rows(known)))
    return 0


WALK_OF = {"run": "rewrite", "study": "rewrite", "train-coder": "train-coder", "sweep": "sweep", "replace": "replace"}
"""What each command that runs something walks through, by its name in `composition.WALKS`."""

ACTS: dict[str, Act] = {
    **dict.fromkeys(WALK_OF, _run),
    "plan": _plan,
    "pilot": _pilot,
    "status": _status,
    "show": _show,
    "verify": _verify,
    "gc": _gc,
    "report": _report,
    "prompts": _prompts,
    "coder": _coder,
}


# -- from options to what the library takes ---------------------------------------------------------------------------


def _execution(options: argparse.Namespace) -> "Execution":
    from pydantic import ValidationError

    from nlrewrite.errors import SettingError
    from nlrewrite.execution import Execution

    names = (
        *("store", "runs", "scratch", "threads", "device", "text_folder", "subject_folder"),
        *("coder_folder", "stream_folder", "token_rows", "save_seconds", "fast_products"),
        *("reader_folder", "template_folder", "engine", "endpoint", "endpoint_model", "concurrency", "spend"),
    )
    given = {name: getattr(options, name) for name in names}
    try:
        return Execution.model_validate({**given, "prices": options.price})
    except ValidationError as error:
        raise SettingError(_sentence(error)) from error


def _overrides(options: argparse.Namespace) -> "Overrides":
    from pydantic import ValidationError

    from nlrewrite.errors import SettingError
    from nlrewrite.profiles import Overrides, flat, probing
    from nlrewrite.specs import PROBES

    settings = [*(flat(_config(options.config)) if options.config else ()), *options.set]
    try:
        overrides = Overrides.model_validate({"seed": options.seed, "protocol": options.protocol, "settings": settings})
    except ValidationError as error:
        raise SettingError(_sentence(error)) from error
    named = options.probes or ("all" if options.command == "study" else None)
    if named is None:
        return overrides
    return probing(overrides, PROBES if named == "all" else [name.strip() for name in named.split(",")])


def _spent(options: argparse.Namespace, execution: "Execution") -> "tuple[Overrides, Spent | None]":
    """The overrides, with the settings that a budget decides where one is given."""
    overrides = _overrides(options)
    if getattr(options, "budget", None) is None:
        return overrides, None
    from nlrewrite.llm.rates import Prices
    from nlrewrite.spending import spend

    spent = spend(options.profile, overrides, execution, options.budget, Prices.parse(options.price))
    return spent.overrides, spent


def _config(path: str) -> dict[str, Any]:
    import yaml

    from nlrewrite.errors import SettingError

    try:
        fields = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingError(f"there is no file {path}. Change --config") from error
    except yaml.YAMLError as error:
        raise SettingError(f"{path} is neither YAML nor JSON: {' '.join(str(error).split())}. Correct it") from error
    if not isinstance(fields, dict):
        raise SettingError(f"{path} must hold settings by name, such as coder: {{k: 8}}: it holds {fields!r}")
    return fields


def _sentence(error: Any) -> str:
    first = error.errors()[0]
    option = str(first["loc"][0]).replace("_", "-")
    return f"--{option}: {first['msg'][:1].lower()}{first['msg'][1:]}, not {first['input']!r}. Change --{option}"


def _store(options: argparse.Namespace) -> "Store":
    from nlrewrite.artifacts import Store

    execution = _execution(options)
    return Store(execution.store, execution.scratch)


def _named(store: "Store", name: str) -> "Artifact":
    """The one artifact whose name begins so."""
    from nlrewrite.errors import SettingError

    kind, slash, digits = name.partition("/")
    listed = store.listed()
    found = [each for each in listed if each.kind == kind and each.digest.startswith(digits)]
    if not found and not slash:
        found = [each for each in listed if each.digest.startswith(name)]
    if len(found) != 1:
        many = ", ".join(str(each) for each in found[:6])
        raise SettingError(
            f"{name!r} fits {len(found)} artifacts of {store.uri}: {many}. Give more digits"
            if found
            else f"no artifact of {store.uri} is called {name!r}. Give kind/digest as the steps table shows it"
        )
    return found[0]


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=1, ensure_ascii=False))
