"""Types of command-line options."""

from typing import Any

import click
from encodeonce.store.errors import StoreError
from encodeonce.store.objects import StorePath, store_path


class StorePathParam(click.ParamType):
    """A local path, or the URL of an object store such as s3://bucket/features."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> StorePath:
        """The path, of either kind."""
        try:
            return store_path(value)
        except StoreError as error:
            self.fail(str(error), param, ctx)
