"""Log lines, as a process of its own writes them."""

import json
import subprocess
import sys

SAYS = """
import logging, warnings
from batch_pipeline.logs import use_format
from batch_pipeline.settings import load_settings

use_format(load_settings())
use_format(load_settings())
logging.getLogger("batch_pipeline.services").warning("%s\\nlines", "two")
try:
    raise ValueError("caf\\u00e9")
except ValueError:
    logging.getLogger("some_library").exception("it broke")
warnings.warn("soon gone")
logging.getLogger("dagster.daemon").error("Dagster writes this one")
"""


def said(log_format):
    done = subprocess.run(
        [sys.executable, "-c", SAYS],
        env={"BATCH_PIPELINE_LOG_FORMAT": log_format, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr


def test_everything_is_one_json_object_a_line_and_said_once():
    lines = [json.loads(line) for line in said("json").splitlines()]
    assert [(line["logger"], line["level"]) for line in lines] == [
        ("batch_pipeline.services", "warning"),
        ("some_library", "error"),
        ("py.warnings", "warning"),
    ]
    assert lines[0]["event"] == "two\nlines"
    assert lines[1]["exception"].endswith("ValueError: café")
    assert "soon gone" in lines[2]["event"]
    assert all(line["timestamp"].endswith("Z") for line in lines)


def test_text_is_left_as_python_writes_it():
    assert said("text").startswith("two\nlines\nit broke\nTraceback")
