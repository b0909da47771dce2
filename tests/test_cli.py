"""The command line as a user meets it: output, exit codes, and the way into the Prefect flow."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nlrewrite import cli, options, pipeline, printing, profiles, terminal
from nlrewrite.artifacts import Artifact, Store
from tests import small_steps

ROOT = Path(__file__).parents[1]
STEPS = len(pipeline.labels(profiles.settled("smoke", profiles.Overrides())))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small steps in the table, and an empty current folder."""
    small_steps.install(monkeypatch)
    monkeypatch.setattr(small_steps, "FAILING", set())
    monkeypatch.chdir(tmp_path)
    for name in ("STORE", "RUNS", "THREADS", "DEVICE", "OUTPUT"):
        monkeypatch.delenv(f"NLREWRITE_{name}", raising=False)
    for library in ("OMP", "OPENBLAS", "MKL", "RAYON"):
        monkeypatch.setenv(f"{library}_NUM_THREADS", "1")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    return tmp_path


def command(*arguments: str, cwd: Path, path: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """`nlrewrite` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "nlrewrite", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(path), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def run(*arguments: str) -> int:
    return cli.main(["run", "--local", "--profile", "smoke", *arguments])


def test_help_is_instant_and_gives_examples(tmp_path: Path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = command("--help", cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert done.stdout.count("\n  nlrewrite ") >= 4
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 0.3


def test_help_of_run_names_every_profile():
    text = " ".join(options.PROFILES.replace(",", " ").replace(";", " ").split())
    assert [name for name in profiles.profile_names() if name not in text.split()] == []


def test_the_parser_imports_nothing_of_the_library():
    code = (
        "import sys; from nlrewrite import cli; cli.parser(cli.ACTS); "
        "print([name for name in sys.modules if name.startswith('nlrewrite.') or name in ('pydantic', 'rich', 'yaml')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['nlrewrite.options', 'nlrewrite.cli']"


def test_run_local_prints_tables_headline_and_paths(small: Path, capsys: pytest.CaptureFixture[str]):
    assert run() == 0
    shown = capsys.readouterr()
    assert "| corpus " in shown.out
    assert "coder: coder/" in shown.err
    lines = shown.out.splitlines()
    header = next(line for line in lines if line.startswith("| arm "))
    cells = [cell.strip() for cell in header.strip("|").split("|")]
    assert cells == [
        "arm",
        "calibrator",
        "information",
        "ce",
        "delta_ce [low, high]",
        "kl",
        "gap_closed [low, high]",
    ]
    arms = [line for line in lines[lines.index(header) + 2 :] if line.startswith("|")]
    assert len(arms) == 3  # half the latents, the last position and a second selection are left out
    assert "0.7500 [0.6500, 0.8500]" in arms[1]
    assert "token lookup \\| unigram" in arms[2]
    assert len({len(line) for line in (header, *arms)}) == 1
    assert "0.7500 [0.6500, 0.8500]" in printing.headline(small_steps.RESULTS)
    assert str(Path("runs/smoke/report.html")) in lines[-1]
    assert (small / "runs" / "smoke" / "report.html").is_file()


def test_json_prints_nothing_else(small: Path, capsys: pytest.CaptureFixture[str]):
    assert run("--json") == 0
    shown = capsys.readouterr()
    told = json.loads(shown.out)
    assert shown.err == ""
    assert Path(told["results"]).is_file()
    assert {row["state"] for row in told["steps"]} == {"built"}
    assert told["headline"]["gap_closed"] == 0.75
    for arguments in (["plan"], ["status"]):
        assert cli.main([*arguments, "--profile", "smoke", "--json"]) == 0
        rows = json.loads(capsys.readouterr().out)["rows"]
        assert {row["state"] for row in rows} == {"hit"}
        assert [row["artifact"] for row in rows] == [row["artifact"] for row in told["steps"]]


def test_quiet_says_only_the_result(small: Path, capsys: pytest.CaptureFixture[str]):
    assert run("-q") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert len(shown.out.splitlines()) == 3


def test_settings_come_from_file_and_options_with_the_option_last(small: Path, capsys: pytest.CaptureFixture[str]):
    (small / "mine.yaml").write_text("coder:\n  k: 3\n  learning_rate: 1e-3\nevaluate:\n  fractions: [0.5, 1]\n")
    (small / "mine.json").write_text('{"coder": {"k": 3, "learning_rate": 0.001}, "evaluate": {"fractions": [0.5, 1]}}')

    def planned(*arguments: str) -> dict[str, str]:
        assert cli.main(["plan", "--profile", "smoke", "--json", *arguments]) == 0
        return {row["step"]: row["artifact"] for row in json.loads(capsys.readouterr().out)["rows"]}

    from_file = planned("--config", "mine.yaml")
    assert planned("--config", "mine.json") == from_file
    by_option = ("--set", "coder.k=3", "--set", "coder.learning_rate=0.001", "--set", "evaluate.fractions=[0.5,1]")
    assert planned(*by_option) == from_file
    assert planned("--config", "mine.yaml", "--set", "coder.k=4")["coder"] != from_file["coder"]
    assert planned("--seed", "4")["coder"] != planned()["coder"]
    by_protocol = planned("--protocol", "p1")
    assert by_protocol == planned("--set", "evaluate.protocol=p1")
    assert by_protocol["evaluation"] != planned()["evaluation"]


def test_places_come_from_the_environment(small: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NLREWRITE_STORE", str(small / "elsewhere"))
    monkeypatch.setenv("NLREWRITE_RUNS", str(small / "pages"))
    assert run("-q") == 0
    assert (small / "pages" / "smoke" / "results.json").is_file()
    assert len(Store(str(small / "elsewhere")).listed()) == STEPS
    assert not (small / "store").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "--local", "--profile", "smoke", "--set", "coder.k=100"], 2, "k=100, latents=64. Lower --set coder.k"),
        (["run", "--local", "--set", "coder.site.kind=head"], 2, "not 'head'"),
        (["run", "--local", "--set", "coder.kk=1"], 2, "Did you mean coder.k"),
        (["run", "--local", "--profile", "smol"], 2, "no profile is called 'smol'"),
        (["run", "--local", "--refresh", "codr"], 2, "no step is called 'codr'"),
        (["run", "--local", "--threads", "none"], 2, "--threads: input should be a valid integer"),
        (["run", "--local", "--device", "tpu"], 2, "--device: string should match"),
        (["run", "--seed", "-1"], 2, "--seed: input should be greater than or equal to 0"),
        (["run", "--config", "none.yaml"], 2, "there is no file none.yaml"),
        (["run", "--config", "unknown.yaml"], 2, "no setting is called 'coder.kk'"),
        (["run", "--config", "broken.yaml"], 2, "broken.yaml is neither YAML nor JSON"),
        (["run", "--config", "list.yaml"], 2, "must hold settings by name"),
        (["plan", "--store", "ftp://a/b"], 2, "a store is a local folder or s3://"),
        (["run", "--profile", "pythia-160m-transcoder"], 3, "it needs next-token prompts of a random length"),
        (["run", "--local", "--profile", "gpt2-small-transcoders"], 3, "which this version does not have"),
        (["run", "--local", "--profile", "smoke", "--store", "file/store"], 4, "Not a directory"),
        (["show", "coder/ab"], 2, "no artifact of"),
        (["report", "--profile", "smoke"], 2, "Make it with: nlrewrite run --profile smoke"),
        (["run", "--local", "--set", "text.source.kind=folder", "--text-folder", "none"], None, "none"),
    ],
)
def test_bad_input_is_one_clear_line_and_an_exit_code(
    small: Path, arguments: list[str], code: int | None, message: str, capsys: pytest.CaptureFixture[str]
):
    (small / "file").write_text("not a folder")
    (small / "unknown.yaml").write_text("coder: {kk: 1}")
    (small / "broken.yaml").write_text("coder: {kk: 1")
    (small / "list.yaml").write_text("- coder.k=1")
    found = cli.main([*arguments, "-q"])
    assert found == code if code is not None else found in (2, 6)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1


def test_wrong_options_are_exit_code_2(small: Path, capsys: pytest.CaptureFixture[str]):
    for arguments in ([], ["rewrite"], ["run", "--nothing"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments)
        assert caught.value.code == 2


def test_a_defect_is_exit_code_1_and_one_line(small: Path):
    code = (
        "import sys; from tests import small_steps; small_steps.install(); small_steps.FAILING.add('CoderSpec'); "
        "from nlrewrite.cli import main; sys.exit(main(['run', '--local', '--profile', 'smoke', '-q']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ZeroDivisionError: a step that fails. Run again with -v for the trace (while")
    assert "while building coder (coder/" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_defect_shows_its_trace_when_asked(small: Path, capsys: pytest.CaptureFixture[str]):
    small_steps.FAILING.add("TextSpec")
    with pytest.raises(ZeroDivisionError) as caught:
        run("-v")
    sys.excepthook(caught.type, caught.value, caught.tb)
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "while building corpus (corpus/" in shown


def test_a_damaged_artifact_is_found_and_named(small: Path, capsys: pytest.CaptureFixture[str]):
    assert run("-q") == 0
    assert cli.main(["verify"]) == 0
    assert f"{STEPS} of {STEPS} artifacts" in capsys.readouterr().out
    store = Store("store")
    coder = next(each for each in store.listed() if each.kind == "coder")
    store.folder(coder).path("data.bin").write_bytes(b"\1" * 1000)
    assert cli.main(["verify"]) == 5
    shown = capsys.readouterr().out
    assert f"{coder}: data.bin does not have the content that was written" in shown
    assert f"{STEPS - 1} of {STEPS}" in shown
    assert cli.main(["verify", "tokens/", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"verified": 1, "problems": {}}


def test_show_takes_the_first_digits(small: Path, capsys: pytest.CaptureFixture[str]):
    assert run("-q") == 0
    capsys.readouterr()
    store = Store("store")
    coder = next(each for each in store.listed() if each.kind == "coder")
    for name in (str(coder), f"coder/{coder.digest[:5]}", coder.digest, "coder/", "coder"):
        assert cli.main(["show", name, "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert Artifact.model_validate(told["artifact"]) == coder
        assert told["state"] == "hit"
        assert told["spec"]["width"] == 64
    assert cli.main(["show", str(coder)]) == 0
    shown = capsys.readouterr().out
    assert "| tokens " in shown
    assert "data.bin" in shown
    assert cli.main(["show", "activations/"]) == 2
    assert "fits 3 artifacts" in capsys.readouterr().err


def test_gc_removes_only_what_is_old_and_unnamed(small: Path, capsys: pytest.CaptureFixture[str]):
    assert run("-q") == 0
    capsys.readouterr()
    report = next(each for each in Store("store").listed() if each.kind == "report")
    Store("store").forget(report)
    left = small / "store" / "objects" / "report" / report.digest
    assert cli.main(["gc", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["attempts"] == []
    for path in left.rglob("*"):
        os.utime(path, (0, 0))
    assert cli.main(["gc", "--dry-run"]) == 0
    assert "attempts that would go: 1" in capsys.readouterr().out
    assert [path for path in left.rglob("*") if path.is_file()]
    assert cli.main(["gc"]) == 0
    assert "attempts that are gone: 1" in capsys.readouterr().out
    assert not [path for path in left.rglob("*") if path.is_file()]
    assert len(Store("store").listed()) == STEPS - 1


def test_report_says_where_it_is(small: Path, capsys: pytest.CaptureFixture[str]):
    assert run("-q") == 0
    capsys.readouterr()
    assert cli.main(["report", "--profile", "smoke"]) == 0
    assert capsys.readouterr().out.strip() == str(Path("runs/smoke/report.html"))


def test_plan_of_a_published_experiment(small: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["plan", "--profile", "pythia-160m-transcoder"]) == 0
    shown = capsys.readouterr().out
    assert "327,680,000" in shown
    assert "train the coder 8,000,000,000" in shown
    assert "not here yet: next-token prompts of a random length" in shown


def test_run_becomes_the_flow_of_the_checkout(tmp_path: Path):
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "__init__.py").touch()
    told = "import json, os, sys; print(sys.argv[1]); print(os.environ['NLREWRITE_OUTPUT']); print(os.getcwd())"
    (tmp_path / "flows" / "launch.py").write_text(told)
    done = command(
        *("run", "--profile", "smoke", "--set", "coder.k=2", "--seed", "5", "--refresh", "coder", "-q"),
        cwd=tmp_path,
        NLREWRITE_THREADS="2",
    )
    assert done.returncode == 0, done.stderr
    parameters, output, folder = done.stdout.splitlines()
    found = json.loads(parameters)
    assert set(found) == {"flow", "profile", "overrides", "refresh", "execution"}
    assert (found["flow"], found["profile"]) == ("rewrite", "smoke")
    assert found["refresh"] == ["coder"]
    assert (found["overrides"]["seed"], found["overrides"]["settings"]) == (5, ["coder.k=2"])
    assert (found["execution"]["threads"], found["execution"]["store"]) == (2, "store")
    assert (output, folder) == ("quiet", str(tmp_path))
    assert terminal.Output.read({"NLREWRITE_OUTPUT": output}) == terminal.Output(quiet=True)
    assert command("run", "--set", "coder.k=0", cwd=tmp_path).returncode == 2
    found = json.loads(command("study", "--probes", "ladder", cwd=tmp_path).stdout.splitlines()[0])
    assert (found["flow"], found["overrides"]["settings"]) == ("study", ['probes=["ladder"]'])


def test_outside_a_checkout_run_asks_for_local(tmp_path: Path):
    site = tmp_path / "site"
    shutil.copytree(ROOT / "nlrewrite", site / "nlrewrite", ignore=shutil.ignore_patterns("__pycache__"))
    done = command("run", "--profile", "smoke", cwd=tmp_path, path=site)
    assert done.returncode == 2
    assert "nlrewrite run --local" in done.stderr
    assert done.stderr.count("\n") == 1
    assert command("plan", "--profile", "smoke", cwd=tmp_path, path=site).returncode == 0


def test_lines_of_progress_are_few_and_say_how_far():
    lines: list[str] = []
    with terminal.LineProgress(lines.append, every=0.0).stage("count", total=3) as advance:
        advance(2, "halfway")
    assert len(lines) == 1
    assert lines[0].startswith("  count: 2 of 3, halfway, ")
    with terminal.LineProgress(lines.append, every=60.0).stage("count", total=3) as advance:
        advance(3)
    assert len(lines) == 1


def test_bars_work_and_honour_no_color(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    with terminal.BarProgress().stage("train", total=2) as advance:
        advance(1, "loss 0.5")
        advance(1)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "train" in shown.err
    assert "\x1b[3" not in shown.err  # no foreground colour


def test_arms_that_differ_in_their_sentences_have_a_row_each():
    arm = next(arm for arm in small_steps.RESULTS["arms"] if arm["arm"] == "rewritten")
    results = {**small_steps.RESULTS, "arms": [arm, {**arm, "explanation": "rules-2"}, {**arm, "selection": "sampled"}]}
    lines = printing.results_table(results).splitlines()
    assert len(lines) == 4
    assert [cell.strip() for cell in lines[0].split("|")[1:4]] == ["arm", "explanation", "calibrator"]


def test_a_protocol_that_patches_the_last_position_has_a_table_and_is_named():
    arms = [{**arm, "position": "last"} for arm in small_steps.RESULTS["arms"]]
    head = {**small_steps.RESULTS["headline"], "position": "last"}
    results = {**small_steps.RESULTS, "arms": arms, "headline": head, "protocol": {"name": "p2"}}
    assert printing.results_table(results) == printing.results_table(small_steps.RESULTS)
    assert printing.headline(results).startswith("By protocol p2, whose known defects the report names. Rewritten")
    assert printing.headline(small_steps.RESULTS).startswith("Rewritten")


def test_a_gap_that_cannot_be_measured_is_no_number():
    names = ("gap_closed", "low", "high", "token_lookup", "bigram_lookup", "shuffled", "oracle", "over_token_lookup")
    head = small_steps.RESULTS["headline"] | dict.fromkeys(names)
    assert "no gap to close" in printing.headline({"headline": head})
    head = small_steps.RESULTS["headline"] | {"over_token_lookup": None, "oracle": None}
    assert "oracle" not in printing.headline({"headline": head})
    assert "None" not in printing.headline({"headline": head})


def test_sizes_for_people():
    assert [terminal.size(count) for count in (0, 999, 1000, 2_500_000)] == ["0 B", "999 B", "1.0 kB", "2.5 MB"]
