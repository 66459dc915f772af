"""Limits numpy's linear algebra to one thread for each product of matrices.

By default it uses one thread per processor, and these threads wait for each other in a busy loop.
While the run's own threads and other processes also work, a picture then costs eight times as much
processor time (0.34 s instead of 0.04 s). Uploads are already processed in parallel.
"""

from functools import cache

from threadpoolctl import threadpool_limits


@cache
def use_one_thread() -> None:
    """Make this process compute each product in the calling thread."""
    threadpool_limits(limits=1, user_api="blas")
