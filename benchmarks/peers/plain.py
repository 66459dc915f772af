"""No framework: a loop, such as the one that the pipeline replaces, or threads that share a list.

This is the lower limit: the cost of an upload if nothing is recorded, resumed or shown.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from work import assignment, host, process


def loop(upload_ids: Sequence[str]) -> None:
    for upload_id in upload_ids:
        process(upload_id)


def threads(upload_ids: Sequence[str]) -> None:
    with ThreadPoolExecutor(assignment().threads) as pool:
        list(pool.map(process, upload_ids))


if __name__ == "__main__":
    host({"loop": loop, "threads": threads}[assignment().variant], lambda: 0)
