"""Modules that come with Slicer or another extension: i18n, packaging, PyTorchUtils, SampleData. They record calls."""

from __future__ import annotations

import sys
import types

#: What was asked for, in order: ("pip_ensure", [requirements]), ("installTorch", requirement), ("sample", name) …
asked: list[tuple] = []
#: Texts that were given to be translated.
translated: set[str] = set()


def _module(name: str, **contents) -> types.ModuleType:
    module = types.ModuleType(name)
    for key, value in contents.items():
        setattr(module, key, value)
    return module


def _translate(context, text):
    translated.add(text)
    return text


def _tr(text):
    translated.add(text)
    return text


def _load_requirements(path):
    """Lines of a requirements file as Slicer 5.12 reads them: no comments, no pip options."""
    with open(path, encoding="utf-8") as lines:
        stripped = [line.strip() for line in lines]
    return [line for line in stripped if line and not line.startswith(("#", "-"))]


def _pip_ensure(requirements, constraints=None, skip_packages=None, prompt_install=True, prompt_restart=True,
                requester=None, skip_in_testing=True, show_progress=True):
    asked.append(("pip_ensure", [str(r) for r in requirements]))


class PyTorchUtilsLogic:
    def installTorch(self, askConfirmation=False, forceComputationBackend=None, torchVersionRequirement=None,
                     torchvisionVersionRequirement=None):
        asked.append(("installTorch", torchVersionRequirement))
        return types.SimpleNamespace(__version__="2.13.0")


class SampleDataLogic:
    sources: dict = {}

    @staticmethod
    def sampleDataSourcesByCategory(category):
        return SampleDataLogic.sources.get(category, [])

    @staticmethod
    def registerCustomSampleDataSource(category="Custom", sampleName=None, uris=None, fileNames=None, nodeNames=None,
                                       customDownloader=None, thumbnailFileName=None, loadFileType=None,
                                       loadFiles=None, loadFileProperties=None, checksums=None):
        asked.append(("sample", category, sampleName))
        SampleDataLogic.sources.setdefault(category, []).append(
            types.SimpleNamespace(sampleName=sampleName, customDownloader=customDownloader))


def slicer_version(slicer, version: str) -> None:
    """Behave as Slicer 5.10, which has no `slicer.packaging`, or as 5.12."""
    if version == "5.10":
        slicer.__dict__.pop("packaging", None)
        sys.modules["slicer.packaging"] = None           # import fails
    else:
        slicer.packaging = sys.modules["slicer.packaging"] = _module(
            "slicer.packaging", pip_ensure=_pip_ensure, load_requirements=_load_requirements,
            pip_install=lambda requirements, **keywords: asked.append(("pip_install", list(requirements))))


def pytorch_extension(installed: bool) -> None:
    if installed:
        sys.modules["PyTorchUtils"] = _module("PyTorchUtils", PyTorchUtilsLogic=PyTorchUtilsLogic)
    else:
        sys.modules["PyTorchUtils"] = None


def install(slicer) -> None:
    slicer.i18n = sys.modules["slicer.i18n"] = _module("slicer.i18n", tr=_tr, translate=_translate)
    slicer_version(slicer, "5.12")
    pytorch_extension(True)
    sys.modules["SampleData"] = _module("SampleData", SampleDataLogic=SampleDataLogic)
    slicer.util.pip_install = lambda requirements: asked.append(("pip_install", requirements))
    slicer.util.pip_uninstall = lambda requirements: asked.append(("pip_uninstall", requirements))
