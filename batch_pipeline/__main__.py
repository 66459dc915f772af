"""``python -m batch_pipeline``: the command line, where the console script is not on the path."""

from batch_pipeline.cli import main

main(prog_name="batch-pipeline")
