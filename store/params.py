"""Types of command-line options."""

import re
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


class QuantizerRange(click.ParamType):
    """The first and the last of some quantizers in a row: 0-7, or one alone."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Both numbers."""
        named = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", value)
        if named is None:
            self.fail(f"{value!r}: give one number or a range, such as 0 or 1-7", param, ctx)
        return int(named[1]), int(named[2] or named[1])
