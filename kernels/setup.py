"""Build the shared library before the package is copied; the wheel fits one platform and every Python 3."""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))
from build_library import build


class PlatformDistribution(Distribution):
    """A distribution with compiled code outside of extension modules."""

    def has_ext_modules(self) -> bool:
        """Whether the wheel belongs to one platform: yes."""
        return True


class BuildPackage(build_py):
    """Compile the library into the package, then copy the package."""

    def run(self) -> None:
        """Raise subprocess.CalledProcessError if the compiler fails."""
        build()
        super().run()


class PlatformWheel(bdist_wheel):
    """A wheel that does not depend on the version of Python, because the library does not use it."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of Python, its interface, and the platform."""
        return "py3", "none", super().get_tag()[2]


setup(distclass=PlatformDistribution, cmdclass={"build_py": BuildPackage, "bdist_wheel": PlatformWheel})
