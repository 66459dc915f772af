"""No framework: a loop, such as the one that the pipeline replaces, or threads that share a list.

What an upload costs with nothing to record, resume or show: the floor.
"""

from concurrent.futures import ThreadPoolExecutor

from work import assignment, begin_batch, measure, work


def loop() -> None:
    for upload_id in begin_batch():
        work(upload_id)


def threads() -> None:
    with ThreadPoolExecutor(assignment().threads) as pool:
        list(pool.map(work, begin_batch()))


if __name__ == "__main__":
    measure({"loop": loop, "threads": threads}[assignment().variant])
