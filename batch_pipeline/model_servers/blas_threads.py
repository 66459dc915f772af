"""How many threads numpy's linear algebra takes for one product of matrices.

By itself it takes one for each processor, which wait for each other in a loop: beside a run's own
threads and other processes, a picture then costs eight times the processor time (0.34 s, not 0.04).
Uploads are processed side by side already.
"""

from functools import cache

from threadpoolctl import threadpool_limits


@cache
def use_one_thread() -> None:
    """Let this process compute each product in the thread that asks for it, from now on."""
    threadpool_limits(limits=1, user_api="blas")
