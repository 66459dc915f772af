"""Starts the command line. Ctrl-C also works during the imports, which take a while."""

import gc
import sys

#: Garbage is collected after this number of new objects. With Python's default of 700, imports take
#: a fifth longer.
_OBJECTS = 200_000


def main() -> None:
    """Run the command. If it is stopped during the imports, print one word and no traceback."""
    gc.set_threshold(_OBJECTS)
    try:
        from batch_pipeline.cli import main as command_line  # noqa: PLC0415 - see above

        command_line(prog_name="batch-pipeline")
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
