"""The command line: `nlrewrite run | study | plan | pilot | status | show | verify | gc | report | prompts`.

In: options and a few environment variables. Out: text on standard output, progress and errors on standard error, and an
exit code that says which kind of failure it was (`errors.py`). Invariant: nothing but the parser is imported before a
command is known, so that help is instant, and a run whose steps are all there loads no numeric library.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nlrewrite.artifacts import Artifact, Store
    from nlrewrite.execution import Execution
    from nlrewrite.profiles import Overrides
    from nlrewrite.spending import Spent
    from nlrewrite.terminal import Output

EXAMPLES = """examples:
  nlrewrite run                                     rewrite the tiny model's last MLP, under Prefect
  nlrewrite run --local --set coder.k=8             the same steps in this process, with another k
  nlrewrite study --probes ladder                   the same, and where the published protocol loses
  nlrewrite plan --set evaluate.resamples=4000      what a run would build, and why
  nlrewrite plan --profile pythia-160m-transcoder   what a published experiment takes
  nlrewrite pilot --set pilot.latents=200           what a run will come to, asked of some latents
  nlrewrite show coder/1f2e                         what an artifact is made of; a few digits are enough
  nlrewrite report --open                           the last report in the browser
"""
ENGINES = "what runs a language model that is asked: auto, packed, reference, vllm or server (NLREWRITE_ENGINE)"
PROFILES = (
    "tiny (default), tiny-no-skip, tiny-sae, tiny-reader, smoke, smoke-reader; published settings to plan with: "
    "pythia-160m-transcoder, pythia-160m-transcoder-p1, pythia-160m-sae, smollm2-135m-transcoder, gemma-2-9b-sae, "
    "gpt2-small-transcoders"
)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    import logging

    from nlrewrite.terminal import Output, guarded, show_log

    output = Output(json=options.json, quiet=options.quiet, verbose=options.verbose)
    told = options.command in ("run", "study") and not (output.json or output.quiet)
    show_log(logging.INFO if told or output.verbose else logging.WARNING)
    return guarded(lambda: options.act(options, output), output)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="nlrewrite",
        description="Rewrite one layer of a language model in natural language, and measure what it costs in loss.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    everywhere, settings = _everywhere(), _settings()

    def command(
        name: str, act: Callable[[argparse.Namespace, "Output"], int], parents: list[Any], text: str
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=parents, help=text, description=f"{text[:1].upper()}{text[1:]}.")
        added.set_defaults(act=act)
        return added

    run = command("run", _run, [everywhere, settings], "build what is missing and write the report")
    text = "run, and answer the questions about the method, all of them unless --probes names some"
    study = command("study", _run, [everywhere, settings], text)
    for each in (run, study):
        each.add_argument("--local", action="store_true", help="in this process, without Prefect")
    plan = command("plan", _plan, [everywhere, settings], "say what a run would build, why, and how much work it is")
    for each in (run, study, plan):
        text = "most that questions to a language model may take: '2M queries', '5e9 tokens', '40 gpu-hours', '$200'"
        each.add_argument("--budget", metavar="AMOUNT", help=text)
        text = "prompt=, cached= and new= for a million tokens, or DEVICE= for an hour, as A100=1.5; can be repeated"
        each.add_argument("--price", action="append", default=[], metavar="NAME=VALUE", help=text)
        text = "rebuild this step (label or kind), and what is made from it; can be repeated"
        each.add_argument("--refresh", action="append", default=[], metavar="STEP", help=text)
    text = "ask about some latents in some contexts, and say what the whole rewriting will come to"
    command("pilot", _pilot, [everywhere, settings], text)
    command("status", _status, [everywhere, settings], "show the artifacts of a profile, their age and their size")
    show = command("show", _show, [everywhere], "show what an artifact is made of")
    show.add_argument("artifact", metavar="KIND/DIGEST", help="the first digits of the digest are enough")
    verify = command("verify", _verify, [everywhere], "read every byte of the store and compare it with its hash")
    verify.add_argument("artifacts", nargs="*", metavar="KIND/DIGEST", help="only these")
    gc = command("gc", _gc, [everywhere], "remove attempts that nothing names and that are older than a week")
    gc.add_argument("--dry-run", action="store_true", help="only say what would go")
    report = command("report", _report, [everywhere, settings], "say where a profile's report is")
    report.add_argument("--open", action="store_true", help="open it in the browser")
    prompts = command("prompts", _prompts, [everywhere], "list the templates of prompts, or show one")
    prompts.add_argument("template", nargs="?", metavar="NAME", help="print its text")
    prompts.add_argument("--example", action="store_true", help="print a question as the model sees it, and its cut")
    prompts.add_argument("--order", choices=("context", "explanation"), default="context", help="which half is first")
    prompts.add_argument("--scored", action="store_true", help="with a score in it")
    prompts.add_argument("--model", metavar="FOLDER", help="as it is asked in this model's chat")
    return top


def _everywhere() -> argparse.ArgumentParser:
    at = os.environ.get
    options = argparse.ArgumentParser(add_help=False)
    group = options.add_argument_group("where and how")
    group.add_argument(
        "--store", default=at("NLREWRITE_STORE", "store"), help="folder or s3://bucket/prefix (NLREWRITE_STORE)"
    )
    group.add_argument("--runs", default=at("NLREWRITE_RUNS", "runs"), help="folder of the reports (NLREWRITE_RUNS)")
    group.add_argument("--threads", default=at("NLREWRITE_THREADS", "1"), help="compute threads (NLREWRITE_THREADS)")
    group.add_argument("--device", default=at("NLREWRITE_DEVICE", "cpu"), help="cpu, cuda or cuda:N (NLREWRITE_DEVICE)")
    group.add_argument(
        "--text-folder", metavar="FOLDER", help="folder of text files, with --set text.source.kind=folder"
    )
    group.add_argument("--subject-folder", metavar="FOLDER", help="local model folder, with --set subject.kind=folder")
    group.add_argument("--engine", default=at("NLREWRITE_ENGINE", "auto"), help=ENGINES)
    group.add_argument(
        "--endpoint",
        default=at("NLREWRITE_ENDPOINT"),
        metavar="URL",
        help="OpenAI-compatible server, with --engine server; its key is read from NLREWRITE_API_KEY",
    )
    group.add_argument("--endpoint-model", metavar="NAME", help="name the endpoint knows the model by, if another")
    group.add_argument("--concurrency", default=8, metavar="N", help="requests to the endpoint at the same time")
    group.add_argument("--reader-folder", metavar="FOLDER", help="local model folder, with --set reader.kind=folder")
    group.add_argument("--template-folder", metavar="FOLDER", help="folder of prompt templates of your own")
    group.add_argument("--json", action="store_true", help="print JSON and nothing else")
    group.add_argument("-q", "--quiet", action="store_true", help="no progress")
    group.add_argument("-v", "--verbose", action="store_true", help="say more, and show the trace of an error")
    return options


def _settings() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    group = options.add_argument_group("settings")
    group.add_argument("--profile", default="tiny", metavar="NAME", help=PROFILES)
    group.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="for instance coder.k=8")
    group.add_argument("--config", metavar="FILE", help="YAML or JSON file of settings, nested as their names are")
    group.add_argument("--seed", metavar="N", help="seed of every stage")
    group.add_argument("--protocol", metavar="NAME", help="whose settings to measure by: ours, p1, p2 or p1-code")
    text = "questions about the method to answer too, with commas: ladder, requirement, sample-size, or all"
    group.add_argument("--probes", metavar="NAMES", help=text)
    return options


# -- commands ---------------------------------------------------------------------------------------------------------


def _run(options: argparse.Namespace, output: "Output") -> int:
    from nlrewrite import pipeline, profiles, terminal

    execution = _execution(options)
    overrides, _ = _spent(options, execution)
    spec = profiles.settled(options.profile, overrides)
    profiles.require_runnable(options.profile, spec)
    pipeline.check_refresh(options.refresh, pipeline.labels(spec))
    for library in ("OMP", "OPENBLAS", "MKL", "RAYON"):
        os.environ[f"{library}_NUM_THREADS"] = str(execution.threads)
    os.environ["TQDM_DISABLE"] = "1"  # bars of libraries, which would tear ours
    if not options.local:
        _hand_over_to_flow(options, overrides, execution, output)
    spec = profiles.filled(spec, execution)
    silent = output.quiet or output.json
    progress = terminal.progress(silent)
    outcome = pipeline.run_local(spec, options.profile, options.refresh, execution, progress)
    print(terminal.finished(outcome, output))
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
    places = ("store", "runs", "scratch", "text_folder", "subject_folder", "reader_folder", "template_folder")
    absolute = {
        name: os.path.abspath(value)
        for name in places
        if (value := getattr(execution, name)) is not None and "://" not in value
    }
    parameters = {
        "flow": "study" if options.command == "study" else "rewrite",
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
    from nlrewrite import planning, profiles, terminal
    from nlrewrite.llm.rates import Prices

    execution = _execution(options)
    overrides, spent = _spent(options, execution)
    spec = profiles.resolve(options.profile, overrides, execution)
    plan = planning.plan(options.profile, spec, options.refresh, execution, Prices.parse(options.price))
    if output.json:
        _print_json(plan.printable() | ({} if spent is None else {"spent": spent.printable()}))
    else:
        print(terminal.plan_text(plan))
        if spent is not None:
            print(f"\n{terminal.spent_text(spent)}")
        if plan.needs:
            print(f"not here yet: {'; '.join(profiles.CAPABILITIES[need] for need in plan.needs)}")
    return 0


def _pilot(options: argparse.Namespace, output: "Output") -> int:
    from nlrewrite import pipeline, planning, profiles, terminal

    execution = _execution(options)
    spec = profiles.settled(options.profile, _overrides(options))
    profiles.require_runnable(options.profile, spec)
    spec = profiles.filled(spec, execution)
    result = pipeline.run_pilot(spec, options.profile, execution, terminal.progress(output.quiet or output.json))
    whole = planning.plan(options.profile, spec, (), execution).queries
    if output.json:
        _print_json({**result, "whole_queries": whole})
    else:
        print(terminal.pilot_text(result, whole))
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


# -- from options to what the library takes ---------------------------------------------------------------------------


def _execution(options: argparse.Namespace) -> "Execution":
    from pydantic import ValidationError

    from nlrewrite.errors import SettingError
    from nlrewrite.execution import Execution

    names = (
        *("store", "runs", "threads", "device", "text_folder", "subject_folder"),
        *("reader_folder", "template_folder", "engine", "endpoint", "endpoint_model", "concurrency"),
    )
    try:
        return Execution.model_validate({name: getattr(options, name) for name in names})
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
    if options.budget is None:
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
