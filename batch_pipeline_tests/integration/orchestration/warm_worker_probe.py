"""Loads the code location like Dagster's code server, and prints facts about its run workers."""

import atexit
import ctypes
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path

import psutil
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._grpc.server import DagsterApiServer, FuturesAwareThreadPoolExecutor

from batch_pipeline.model_servers import efficientnet, face_counter, factory, sentence_encoder
from batch_pipeline.orchestration.dagster_storage import instance_storage
from batch_pipeline.services import pipeline
from batch_pipeline.services.descriptions import refusals


def inside_a_worker(queue):
    """Return what a worker has before it does anything."""
    fsspec_loop = getattr(sys.modules.get("fsspec.asyn"), "loop", [None])
    # Importing it would import everything.
    fork_server = sys.modules["batch_pipeline.orchestration.fork_server"]
    queue.put(
        {
            "parent": os.getppid(),
            "not_imported": [
                name for name in fork_server.NEEDED_BY_RUNS if name not in sys.modules
            ],
            "pipelines": len(pipeline._shared),
            "analyzers": len(factory._servers),
            "engines": instance_storage._engine.cache_info().currsize,
            "fsspec_loop": fsspec_loop[0] is not None,
            "threads": threading.active_count(),
            "models": [
                module._loaded.cache_info().currsize
                for module in (efficientnet, face_counter, sentence_encoder)
            ],
            "refusals": refusals._openings.cache_info().currsize,
            "clients": [name for name in ("ollama", "openai") if name in sys.modules],
            "huge_pages": has_huge_pages(),
            "sigterm": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
            "sigint": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        }
    )


def has_huge_pages():
    """Return whether this process asks for huge pages where the system leaves that to it."""
    system = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not system.exists() or "[madvise]" not in system.read_text():
        return None
    block = (ctypes.c_char * 64 * 1024**2)()
    address = ctypes.addressof(block) + 32 * 1024**2
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, *others = line.split()
        if first == "VmFlags:":
            if here:
                return "hg" in others
        elif not first.endswith(":"):
            begin, end = (int(number, 16) for number in first.split("-"))
            here = begin <= address < end
    return False


def leave(code):
    sys.exit(code)


def leave_with_a_note(path):
    atexit.register(path.touch)


def wait_for(release):
    release.wait()


def sockets(process_id):
    """Return the kinds of a process's open sockets, from the kernel's list."""
    return sorted(
        str(connection.laddr) for connection in psutil.Process(process_id).net_connections("all")
    )


def main():
    server = DagsterApiServer(
        threading.Event(),
        logging.getLogger("probe"),
        FuturesAwareThreadPoolExecutor(max_workers=2),
        LoadableTargetOrigin(
            executable_path=sys.executable, module_name="batch_pipeline.definitions"
        ),
    )
    context = server._mp_ctx
    said = {"way": context.get_start_method()}
    if said["way"] == "forkserver":
        said |= facts(context)
    said |= {"outlives_errors": outlives_errors(server)}
    server._server_termination_event.set()
    print(json.dumps(said))


def outlives_errors(server):
    """Return whether the thread that reports ended workers checks again after an error."""
    logged, handler = threading.Semaphore(0), logging.Handler()
    handler.emit = lambda record: logged.release()
    logging.getLogger("batch_pipeline.orchestration.warm_workers").addHandler(handler)
    ended = server._mp_ctx.Process(target=leave, args=(0,))
    ended.start()
    ended.join()
    server._executions["a run"] = (ended, None)  # None is no instance: opening it fails
    twice = all(logged.acquire(timeout=30) for _ in range(2))
    server._executions.clear()
    return twice


def wakes_killed(context):
    """Return whether an event can be set although the process that waits for it was killed."""
    event = context.Event()
    killed = context.Process(target=wait_for, args=(event,))
    killed.start()
    while not event._cond._sleeping_count.get_value():
        time.sleep(0.01)
    killed.kill()
    killed.join()
    wake = threading.Thread(target=event.set, daemon=True)
    wake.start()
    wake.join(timeout=10)
    return not wake.is_alive()


def facts(context):
    queue = context.Queue()
    first = context.Process(target=inside_a_worker, args=(queue,))
    first.start()
    worker = queue.get(timeout=60)
    first.join()
    fork_server = forkserver._forkserver._forkserver_pid
    said = {
        "worker": worker,
        "is_of_fork_server": worker["parent"] == fork_server,
        "threads": len(list(Path(f"/proc/{fork_server}/task").iterdir())),
        "sockets": sockets(fork_server),
        "files": sorted(file.path for file in psutil.Process(fork_server).open_files()),
    }
    left = context.Process(target=leave, args=(3,))
    left.start()
    left.join()
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder, "note")
        noted = context.Process(target=leave_with_a_note, args=(note,))
        noted.start()
        noted.join()
        said["runs_exit_functions"] = note.exists()
    said["wakes_killed"] = wakes_killed(context)
    release = context.Event()
    # A process that is killed while it waits would never release an event that others wait for.
    never = context.Event()
    killed = context.Process(target=wait_for, args=(never,))
    orphan = context.Process(target=wait_for, args=(release,))
    killed.start()
    orphan.start()
    killed.kill()
    killed.join()
    psutil.Process(fork_server).send_signal(signal.SIGTERM)
    psutil.Process(fork_server).send_signal(signal.SIGINT)
    said |= {"exit_codes": [first.exitcode, left.exitcode, killed.exitcode]}
    said |= {"outlives_signals": psutil.Process(fork_server).is_running()}
    late = context.Process(target=leave, args=(0,))
    late.start()
    late.join()
    said |= {"late": late.exitcode}
    psutil.Process(fork_server).kill()
    os.waitid(os.P_PID, fork_server, os.WEXITED | os.WNOWAIT)
    said["alive_without_fork_server"] = orphan.is_alive()
    release.set()
    with ThreadPoolExecutor() as waiting:
        waiting.submit(orphan.join).result(timeout=30)
    said["alive_at_the_end"] = orphan.is_alive()
    again = context.Process(target=leave, args=(4,))
    again.start()
    again.join()
    said["from_another_fork_server"] = again.exitcode
    return said
