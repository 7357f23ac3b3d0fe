"""What every step of the demo is made of: a title, one of our commands as a user would run it, a promise that is checked."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class DemoError(Exception):
    """A promise that did not hold."""


def heading(text: str) -> None:
    """A step's title."""
    print(f"\n{text}", flush=True)


def expect(condition: bool, otherwise: str) -> None:
    """Fail where a promise does not hold."""
    if not condition:
        raise DemoError(otherwise)


def run(command: Sequence[str]) -> None:
    """Run one of our commands, and show it and what it says while it says it.

    Raises:
        DemoError: it failed.
    """
    _run(command, lambda line: True)


def run_json(command: Sequence[str]) -> Any:
    """The same with --json, which is not shown: what the command says at its end.

    Raises:
        DemoError: it failed.
    """
    last = _run([*command, "--json"], lambda line: not line.startswith("{"))
    return json.loads(last)


def _run(command: Sequence[str], shown: Any) -> str:
    print(f"   $ {' '.join(part for part in command if part != '--json')}", flush=True)
    executable = Path(sys.executable).with_name(command[0])
    last = ""
    with subprocess.Popen(
        [str(executable), *command[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last = line.rstrip("\n")
            if shown(last):
                print(f"   {last}", flush=True)
    if process.returncode:
        raise DemoError(f"{command[0]} ended with status {process.returncode}")
    return last
