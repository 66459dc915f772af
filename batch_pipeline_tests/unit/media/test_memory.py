"""Settings of the C library for the processes that decode."""

import os

import pytest

from batch_pipeline.media.memory import use_huge_pages

HUGE = "glibc.malloc.hugetlb=1"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, HUGE),
        ("", HUGE),
        ("glibc.malloc.arena_max=2", f"glibc.malloc.arena_max=2:{HUGE}"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
        (HUGE, HUGE),
    ],
)
def test_processes_ask_for_huge_pages_unless_a_person_decided(
    monkeypatch: pytest.MonkeyPatch, before: str | None, after: str
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if before is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", before)
    use_huge_pages()
    assert os.environ["GLIBC_TUNABLES"] == after
