"""`scripts/check_media.py` continues after any failure of a file, and reports it."""

import importlib.util
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from batch_pipeline.testing.media import make_image

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_media.py"


def raise_type_error() -> None:
    raise TypeError("a decoder's own fault")


def die() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def never_return() -> None:
    signal.pause()


FAULTS = {"raises.jpg": raise_type_error, "dies.jpg": die, "hangs.jpg": never_return}


@pytest.fixture
def check_media(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with a decoder that behaves as the name of the file says."""
    spec = importlib.util.spec_from_file_location("check_media", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "check_media", script)  # answers of processes are pickled
    spec.loader.exec_module(script)
    decode = script.decode

    def decode_or_fail(*arguments: Any, filename: str, **options: Any) -> Any:
        FAULTS.get(filename, lambda: None)()
        return decode(*arguments, filename=filename, **options)

    monkeypatch.setattr(script, "decode", decode_or_fail)
    return script


@pytest.fixture
def run(check_media, tmp_path, monkeypatch, capsys) -> Callable[[], tuple[int, str]]:
    """Runs it on the folder of the test; returns its exit code and its output."""
    monkeypatch.setattr(sys, "argv", ["check_media.py", str(tmp_path)])
    return lambda: (check_media.main(), capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "finding"),
    [
        ("raises.jpg", "crash (TypeError)  a decoder's own fault"),
        ("dies.jpg", "crash (exit code -11)"),
    ],
)
def test_a_file_that_brings_the_decoder_down_is_a_finding(name, finding, run, tmp_path):
    for each in (name, "sound.jpg"):
        (tmp_path / each).write_bytes(make_image())

    exit_code, printed = run()

    assert exit_code == 1
    assert f"{name}: {finding}" in printed
    assert "1 crashes and hangs" in printed
    assert re.search(r"^jpeg +\d +1 ", printed, re.MULTILINE), "the other file was decoded"


def test_a_file_that_takes_for_ever_is_a_finding(check_media, run, tmp_path):
    check_media.PATIENCE_SECONDS = 0.5
    (tmp_path / "hangs.jpg").write_bytes(make_image())

    exit_code, printed = run()

    assert exit_code == 1
    assert "hangs.jpg: hang" in printed


def test_a_refused_file_is_not_a_finding(run, tmp_path):
    (tmp_path / "drawing.svg").write_bytes(b"<svg></svg>")
    (tmp_path / "cut.jpg").write_bytes(make_image()[:300])

    exit_code, printed = run()

    assert exit_code == 0
    assert "0 crashes and hangs" in printed
