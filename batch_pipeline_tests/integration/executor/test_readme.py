"""The example of the executor's README runs unchanged, in threads."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
README = ROOT / "batch_pipeline" / "executor" / "README.md"

RUN = """
import sys
import dagster as dg
import example

with dg.DagsterInstance.ephemeral() as instance:
    with dg.execute_job(dg.reconstructable(example.sum_up), instance) as result:
        print(result.success, result.output_for_node("total"))
        events = instance.all_logs(result.run_id)
print(any("in up to 16 threads" in event.message for event in events))
ours = (name.split(".") for name in sys.modules if name.startswith("batch_pipeline."))
print(sorted({parts[1] for parts in ours}))
print("dagster_postgres" in sys.modules)
"""


def test_the_example_runs_in_threads_and_imports_nothing_else_of_the_pipeline(tmp_path):
    [example] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "example.py").write_text(example.replace("sleep(0.5)", "sleep(0.01)"))

    done = subprocess.run(
        [sys.executable, "-c", RUN],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )

    assert done.stdout.splitlines() == [
        "True 4950",
        "True",
        "['executor']",
        "False",
    ], done.stderr
