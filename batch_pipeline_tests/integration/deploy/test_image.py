"""The image, built as far as possible without a container engine: its files, what it installs."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
INSTRUCTIONS = [
    shlex.split(line)
    for line in re.sub(r"\\\n", " ", (ROOT / "deploy" / "Dockerfile").read_text()).splitlines()
    if line and not line.startswith("#")
]


def copies():
    """Return what is copied from the project: sources and targets in the stage that installs."""
    return [
        (words[1:-1], words[-1])
        for words in INSTRUCTIONS
        if words[0] == "COPY" and not words[1].startswith("--from")
    ]


def test_the_builder_is_sent_everything_that_is_copied_and_it_is_there():
    sent = re.findall("^!(.+)", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copied = {source for sources, _ in copies() for source in sources}
    assert copied == set(sent)
    assert all((ROOT / source).exists() for source in copied)


def test_the_last_stage_runs_as_an_ordinary_user():
    assert ["USER", "1000"] in INSTRUCTIONS[INSTRUCTIONS.index(["FROM", "${BASE}"]) :]


def test_a_changed_source_file_does_not_install_the_dependencies_again():
    installs = next(i for i, words in enumerate(INSTRUCTIONS) if "dependencies" in words[1:-1])
    before = {
        source for words in INSTRUCTIONS[:installs] if words[0] == "COPY" for source in words[1:-1]
    }
    assert before == {"pyproject.toml", "constraints.txt", "deploy/install.sh"}


@pytest.mark.slow
@pytest.mark.proof
@pytest.mark.timeout(600)
def test_the_package_in_the_image_works_without_the_sources(tmp_path, database_url):
    sources, image, package = tmp_path / "src", tmp_path / "app", tmp_path / "package"

    def copy(*names):
        for name in names:
            place = sources / name
            place.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, place)

    def install(*words):
        installed = subprocess.run(
            [sources / "deploy" / "install.sh", *words],
            capture_output=True,
            text=True,
            timeout=540,
            check=False,
        )
        assert installed.returncode == 0, installed.stderr

    copy("pyproject.toml", "constraints.txt", "deploy/install.sh")
    for name in ("README.md", "LICENSE"):
        (sources / name).touch()
    install("dependencies", image, "kubernetes")
    copy("setup.py", "README.md", "LICENSE", "batch_pipeline")
    install("package", image, package)
    shutil.copytree(package, image, dirs_exist_ok=True)
    shutil.rmtree(sources)
    assert not [*image.rglob("batch_pipeline/testing")]

    def run(*command):
        return subprocess.run(
            [image / "bin" / command[0], *command[1:]],
            env={
                "PATH": f"{image / 'bin'}:/usr/bin:/bin",
                "BATCH_PIPELINE_HOME": str(tmp_path / "home"),
                "BATCH_PIPELINE_DATABASE_URL": database_url,
                "HOME": str(tmp_path),
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    media = ROOT / "examples" / "media" / "fog.webp"
    submitted = run("batch-pipeline", "submit", media, "--json")
    assert submitted.returncode == 0, submitted.stderr
    batch = json.loads(submitted.stdout)["batch_id"]
    for command in (
        # Templates, styles and migrations are files whose absence no import would notice.
        ("batch-pipeline", "report", batch, "--html", tmp_path / "report.html"),
        ("batch-pipeline", "db", "upgrade"),
        (
            "python",
            "-c",
            "import dagster_k8s, dagster_aws.s3, s3fs, redis, batch_pipeline.definitions",
        ),
        ("dagster-webserver", "--version"),
        ("dagster-daemon", "--help"),
    ):
        done = run(*command)
        assert done.returncode == 0, done.stderr
