"""What `pyproject.toml` cannot say: `Resources/` stays at the top of the project and travels inside the wheel."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["HiEndSegLib", "HiEndSegLib.*", "HiEndSegWeb", "HiEndSegWeb.*", "training",
                                     "training.*"]),
              "HiEndSegLib._resources"],
    package_dir={"HiEndSegLib._resources": "Resources"},
    package_data={"HiEndSegLib._resources": ["**/*"], "HiEndSegWeb": ["serve/*"]},
)
