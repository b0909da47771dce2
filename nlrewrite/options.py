"""The options of the command line: which commands there are, and what each of them takes.

In: the act of every command. Out: a parser. Invariant: nothing of ours is imported here, so that help is instant; what
an option means is said where it is used.
"""

import argparse
import os
from collections.abc import Callable, Mapping
from typing import Any

Act = Callable[[argparse.Namespace, Any], int]
EXAMPLES = """examples:
  nlrewrite run                                     rewrite the tiny model's last MLP, under Prefect
  nlrewrite run --local --set coder.k=8             the same steps in this process, with another k
  nlrewrite study --probes ladder                   the same, and where the published protocol loses
  nlrewrite plan --set evaluate.resamples=4000      what a run would build, and why
  nlrewrite plan --profile pythia-160m-transcoder   what a published experiment takes
  nlrewrite pilot --set pilot.latents=200           what a run will come to, asked of some latents
  nlrewrite train-coder --set coder.activation=relu --set coder.penalty=0.003   a coder alone
  nlrewrite sweep --set sweep.values=[4,8,16]       coders by one pass, and what each costs
  nlrewrite replace --set layers.layers=[0,1,2]     several layers replaced at once
  nlrewrite show coder/1f2e                         what an artifact is made of; a few digits are enough
  nlrewrite report --open                           the last report in the browser
"""
ENGINES = "what runs a language model that is asked: auto, packed, reference, vllm or server (NLREWRITE_ENGINE)"
PROFILES = (
    "tiny (default), tiny-no-skip, tiny-sae, tiny-reader, smoke, smoke-reader; published settings to plan with: "
    "pythia-160m-transcoder, pythia-160m-transcoder-p1, pythia-160m-sae, smollm2-135m-transcoder, gemma-2-9b-sae, "
    "gpt2-small-transcoders, gpt2-small-sweep"
)


