"""The command line: python -m tinystories_lab [run|prepare|tokenizer|train|generate|retrospective|export]."""

import sys


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Return the exit status, as `run_command` does."""
    try:
        from tinystories_lab.cli import run_command  # takes two seconds
    except KeyboardInterrupt:
        print("\nstopped before the first stage", file=sys.stderr)
        return 130
    return run_command(arguments)


if __name__ == "__main__":
    sys.exit(main())
