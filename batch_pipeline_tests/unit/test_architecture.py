"""Imports go in one direction: definitions, orchestration, services, then the layers below."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "batch_pipeline"
#: Each part of the package, and the parts that it may import from.
MAY_IMPORT = {
    # What applications call.
    "__init__": {"component", "services"},
    "visible_text": set(),
    "wording": set(),
    "languages": set(),
    "masking": set(),
    "errors": {"masking", "visible_text"},
    "home": set(),
    "webhook_secrets": set(),
    # Formats and prompts, to refuse settings with unknown names.
    "settings": {
        "errors", "home", "masking", "languages", "media.acceptance", "model_servers.prompts",
        "webhook_secrets",
    },
    "logs": {"masking", "settings"},
    "storage": {"errors", "masking"},
    "media": {"errors", "media", "wording"},
    "model_servers": {
        "errors", "settings", "languages", "media", "model_servers", "visible_text", "wording",
    },
    "database": {"errors", "settings", "database", "wording"},
    "services": {
        "errors", "masking", "settings", "languages", "visible_text", "storage", "media",
        "model_servers", "database", "services", "webhook_secrets", "wording",
    },
    "dagster_internals": set(),
    "executor": {"executor"},
    "orchestration": {
        "errors", "masking", "settings", "visible_text", "media", "model_servers", "database",
        "services", "executor", "orchestration", "logs", "dagster_internals", "wording",
    },
    "definitions": {"settings", "logs", "media.memory", "orchestration"},
    "component": {"errors", "masking", "settings", "orchestration"},
    "terminal": {"model_servers", "services", "visible_text", "wording", "database.models"},
    "demo": {"errors", "settings"},
    "cli": {
        "errors", "masking", "settings", "visible_text", "storage", "database", "services",
        "cli", "terminal", "demo", "logs", "wording",
        # `doctor` asks Dagster's storage for the daemon's heartbeats.
        "orchestration.instance_health",
        # `delete` deletes what Dagster keeps.
        "orchestration.forgetting",
    },
    "__main__": {"cli"},
    # Made for tests; no module of the package imports it.
    "testing": {
        "errors", "settings", "media", "model_servers", "database", "services", "testing", "demo",
    },
}  # fmt: skip
MAY_IMPORT_DAGSTER = {"component", "definitions", "orchestration", "executor", "dagster_internals"}
MODULES = sorted((ROOT / PACKAGE).rglob("*.py"))


def room_of(module):
    return module.relative_to(ROOT / PACKAGE).with_suffix("").parts[0]


@cache
def imports_of(module):
    """Names of the modules that a module imports, wherever in it."""
    return list(_imports_of(module))


def _imports_of(module):
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            if node.module == PACKAGE:
                yield from (f"{PACKAGE}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def test_every_part_has_its_rule():
    assert {room_of(module) for module in MODULES} == set(MAY_IMPORT)


def imports(is_wrong):
    """Return, by module, those of its imports that a rule forbids."""
    by_module = {
        str(module.relative_to(ROOT)): [
            name for name in imports_of(module) if is_wrong(room_of(module), name)
        ]
        for module in MODULES
    }
    return {module: wrong for module, wrong in by_module.items() if wrong}


def test_layers_import_each_other_in_one_direction():
    def is_wrong(room, name):
        ours = name.removeprefix(f"{PACKAGE}.")
        return ours != name and not {ours, ours.split(".")[0]} & MAY_IMPORT[room]

    assert imports(is_wrong) == {}


def test_no_part_has_a_permission_that_it_does_not_use():
    imported = {room: set() for room in MAY_IMPORT}
    for module in MODULES:
        ours = {
            name.removeprefix(f"{PACKAGE}.")
            for name in imports_of(module)
            if name.startswith(f"{PACKAGE}.")
        }
        imported[room_of(module)] |= ours | {name.split(".")[0] for name in ours}
    unused = {room: allowed - imported[room] for room, allowed in MAY_IMPORT.items()}
    assert {room: names for room, names in unused.items() if names} == {}


def test_only_three_parts_import_dagster():
    assert (
        imports(lambda room, name: room not in MAY_IMPORT_DAGSTER and name.startswith("dagster"))
        == {}
    )


def test_undocumented_names_of_dagster_are_imported_in_modules_of_one_name():
    documented = {"dagster", "dagster_postgres"}
    undocumented = ("dagster.", "dagster_celery", "dagster_postgres.", "dagster_shared")
    importing = imports(lambda _, name: name.startswith(undocumented) and name not in documented)
    assert set(importing) == {
        "batch_pipeline/dagster_internals.py",
        "batch_pipeline/executor/dagster_internals.py",
        "batch_pipeline/orchestration/celery/dagster_internals.py",
    }
