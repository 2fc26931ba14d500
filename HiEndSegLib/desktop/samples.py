"""The CT that ships: in Slicer's Sample Data module, and loaded from its file without a network."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..presenter.wording import translator
from ..resources import resource

_ = translator(__name__)

CATEGORY = "HiEndSeg"
#: For scripts: `SampleData.downloadSample("HiEndSegTorsoCT")`. Not translated.
SAMPLE_NAME = "HiEndSegTorsoCT"
FILE_NAME = "ct-abdomen-09.nii.gz"
SHA256 = "54238ec5f7dd27f2e1c5701b0910a105ac29f71b57ac84f71897e105babd7097"
#: Only a script's `downloadSample` comes here; the button in Sample Data loads the file that ships.
URI = "https://raw.githubusercontent.com/HiEndSeg/SlicerHiEndSeg/main/Resources/Sample/ct-abdomen-09.nii.gz"


def sample_path() -> Path:
    """The sample CT as it was installed. Raises InputError where it is missing."""
    path = resource(f"Sample/{FILE_NAME}")
    if not path.is_file():
        raise InputError(_("The sample CT {path} is missing; install HiEndSeg again.").format(path=path))
    return path


def load_sample(slicer: Any = None) -> Any:
    """Load the sample CT into the scene and return its volume node. Raises InputError.

    The node forgets the file it came from: saving the scene must write a copy, never change what was installed.
    slicer: the module, for tests.
    """
    if slicer is None:
        import slicer
    path = sample_path()
    try:
        node = slicer.util.loadVolume(str(path), {"name": SAMPLE_NAME})
    except RuntimeError as error:                     # what Slicer raises for any file it cannot read
        raise InputError(_("Slicer could not read the sample CT {path}; install HiEndSeg again.").format(path=path)
                         ) from error
    storage = node.GetStorageNode()
    if storage is not None:
        scene = node.GetScene()
        node.SetAndObserveStorageNodeID(None)
        scene.RemoveNode(storage)
    return node


def register_samples(sample_data: Any = None) -> bool:
    """Add the sample CT to the Sample Data module; False where it was there already (the module was reloaded).

    sample_data: Slicer's SampleData module, for tests. Its logic's `registerCustomSampleDataCategory` is new in 5.12.
    """
    if sample_data is None:
        import SampleData as sample_data
    logic = sample_data.SampleDataLogic
    if any(source.sampleName == SAMPLE_NAME for source in logic.sampleDataSourcesByCategory(CATEGORY)):
        return False
    if hasattr(logic, "registerCustomSampleDataCategory"):
        logic.registerCustomSampleDataCategory(CATEGORY, title=_("HiEndSeg"))
    logic.registerCustomSampleDataSource(
        category=CATEGORY, sampleName=SAMPLE_NAME, nodeNames=SAMPLE_NAME, uris=URI, fileNames=FILE_NAME,
        checksums=f"SHA256:{SHA256}", thumbnailFileName=str(resource("Sample/ct-abdomen-09.png")),
        customDownloader=_load_for_sample_data)
    return True


def _load_for_sample_data(source: Any) -> list:
    """What the button in Sample Data does. That module shows no error of its own, so it is said here."""
    import slicer

    try:
        return [load_sample(slicer)]
    except InputError as error:
        logging.getLogger(__name__).error("%s", error)
        slicer.util.errorDisplay(str(error))
        return []
