"""feature-store: look after stores."""

import sys

import click
from encodeonce.store.errors import StoreError


def _unused() -> None: ...


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def feature_store() -> None:
    """Look after feature stores."""


def main() -> None:
    try:
        feature_store.main(standalone_mode=False)
    except StoreError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
