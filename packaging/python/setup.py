"""Version and platform of the wheel come from scripts/package_wheel.sh."""

import os

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel


class PlatformWheel(bdist_wheel):
    """Holds shared libraries, but nothing of one Python version."""

    def finalize_options(self):
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self):
        return "py3", "none", os.environ["KVAQ_WHEEL_PLATFORM"]


setup(version=os.environ["KVAQ_WHEEL_VERSION"], cmdclass={"bdist_wheel": PlatformWheel})