def parser(acts: Mapping[str, Act]) -> argparse.ArgumentParser:
    """The parser of all commands, each with the act that it stands for."""
    top = argparse.ArgumentParser(
        prog="nlrewrite",
        description="Rewrite one layer of a language model in natural language, and measure what it costs in loss.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    everywhere, settings = _everywhere(), _settings()

    def command(name: str, parents: list[argparse.ArgumentParser], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=parents, help=text, description=f"{text[:1].upper()}{text[1:]}.")
        added.set_defaults(act=acts[name])
        return added

    run = command("run", [everywhere, settings], "build what is missing and write the report")
    text = "run, and answer the questions about the method, all of them unless --probes names some"
    study = command("study", [everywhere, settings], text)
    train = command("train-coder", [everywhere, settings], "train the coder alone, and show how it learned")
    text = "train coders that differ in one setting (sweep.over, sweep.values) by one pass, and draw L0 against loss"
    sweep = command("sweep", [everywhere, settings], text)
    text = "replace several layers at once by their coders (layers.layers), and measure the loss"
    replace = command("replace", [everywhere, settings], text)
    for each in (run, study, train, sweep, replace):
        each.add_argument("--local", action="store_true", help="in this process, without Prefect")
    plan = command("plan", [everywhere, settings], "say what a run would build, why, and how much work it is")
    for each in (run, study, plan):
        text = "most that questions to a language model may take: '2M queries', '5e9 tokens', '40 gpu-hours', '$200'"
        each.add_argument("--budget", metavar="AMOUNT", help=text)
    for each in (run, study, plan, train, sweep, replace):
        text = "rebuild this step (label or kind), and what is made from it; can be repeated"
        each.add_argument("--refresh", action="append", default=[], metavar="STEP", help=text)
    text = "ask about some latents in some contexts, and say what the whole rewriting will come to"
    command("pilot", [everywhere, settings], text)
    command("status", [everywhere, settings], "show the artifacts of a profile, their age and their size")
    show = command("show", [everywhere], "show what an artifact is made of")
    show.add_argument("artifact", metavar="KIND/DIGEST", help="the first digits of the digest are enough")
    verify = command("verify", [everywhere], "read every byte of the store and compare it with its hash")
    verify.add_argument("artifacts", nargs="*", metavar="KIND/DIGEST", help="only these")
    gc = command("gc", [everywhere], "remove attempts that nothing names and that are older than a week")
    gc.add_argument("--dry-run", action="store_true", help="only say what would go")
    report = command("report", [everywhere, settings], "say where a profile's report is")
    report.add_argument("--open", action="store_true", help="open it in the browser")
    prompts = command("prompts", [everywhere], "list the templates of prompts, or show one")
    prompts.add_argument("template", nargs="?", metavar="NAME", help="print its text")
    prompts.add_argument("--example", action="store_true", help="print a question as the model sees it, and its cut")
    prompts.add_argument("--order", choices=("context", "explanation"), default="context", help="which half is first")
    prompts.add_argument("--scored", action="store_true", help="with a score in it")
    prompts.add_argument("--model", metavar="FOLDER", help="as it is asked in this model's chat")
    _coder(command("coder", [], "show what a coder is, or write it in the format of others"), everywhere)
    return top


def _coder(parser: argparse.ArgumentParser, everywhere: argparse.ArgumentParser) -> None:
    """What can be asked of one coder."""
    asked = parser.add_subparsers(dest="asked", required=True, metavar="WHAT")
    text = "what its files say: format, sizes, k, the place it reads, its record"
    show = asked.add_parser("show", parents=[everywhere], help=text)
    text = "write the same coder as sparsify or SAELens read it, where they have such a coder"
    convert = asked.add_parser("convert", parents=[everywhere], help=text)
    for each in (show, convert):
        each.add_argument("coder", metavar="PATH", help="folder or file in any format, or coder/<digest> of the store")
        text = "whose format the files are in, where names do not tell"
        each.add_argument("--from", dest="source", default="auto", metavar="FORMAT", help=text)
    convert.add_argument("target", metavar="FOLDER", help="folder to write")
    convert.add_argument("--format", choices=("sparsify", "saelens"), default="sparsify", help="whose format to write")


def _everywhere() -> argparse.ArgumentParser:
    at = os.environ.get
    options = argparse.ArgumentParser(add_help=False)
    group = options.add_argument_group("where and how")
    group.add_argument(
        "--store", default=at("NLREWRITE_STORE", "store"), help="folder or s3://bucket/prefix (NLREWRITE_STORE)"
    )
    group.add_argument("--runs", default=at("NLREWRITE_RUNS", "runs"), help="folder of the reports (NLREWRITE_RUNS)")
    text = "local folder for files fetched from a remote store (NLREWRITE_SCRATCH)"
    group.add_argument("--scratch", default=at("NLREWRITE_SCRATCH"), metavar="FOLDER", help=text)
    group.add_argument("--threads", default=at("NLREWRITE_THREADS", "1"), help="compute threads (NLREWRITE_THREADS)")
    group.add_argument("--device", default=at("NLREWRITE_DEVICE", "cpu"), help="cpu, cuda or cuda:N (NLREWRITE_DEVICE)")
    group.add_argument(
        "--text-folder", metavar="FOLDER", help="folder of text files, with --set text.source.kind=folder"
    )
    group.add_argument("--subject-folder", metavar="FOLDER", help="local model folder, with --set subject.kind=folder")
    group.add_argument("--coder-folder", metavar="PATH", help="coder of your own, with --set coder.kind=folder")
    text = "folder of text files to train the coder on, with --set coder.data.kind=folder"
    group.add_argument("--stream-folder", metavar="FOLDER", help=text)
    text = "file of token ids to train the coder on, with --set coder.data.kind=rows"
    group.add_argument("--token-rows", metavar="FILE", help=text)
    text = "multiply float32 matrices on the CPU by the library torch takes by itself, though another is as exact here"
    group.add_argument("--no-fast-products", dest="fast_products", action="store_false", help=text)
    text = "seconds between saves of a coder's training, which goes on from there after a kill (default 300)"
    group.add_argument("--save-seconds", default=300.0, metavar="SECONDS", help=text)
    group.add_argument("--engine", default=at("NLREWRITE_ENGINE", "auto"), help=ENGINES)
    group.add_argument(
        "--endpoint",
        default=at("NLREWRITE_ENDPOINT"),
        metavar="URL",
        help="OpenAI-compatible server, with --engine server; its key is read from NLREWRITE_API_KEY",
    )
    text = "prompt=, cached= and new= for a million tokens, or DEVICE= for an hour, as A100=1.5; can be repeated"
    group.add_argument("--price", action="append", default=[], metavar="NAME=VALUE", help=text)
    group.add_argument("--spend", metavar="AMOUNT", help="most money to spend there, at the prices of --price")
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
