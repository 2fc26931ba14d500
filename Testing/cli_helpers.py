"""What the command line's tests share: small images, a fake engine for the logic, a real tiny model for the rest."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
from tiny_models import write_tiny

from HiEndSegLib.cli import main
from HiEndSegLib.errors import EngineError
from HiEndSegLib.geometry.statistics import structure_statistics
from HiEndSegLib.models.registry import Registry
from HiEndSegLib.operations.result import SegmentResult

NETWORK = {"kind": "pointwise", "num_classes": 3, "in_channels": 1, "img_size": 24, "mask_dim": 4,
           "vit": {"name": "vit_tiny_12p", "embed_dim": 24, "depth": 1, "num_heads": 2}, "taps": [],
           "channels": [8, 8, 8], "fsad_dim": 12, "fsad_heads": 2, "fsad_depth": 1}


def build_liver_everywhere(config):
    """The card's network with weights that call every voxel of the body "liver", whatever it looks like."""
    import torch

    from HiEndSegLib.networks.build import build_network

    network = build_network(config)
    with torch.no_grad():
        network.classifier.weight.zero_()
        network.classifier.bias.copy_(torch.tensor([0.0, 8.0, 0.0]))
    return network


def write_real_model(folder: Path, **changes) -> Path:
    """A model folder that the worker can load, run and whose answer is known."""
    return write_tiny(folder, build_liver_everywhere, network=NETWORK, **changes)


def write_ct(path: Path, shape=(30, 32, 28), spacing=3.0, hu=40) -> Path:
    """A ball of tissue in air, 3 mm; nibabel writes the kind that the name says."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    ball = np.linalg.norm((grid - (np.array(shape) - 1) / 2) / (np.array(shape) / 2), axis=-1) < 0.8
    array = np.where(ball, hu, -1000).astype(np.int16)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([-spacing, -spacing, spacing, 1])), path)
    return path


class FakeEngine:
    """Calls everything above 0 HU "liver"; fails where the volume's name says so; counts what it was asked."""

    def __init__(self):
        self.asked: list[dict] = []
        self.interrupt_at: str | None = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def segment(self, volume, *, model, device, only, roi, progress, cancel):
        self.asked.append({"name": volume.name, "model": model, "device": device, "only": only, "roi": roi})
        progress(0.0, "30 x 32 x 28 voxels: about 0.2 GB of main memory (10 GB free).")
        if "crash" in volume.name:
            raise EngineError("The engine stopped while it worked (killed by signal 9); try again.")
        if "bug" in volume.name:
            raise ZeroDivisionError("division by zero")
        if volume.name == self.interrupt_at:
            cancel.cancel()
        progress(0.5, "Half way")
        cancel.check()
        card = Registry().get(model)
        labels = volume.with_array((np.asarray(volume.array) > 0).astype(np.uint8))
        legend = [label for label in card.labels if only is None or label.id in only]
        return SegmentResult(labels, legend, structure_statistics(labels, volume, legend),
                             {"model": {"id": card.id}, "tiles": {"run": 1}}, [])


def files_in(folder: Path) -> list[str]:
    """Names of all files below a folder, hidden and temporary ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def run(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command."""
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err
