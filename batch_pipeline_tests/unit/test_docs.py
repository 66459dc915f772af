"""The documentation is complete, and agrees with the code."""

import ast
import re
import runpy
import tomllib
from pathlib import Path

import pytest

import batch_pipeline
from batch_pipeline.cli import main

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "batch_pipeline"
DOCUMENTS = sorted(
    {
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("*.md"),
        *ROOT.glob("*/README.md"),
        *ROOT.glob("examples/*/README.md"),
        *ROOT.glob("batch_pipeline/*/README.md"),
    }
)
KINDED = {"PermanentError", "TransientError", "ServiceDownError"}


def error_kinds():
    """Kinds that errors are raised with, or that are written to a row, read from the source."""
    kinds = set()
    for module in PACKAGE.rglob("*.py"):
        if PACKAGE / "testing" in module.parents:
            continue
        for node in ast.walk(ast.parse(module.read_text())):
            match node:
                case ast.Call(func=ast.Name(id=name), args=[kind, *_]) if name in KINDED:
                    kinds |= words(kind)
                case ast.keyword(arg="error_kind", value=kind):
                    kinds |= words(kind)
                case ast.Assign(targets=[ast.Name(id="kind")], value=kind):
                    kinds |= words(kind)
    return kinds


def words(node):
    match node:
        case ast.Constant(value=str(text)) if re.fullmatch("[a-z_]+", text):
            return {text}
        case ast.IfExp(body=body, orelse=orelse):
            return words(body) | words(orelse)
    return set()


def kinds_explained():
    document = (ROOT / "docs" / "troubleshooting.md").read_text()
    return re.findall(r"^\| `([a-z_]+)` \|", document, re.MULTILINE)


def test_every_error_kind_has_its_line_in_troubleshooting_and_no_line_is_stale():
    kinds = error_kinds()
    assert {"truncated", "model_timeout", "database_down"} <= kinds  # the search does find kinds
    assert sorted(kinds_explained()) == sorted(kinds)


def test_every_direct_dependency_has_its_reason_and_no_line_is_stale():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    always = {name_of(requirement) for requirement in project["dependencies"]}
    extras = {
        (extra, name_of(requirement))
        for extra, requirements in project["optional-dependencies"].items()
        for requirement in requirements
    }
    document = (ROOT / "docs" / "dependencies.md").read_text()
    explained = set(re.findall(r"^\| `([^`]+)` \| [^`]", document, re.MULTILINE))
    explained_extras = set(re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", document, re.MULTILINE))
    assert (explained, explained_extras) == (always, extras)


def name_of(requirement):
    return re.match(r"[A-Za-z0-9_.-]+", requirement).group()


def test_the_settings_reference_is_what_the_settings_say():
    script = runpy.run_path(str(ROOT / "scripts" / "write_settings_reference.py"))
    assert (ROOT / "docs" / "settings.md").read_text() == script["reference"](), (
        "run scripts/write_settings_reference.py"
    )


def test_the_table_of_formats_is_what_the_code_says():
    script = runpy.run_path(str(ROOT / "scripts" / "write_formats_reference.py"))
    document = (ROOT / "docs" / "formats.md").read_text()
    assert document == script["reference"](document), "run scripts/write_formats_reference.py"


def test_troubleshooting_agrees_with_the_code_about_error_kinds():
    script = runpy.run_path(str(ROOT / "scripts" / "write_troubleshooting.py"))
    document = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert document == script["reference"](document), "run scripts/write_troubleshooting.py"


def test_the_reference_shows_each_public_name_as_the_package_gives_it():
    shown = set(re.findall(r"^::: (\S+)", (ROOT / "docs" / "reference.md").read_text(), re.M))
    public = {f"{home}.{name}" for name, home in batch_pipeline._HOMES.items()}
    assert public - shown == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(document):
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    broken = []
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = document.parent / path if path else document
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def anchors(file):
    headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


#: An installer with the name of our package, which on PyPI is not ours. Whoever registers the name
#: there could run code on the host of a reader.
BY_NAME = re.compile(
    r"(?:pip|pipx|uv|uvx|poetry|conda)\b[^\n`]*(?<![\w./-])batch[-_.]pipeline(?![\w./:-])",
    re.IGNORECASE,
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_install_our_package_from_a_clone_as_its_name_on_pypi_is_not_ours(document):
    assert BY_NAME.findall(document.read_text()) == []


def test_messages_install_our_package_from_a_clone_as_its_name_on_pypi_is_not_ours():
    by_name = [
        (str(module.relative_to(ROOT)), node.value)
        for folder in (PACKAGE, ROOT / "scripts")
        for module in folder.rglob("*.py")
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and BY_NAME.search(node.value)
    ]
    assert by_name == []


def test_every_variable_named_in_the_documents_exists():
    known = {
        *re.findall(r"^\| `(BATCH_PIPELINE_\w+)`", (ROOT / "docs/settings.md").read_text(), re.M),
        "BATCH_PIPELINE_TEST_DATABASE_URL",
    }
    named = {
        (document.name, name)
        for document in DOCUMENTS
        for name in re.findall(r"(?<!_)BATCH_PIPELINE_[A-Z_]*[A-Z]", document.read_text())
    }
    assert not {entry for entry in named if entry[1].removesuffix("_FILE") not in known}


def test_every_command_named_in_the_documents_exists():
    named = {
        (document.name, name)
        for document in DOCUMENTS
        for name in re.findall(r"batch-pipeline ([a-z]+)", document.read_text())
    }
    assert not {entry for entry in named if entry[1] not in main.commands}
