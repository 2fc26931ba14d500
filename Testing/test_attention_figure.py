"""The attention figure: the query's box and the heat are where they belong, in every orientation, down to pixels."""

from __future__ import annotations

import attention_models as am
import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="matplotlib is not installed: no pictures to test")

from geometry_lattices import rotation                                             # noqa: E402
from matplotlib.image import imread                                                # noqa: E402
from test_attention_maps import matrix, planted                                    # noqa: E402

from HiEndSegLib.errors import OptionError, OutputError                            # noqa: E402
from HiEndSegLib.figures_attention import attention_figure, plane_through          # noqa: E402
from HiEndSegLib.operations.attend import attend                                   # noqa: E402


def looked(codes="RAS", place=None, low=(8, 4, 4), at=(9, 9, 5), net=None, **options):
    """The bright cube is the only thing looked at; the query token is [8:12, 8:12, 4:8] of the RAS lattice."""
    volume, _ = planted(low, ijk_to_ras=place, codes=codes)
    point = ((matrix() if place is None else place) @ [*at, 1.0])[:3]
    return volume, attend(am.model(net or am.PeakedNet()), volume, at=point, **{"layers": [0, 2], **options})


@pytest.mark.parametrize("codes", ["RAS", "LAS", "PIR", "SLA"])
@pytest.mark.parametrize("place", [None, matrix(rotation(10, -8, 12))], ids=["straight", "oblique"])
def test_planes_show_the_query_and_the_planted_token(codes, place):
    volume, result = looked(codes, place)
    for name, down, across in (("axial", 1, 0), ("coronal", 2, 0), ("sagittal", 2, 1)):
        cut = plane_through(volume, result, name)
        assert cut.pixels.shape == (16, 16) and cut.pixel_mm == (2.0, 2.0)
        # token [8:12) along R and A, [4:8) along S; pictures run backward, 2 mm a voxel
        edges = {0: (8, 12), 1: (8, 12), 2: (4, 8)}
        x, y, width, height = cut.box
        assert (width, height) == pytest.approx((8.0, 8.0))
        assert x == pytest.approx((16 - edges[across][1]) * 2) and y == pytest.approx((16 - edges[down][1]) * 2)
        heat = cut.heat(result.maps[0])
        assert heat.shape == cut.pixels.shape and heat.max() <= 1.0
        if name == "axial":       # the cube lies at R [8:12), A [4:8) in this plane
            hot = np.argwhere(heat > 0.6)
            assert hot[:, 0].min() >= 16 - 8 and hot[:, 0].max() < 16 - 4
            assert hot[:, 1].min() >= 16 - 12 and hot[:, 1].max() < 16 - 8
            assert (cut.pixels[8:12, 4:8] == 250).all() and cut.pixels.sum() == 250 * 16 - 175 * 240


def test_the_picture_has_the_box_and_the_heat_at_their_pixels(tmp_path):
    volume, result = looked()
    path = tmp_path / "figure.png"
    attention_figure(volume, result, path, window=(425, 37.5))
    image = imread(path)[..., :3]
    panel, dots = 1.75, 120
    height, width = image.shape[:2]
    left, top = 0.55 * dots, (0.32 + 0.16) * dots                  # of the first panel, the query's
    side = panel * dots
    red = (image[..., 0] > 0.9) & (image[..., 1] < 0.35) & (image[..., 2] < 0.35)
    rows, columns = np.nonzero(red[int(top) - 2:int(top + side) + 2, int(left) - 2:int(left + side) + 2])
    found = np.array([columns.min(), columns.max(), rows.min(), rows.max()]) - 2
    wanted = np.array([4, 8, 4, 8]) / 16 * side                    # the box in the axial picture: [16 - 12, 16 - 8)
    assert np.abs(found - wanted).max() < 3.5, (found, wanted)
    # in the next panel the hottest color lies on the cube, below the query's box
    x0 = left + (panel + 0.08) * dots
    at = lambda row, column: image[int(top + row / 16 * side), int(x0 + column / 16 * side)]       # noqa: E731
    hot, cold = at(10, 6), at(2, 14)
    assert hot[0] > 0.5 and hot[0] > hot[2] + 0.2 and cold[2] > 0.2 and cold[2] > cold[0] + 0.2
    assert image.shape[0] > 3 * side and width > 3 * side          # three planes, the query and two layers


def test_single_heads_get_a_row_a_layer(tmp_path):
    volume, result = looked(net=am.RandomVitNet(), heads="all", layers=[1, 3])
    attention_figure(volume, result, tmp_path / "heads.png", plane="coronal", title="A $model$ with a title")
    tall, wide = imread(tmp_path / "heads.png").shape[:2]
    assert wide > tall
    for kind in ("sensitivity", "head"):
        net, tile = (am.ConvNet(), 16) if kind == "sensitivity" else (am.maskmed(), 24)
        volume, _ = planted((4, 4, 4), shape=(24, 24, 24))
        volume = volume.with_array(volume.array + np.random.default_rng(0).normal(0, 20, volume.shape))
        result = attend(am.model(net, tile=tile), volume, kind="encoder" if kind == "sensitivity" else kind)
        assert result.kind == kind
        attention_figure(volume, result, tmp_path / f"{kind}.png", window=None)
        assert (tmp_path / f"{kind}.png").stat().st_size > 2000


def test_large_volumes_are_cut_to_the_window_and_thin_ones_are_drawn(tmp_path):
    volume, _ = planted((20, 20, 20), shape=(60, 40, 17))
    result = attend(am.model(am.PeakedNet()), volume, at=(volume.ijk_to_ras @ [50, 8, 8, 1.0])[:3], layers=[0])
    cut = plane_through(volume, result, "axial")
    assert cut.pixels.shape == (16, 16)
    one = volume.with_array(volume.array).__class__(volume.array[:, :, :1], volume.ijk_to_ras)
    flat = attend(am.model(am.PeakedNet()), one, layers=[0])
    attention_figure(one, flat, tmp_path / "flat.png")
    assert plane_through(one, flat, "coronal").pixels.shape == (1, 16)


def test_bad_planes_and_places(tmp_path):
    volume, result = looked()
    with pytest.raises(OptionError, match="no plane 'oblique'"):
        attention_figure(volume, result, tmp_path / "x.png", plane="oblique")
    with pytest.raises(OutputError):
        attention_figure(volume, result, tmp_path / "nowhere" / "x.png")
    with pytest.raises(OutputError):
        attention_figure(volume, result, tmp_path / "x.jpg")
    assert not list(tmp_path.iterdir())
