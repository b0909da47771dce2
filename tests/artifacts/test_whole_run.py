"""A whole run with its store on S3: the names and the bytes of a run in a folder, and hits the second time."""

from pathlib import Path

from nlrewrite import pipeline, profiles
from nlrewrite.artifacts import Store
from nlrewrite.execution import Execution
from nlrewrite.profiles import Overrides
from nlrewrite.progress import Progress


def run(store: str, place: Path) -> list[pipeline.StepRow]:
    execution = Execution(store=store, runs=str(place / "runs"), scratch=str(place / "scratch"))
    spec = profiles.resolve("smoke", Overrides(), execution)
    return list(pipeline.run_local(spec, "smoke", (), execution, Progress()).rows)


def hashes(uri: str) -> dict[str, dict[str, str]]:
    store = Store(uri)
    manifests = [store.folder(artifact).manifest for artifact in store.listed()]
    return {str(each.artifact): {entry.path: entry.sha256 for entry in each.files} for each in manifests}


def test_a_run_on_s3_gives_the_names_and_bytes_of_a_run_in_a_folder(s3_uri: str, tmp_path: Path):
    remote = run(s3_uri, tmp_path / "remote")
    assert {row.state for row in remote} == {"built"}
    folder = str(tmp_path / "store")
    local = run(folder, tmp_path / "local")
    assert [row.artifact for row in remote] == [row.artifact for row in local]
    assert hashes(s3_uri) == hashes(folder)
    again = run(s3_uri, tmp_path / "elsewhere")
    assert {row.state for row in again} == {"hit"}
    assert [problem for row in again for problem in Store(s3_uri).verify(row.artifact)] == []
