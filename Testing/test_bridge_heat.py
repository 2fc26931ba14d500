"""Heat maps in slice views: pixels of MRML's own slice pipeline, and everything as before when they go."""

from __future__ import annotations

import numpy as np
import pytest
import vtk
from bridge_scene import LATTICES, SHAPE, affine, grid_transform, linear_transform, scene, slicer   # noqa: F401
from vtkmodules.util import numpy_support


from HiEndSegLib.bridge.cloud import drawn_by_a_card
from HiEndSegLib.bridge.heat import (color_node, drop_heat, heat_color, heat_node, is_heat, keep_heat, show_legend,
                                     style_heat, update_heat)
from HiEndSegLib.bridge.points import QueryPoint
from HiEndSegLib.bridge.views import Foreground, composites
from HiEndSegLib.bridge.volumes import node_from_volume, volume_ras_to_world
from HiEndSegLib.geometry.volume import Volume

SIZE = 120


class View:
    """One slice view without a window: what MRML's slice logic would put on the screen."""

    def __init__(self, scene, name="Red"):
        self.application = slicer.vtkMRMLApplicationLogic()
        self.application.SetMRMLScene(scene)
        self.application.SetSliceLogics(vtk.vtkCollection())
        colors = slicer.vtkMRMLColorLogic()
        colors.SetMRMLScene(scene)
        colors.AddDefaultColorNodes()                       # gray, which the volumes before the map are drawn with
        self.colors = colors
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene, True)
        self.slice = slicer.vtkMRMLSliceNode()
        self.slice.SetLayoutName(name)
        self.slice.SetSingletonTag(name)
        scene.AddNode(self.slice)
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(self.application)
        self.application.GetSliceLogics().AddItem(self.logic)
        self.logic.SetMRMLScene(scene)
        self.logic.SetSliceNode(self.slice)
        self.composite = self.logic.GetSliceCompositeNode()

    def look_at(self, world, wide=120.0):
        """An axial plane through a world point, the point in the middle pixel."""
        self.slice.SetOrientationToAxial()
        self.slice.SetDimensions(SIZE, SIZE, 1)
        self.slice.SetFieldOfView(wide, wide, 1)
        self.slice.SetXYZOrigin(0, 0, 0)
        self.slice.JumpSliceByCentering(*world)

    def pixels(self):
        """(rows, columns, 3) float, on black where nothing is."""
        connection = self.logic.GetImageDataConnection()
        connection.GetProducer().Update()
        image = connection.GetProducer().GetOutputDataObject(connection.GetIndex())
        values = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars())
        values = values.reshape(image.GetDimensions()[1], image.GetDimensions()[0], 4).astype(float)
        return values[..., :3] * values[..., 3:] / 255

    def pixel_of(self, world):
        """(row, column) of a world point, which must lie in the plane."""
        inverse = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(self.slice.GetXYToRAS(), inverse)
        x, y, z, _one = inverse.MultiplyPoint((*[float(v) for v in world], 1.0))
        assert abs(z) < 0.5
        return y, x

    def close(self):
        self.logic.SetMRMLScene(None)
        self.colors.SetMRMLScene(None)


@pytest.fixture
def view(scene):                
    made = View(scene)
    yield made
    made.close()


def volume_of(scene, lattice="axis-aligned"):
    """A large, dark volume, so that every pixel that is bright is ours."""
    shape, matrix = LATTICES[lattice]
    node = node_from_volume(Volume(np.full(shape, -1000, np.int16), matrix, "CT"), scene)
    node.GetDisplayNode().AutoWindowLevelOff()
    node.GetDisplayNode().SetWindowLevel(400, 40)
    return node


def hot_token(matrix, shape=(5, 5, 4), token=(3, 1, 2), patch=3):
    """A map on tokens of `patch` voxels with one hot one; and its centre in the volume's own RAS."""
    own = np.eye(4)
    own[:3, :3] *= patch
    own[:3, 3] = (patch - 1) / 2
    weights = np.zeros(shape, np.float32)
    weights[token] = 1.0
    lattice = matrix @ own
    return Volume(weights, lattice), (lattice @ [*token, 1.0])[:3]


def brightest(pixels):
    """(row, column) of the middle of what is brightest."""
    total = pixels.sum(axis=2)
    return np.argwhere(total >= 0.98 * total.max()).mean(axis=0)


