"""Starts the command line, and heeds Ctrl-C from the first moment: its imports take a while."""

import gc
import sys

#: A collection of garbage begins after so many new objects. With Python's 700, imports take a fifth
#: longer.
_OBJECTS = 200_000


def main() -> None:
    """Run the command; stopped before it has begun, say so in a word."""
    gc.set_threshold(_OBJECTS)
    try:
        from batch_pipeline.cli import main as command_line  # noqa: PLC0415 - see above

        command_line(prog_name="batch-pipeline")
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
