"""Where the C extension cannot be compiled, nothing of it is installed, not an older one either; all else is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext


class OptionalExtensions(build_ext):
    """Extensions beside the sources, as far as they could be compiled."""

    def run(self) -> None:
        """Compile them anew."""
        for before in Path("store").glob("_kernels*.so") if self.editable_mode else ():
            before.unlink()
        super().run()

    def get_output_mapping(self) -> dict[str, str]:
        """Those that are there."""
        return {there: here for there, here in super().get_output_mapping().items() if Path(here).exists()}


setup(cmdclass={"build_ext": OptionalExtensions})
