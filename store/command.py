"""How every command of the project ends: what is expected is a line on stderr and an exit status, never a traceback."""

import sys
from collections.abc import Sequence

import click
from encodeonce.store.errors import StoreError


def run_command(
    command: click.Command,
    arguments: Sequence[str] | None,
    errors: tuple[type[Exception], ...] = (StoreError,),
    interrupted: str = "",
) -> None:
    """Run a command: an expected error, and one of the machine's files, is exit status 2, an interrupt 130.

    Args:
        errors: the expected ones; their message says what is wrong, and the way out.
        interrupted: what to tell after an interrupt.
    """
    try:
        command.main(arguments, standalone_mode=False)
    except click.exceptions.Exit as done:
        sys.exit(done.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (*errors, OSError) as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        if interrupted:
            click.echo(f"interrupted: {interrupted}", err=True)
        sys.exit(130)
