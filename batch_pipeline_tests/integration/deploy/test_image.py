"""The image, built as far as possible without a container engine: its files, what it installs."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


def packages_of(extras):
    """Return the packages that `.[extras]` installs, by their requirements in this environment."""
    found, looked_at, waiting = set(), set(), [("batch-pipeline", frozenset(extras.split(",")))]
    while waiting:
        name, its_extras = waiting.pop()
        if (name, its_extras) in looked_at:
            continue
        looked_at.add((name, its_extras))
        try:
            requirements = map(Requirement, requires(name) or ())
        except PackageNotFoundError:  # for another system or version of Python
            continue
        found.add(name)
        for each in requirements:
            wanted = (
                [each.marker.evaluate({"extra": extra}) for extra in {"", *its_extras}]
                if (each.marker)
                else [True]
            )
            if any(wanted):
                waiting.append((canonicalize_name(each.name), frozenset(each.extras)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("extras", "optional"),
    [
        ("notify", []),
        ("kubernetes", ["dagster_aws.s3", "dagster_k8s", "redis", "s3fs"]),
    ],
)
def test_the_image_is_built_with_each_extra_and_compiles_the_modules_that_it_installs(
    extras, optional
):
    there = packages_of(extras)
    hidden = [
        module
        for module, packages in packages_distributions().items()
        if not there.intersection(map(canonicalize_name, packages))
    ]
    script = (ROOT / "deploy" / "install.sh").read_text()
    [compiles] = re.findall("<<'PYTHON'\n(.*?)^PYTHON$", script, re.DOTALL | re.MULTILINE)
    known = ("dagster_aws.s3", "dagster_k8s", "redis", "s3fs")
    done = subprocess.run(
        [sys.executable, "-"],
        input=f"import sys\nsys.modules.update(dict.fromkeys({hidden!r}))\n{compiles}"
        f"\nprint([name for name in {known!r} if sys.modules.get(name)])",
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT / "deploy",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(optional)


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