@pytest.mark.parametrize("lattice", ["axis-aligned", "left-handed", "oblique", "permuted"])
@pytest.mark.parametrize("parent", ["none", "linear"])
def test_the_hot_spot_is_drawn_at_its_millimeter(scene, view, lattice, parent):
    ct = volume_of(scene, lattice)
    if parent == "linear":
        ct.SetAndObserveTransformNodeID(linear_transform(scene).GetID())
    heat, center = hot_token(LATTICES[lattice][1])
    world = volume_ras_to_world(ct, center)
    node = heat_node(ct, heat, "Attention")
    style_heat(node, top=1.0, floor=0.3, smooth=True)
    view.look_at(world)
    view.composite.SetBackgroundVolumeID(ct.GetID())
    dark = view.pixels()
    foreground = Foreground(scene)
    assert foreground.show(node, ct, 1.0) == 1
    lit = view.pixels()
    where = view.pixel_of(world)
    assert np.abs(brightest(lit) - where).max() < 1.5, "a pixel is a millimeter"
    # the strongest color there, the CT's own color where the map is weak
    middle = lit[tuple(np.round(where).astype(int))]
    assert np.abs(middle - heat_color(1.0)).max() < 12
    assert np.array_equal(lit[2, 2], dark[2, 2]) and dark.max() < 5
    foreground.hide()
    assert np.array_equal(view.pixels(), dark)


def test_under_a_bend_it_moves_with_the_patient(scene, view):
    ct = volume_of(scene)
    heat, center = hot_token(LATTICES["axis-aligned"][1])
    ct.SetAndObserveTransformNodeID(grid_transform(scene).GetID())
    world = volume_ras_to_world(ct, center)
    assert np.abs(world - center).max() > 1
    node = heat_node(ct, heat, "Attention")
    style_heat(node, 1.0, 0.3, True)
    view.look_at(world)
    view.composite.SetBackgroundVolumeID(ct.GetID())
    Foreground(scene).show(node, ct, 1.0)
    assert np.abs(brightest(view.pixels()) - view.pixel_of(world)).max() < 2


def test_opacity_threshold_and_smoothing_are_seen(scene, view):
    ct = volume_of(scene)
    heat, center = hot_token(LATTICES["axis-aligned"][1])
    node = heat_node(ct, heat, "Attention")
    view.look_at(center)
    view.composite.SetBackgroundVolumeID(ct.GetID())
    foreground = Foreground(scene)
    style_heat(node, 1.0, 0.5, True)
    foreground.show(node, ct, 1.0)
    wide = (view.pixels().sum(axis=2) > 30).sum()
    style_heat(node, 1.0, 0.9, True)
    assert 0 < (view.pixels().sum(axis=2) > 30).sum() < wide / 2
    style_heat(node, 1.0, 0.5, False)
    blocky = view.pixels()
    inside_token = blocky[SIZE // 2 - 1:SIZE // 2 + 2, SIZE // 2 - 1:SIZE // 2 + 2].reshape(-1, 3)
    assert np.ptp(inside_token, axis=0).max() == 0, "one token, one color"
    foreground.set_opacity(0.5)
    assert np.abs(view.pixels()[SIZE // 2, SIZE // 2] - inside_token[0] / 2).max() < 3


def test_another_map_takes_the_place_at_once(scene, view):
    ct = volume_of(scene)
    matrix = LATTICES["axis-aligned"][1]
    heat, center = hot_token(matrix)
    node = heat_node(ct, heat, "Attention")
    style_heat(node, 1.0, 0.3, True)
    other, elsewhere = hot_token(matrix, token=(1, 3, 2))
    update_heat(node, other, ct)
    view.look_at(elsewhere)
    view.composite.SetBackgroundVolumeID(ct.GetID())
    Foreground(scene).show(node, ct, 1.0)
    assert np.abs(brightest(view.pixels()) - view.pixel_of(elsewhere)).max() < 1.5
    assert scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 2


def settings(scene):
    """Everything about views, mouse and crosshair that a person may have set."""
    views = {view.GetLayoutName(): (view.GetBackgroundVolumeID(), view.GetForegroundVolumeID(),
                                    view.GetLabelVolumeID(), view.GetForegroundOpacity(), view.GetLabelOpacity(),
                                    view.GetCompositing(), view.GetLinkedControl(), view.GetHotLinkedControl())
             for view in composites(scene)}
    displays = {}
    for n in range(scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")):
        node = scene.GetNthNodeByClass(n, "vtkMRMLScalarVolumeNode")
        display = node.GetDisplayNode()
        if display is not None and not is_heat(node):
            displays[node.GetID()] = (display.GetWindow(), display.GetLevel(), display.GetAutoWindowLevel(),
                                      display.GetInterpolate(), display.GetApplyThreshold(),
                                      display.GetLowerThreshold(), display.GetColorNodeID())
    cross = scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    mouse, selection = (scene.GetFirstNodeByClass(kind) for kind in ("vtkMRMLInteractionNode", "vtkMRMLSelectionNode"))
    return (views, displays, cross and (cross.GetCrosshairMode(), cross.GetCrosshairThickness(),
                                        tuple(cross.GetCrosshairRAS())),
            mouse and (mouse.GetCurrentInteractionMode(), mouse.GetPlaceModePersistence()),
            selection and (selection.GetActivePlaceNodeClassName(), selection.GetActivePlaceNodeID(),
                           selection.GetActiveVolumeID()))


@pytest.fixture
def furnished(scene, view):
    """A fusion view as a person made it, with a second view of something else."""
    ct = volume_of(scene)
    pet = node_from_volume(Volume(np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE),
                                  LATTICES["axis-aligned"][1], "PET"), scene)
    for node, window in ((ct, (321, 77)), (pet, (900, 500))):
        node.GetDisplayNode().AutoWindowLevelOff()
        node.GetDisplayNode().SetWindowLevel(*window)
    pet.GetDisplayNode().SetInterpolate(0)
    view.composite.SetBackgroundVolumeID(ct.GetID())
    view.composite.SetForegroundVolumeID(pet.GetID())
    view.composite.SetForegroundOpacity(0.35)
    view.composite.SetCompositing(view.composite.Add)
    view.composite.SetLinkedControl(1)
    other = slicer.vtkMRMLSliceCompositeNode()
    other.SetLayoutName("Green")
    other.SetSingletonTag("Green")
    scene.AddNode(other)
    other.SetBackgroundVolumeID(pet.GetID())
    other.SetForegroundOpacity(0.8)
    crosshair = slicer.vtkMRMLCrosshairNode()
    crosshair.SetCrosshairRAS(5.0, 6.0, 7.0)
    crosshair.SetCrosshairMode(crosshair.ShowSmallBasic)
    scene.AddNode(crosshair)
    return ct, pet, other


def test_everything_is_as_before_when_it_closes(scene, view, furnished):
    ct, pet, other = furnished
    before = settings(scene)
    node = heat_node(ct, hot_token(LATTICES["axis-aligned"][1])[0], "Attention")
    style_heat(node, 1.0, 0.2, True)
    foreground, point = Foreground(scene), QueryPoint(scene, lambda: None)
    assert foreground.show(node, ct, 0.6) == 1, "the view of another volume is none of ours"
    assert other.GetForegroundVolumeID() is None
    foreground.set_opacity(0.7)
    point.put((1.0, 2.0, 3.0))
    assert point.place()
    assert view.composite.GetForegroundVolumeID() == node.GetID()
    assert settings(scene) != before
    foreground.hide()
    point.remove()
    drop_heat(scene, node.GetID())
    assert settings(scene) == before


def test_what_a_person_chose_meanwhile_stays(scene, view, furnished):
    ct, pet, other = furnished
    node = heat_node(ct, hot_token(LATTICES["axis-aligned"][1])[0], "Attention")
    foreground = Foreground(scene)
    foreground.show(node, ct, 0.6)
    view.composite.SetForegroundVolumeID(None)
    view.composite.SetForegroundOpacity(0.1)
    foreground.show(node, ct, 0.6)
    assert view.composite.GetForegroundVolumeID() is None, "it is not forced upon the view again"
    foreground.hide()
    assert (view.composite.GetForegroundVolumeID(), view.composite.GetForegroundOpacity()) == (None, 0.1)
    foreground.show(node, ct, 0.6)
    view.composite.SetForegroundOpacity(0.8)                            # by the view's own slider
    foreground.show(node, ct, 0.6)
    assert view.composite.GetForegroundOpacity() == 0.8
    foreground.show(node, ct, 0.4)
    assert view.composite.GetForegroundOpacity() == 0.4


def test_a_former_foreground_that_is_gone_leaves_none(scene, view, furnished):
    ct, pet, _other = furnished
    node = heat_node(ct, hot_token(LATTICES["axis-aligned"][1])[0], "Attention")
    foreground = Foreground(scene)
    foreground.show(node, ct, 0.6)
    scene.RemoveNode(pet)
    foreground.hide()
    assert view.composite.GetForegroundVolumeID() is None and view.composite.GetForegroundOpacity() == 0.35


def test_maps_are_in_no_box_and_not_saved(scene, tmp_path):
    ct = volume_of(scene)
    heat, _center = hot_token(LATTICES["axis-aligned"][1])
    node = heat_node(ct, heat, "Attention of something")
    style_heat(node, 1.0, 0.25, True)
    assert node.GetHideFromEditors() and is_heat(node)
    path = str(tmp_path / "scene.mrml")
    scene.SetURL(path)
    scene.Commit(path)
    text = (tmp_path / "scene.mrml").read_text(encoding="utf-8")
    assert "Attention of something" not in text and "HiEndSeg heat" not in text
    kept = keep_heat(node, ct, "CT attention of block 12", "what it is")
    assert not kept.GetHideFromEditors() and not is_heat(kept) and kept.GetSaveWithScene()
    assert kept.GetDescription() == "what it is"
    scene.Commit(path)
    text = (tmp_path / "scene.mrml").read_text(encoding="utf-8")
    assert "CT attention of block 12" in text and "HiEndSeg heat" in text
    drop_heat(scene, node.GetID())
    drop_heat(scene, kept.GetID())
    assert scene.GetNodeByID(kept.GetID()) is kept, "what is kept is the person's"
    voxels = numpy_support.vtk_to_numpy(kept.GetImageData().GetPointData().GetScalars())
    assert np.array_equal(np.sort(voxels), np.sort(heat.array.ravel()))
    assert kept.GetDisplayNode().GetLowerThreshold() == pytest.approx(0.25)


def test_colors_are_made_once_and_run_from_dark_to_light(scene):
    node = color_node(scene)
    assert color_node(scene) is node and node.GetNumberOfColors() == 256
    lookup, last = node.GetLookupTable(), -1.0
    for index in range(256):
        color = lookup.GetTableValue(index)
        assert np.abs(np.array(color[:3]) * 255 - heat_color(index / 255)).max() < 1.01
        light = 0.2126 * color[0] + 0.7152 * color[1] + 0.0722 * color[2]
        assert light > last - 1e-6, "a stronger value never looks darker"
        last = light


def test_the_legend_comes_and_goes(scene):
    ct = volume_of(scene)
    node = heat_node(ct, hot_token(LATTICES["axis-aligned"][1])[0], "Attention")
    if not hasattr(slicer.vtkSlicerColorLogic, "GetColorLegendDisplayNode"):
        assert show_legend(node, True, "times") is False
        return
    assert show_legend(node, True, "times an even spread")
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(node)
    assert legend.GetVisibility() and legend.GetTitleText() == "times an even spread"
    assert not legend.GetSaveWithScene()
    assert show_legend(node, False) is False and not legend.GetVisibility()
    drop_heat(scene, node.GetID())
    assert scene.GetNumberOfNodesByClass("vtkMRMLColorLegendDisplayNode") == 0


@pytest.mark.parametrize("renderer, wanted", [
    ("llvmpipe (LLVM 15.0.6, 256 bits)", False), ("GDI Generic", False), ("Microsoft Basic Render Driver", False),
    ("NVIDIA GeForce RTX 3060/PCIe/SSE2", True), ("Apple M2", True), ("Mesa Intel(R) UHD Graphics 620", True)])
def test_software_is_no_graphics_card(renderer, wanted):
    class Window:
        def ReportCapabilities(self):
            return f"OpenGL vendor string:  some\nOpenGL renderer string:  {renderer}\nOpenGL version string:  4.5"

    assert drawn_by_a_card(Window()) is wanted
    assert not drawn_by_a_card(None)


def test_a_volume_that_is_gone_takes_no_map(scene):
    from HiEndSegLib.errors import InputError

    ct = volume_of(scene)
    scene.RemoveNode(ct)
    with pytest.raises(InputError, match="no longer in the scene"):
        heat_node(ct, Volume(np.zeros((2, 2, 2), np.float32), affine()), "Attention")
