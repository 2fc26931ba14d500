"""The stand-in's Slicer widgets on a real scene: what the panel relies on, and the mistakes they refuse."""

from __future__ import annotations

import pytest
from double import dialogs, failures, packages
from double.segmentation_widgets import WrongOrder


@pytest.fixture
def scene(slicerApp):
    import slicer
    return slicer.mrmlScene


@pytest.fixture
def combo(scene):
    import slicer

    made = slicer.qMRMLNodeComboBox()
    made.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    made.noneEnabled, made.addEnabled = True, False
    yield made
    made.setMRMLScene(None)
    made.delete()


def add(scene, kind="vtkMRMLScalarVolumeNode", name="CT"):
    return scene.AddNewNodeByClass(kind, name)


def test_a_node_box_is_grey_and_empty_without_a_scene(combo, scene):
    add(scene)
    assert combo.enabled is False and combo.nodeCount() == 0
    combo.setMRMLScene(scene)
    assert combo.enabled is True and combo.nodeCount() == 1 and combo.currentNode() is None


def test_a_node_box_filters_by_type_attribute_and_id(combo, scene):
    combo.setMRMLScene(scene)
    combo.setHideChildNodeTypes(["vtkMRMLLabelMapVolumeNode"])
    ct, labels, marked = add(scene), add(scene, "vtkMRMLLabelMapVolumeNode", "labels"), add(scene, name="heat")
    hidden = add(scene, name="hidden")
    hidden.SetHideFromEditors(True)
    marked.SetAttribute("HiEndSeg.HeatMap", "1")
    combo.sortFilterProxyModel().setHiddenNodeIDs([marked.GetID()])
    assert [combo.nodeFromIndex(n).GetName() for n in range(combo.nodeCount())] == ["CT"]
    combo.sortFilterProxyModel().setHiddenNodeIDs([])
    combo.addAttribute("vtkMRMLScalarVolumeNode", "HiEndSeg.HeatMap", "1")
    assert [combo.nodeFromIndex(n).GetName() for n in range(combo.nodeCount())] == ["heat"]
    assert ct is not None and labels is not None


def test_a_node_box_tells_of_its_choice_and_of_its_loss(combo, scene):
    combo.setMRMLScene(scene)
    heard = []
    combo.connect("currentNodeChanged(vtkMRMLNode*)", lambda node: heard.append(node and node.GetName()))
    ct = add(scene)
    combo.setCurrentNode(ct)
    ct.SetName("renamed")
    assert combo.currentNodeID == ct.GetID() and combo._box.itemText(1) == "renamed"
    scene.RemoveNode(ct)
    assert heard == ["CT", None]
    combo.setCurrentNode(add(scene, name="other"))
    scene.Clear(0)
    assert heard == ["CT", None, "other", None]


def test_show_3d_makes_and_removes_the_surface(scene):
    import numpy as np
    import slicer

    from HiEndSegLib.bridge.segmentations import segmentation_from_labels
    from HiEndSegLib.bridge.volumes import node_from_volume
    from HiEndSegLib.geometry.labels import Label
    from HiEndSegLib.geometry.volume import Volume

    labels = np.zeros((12, 12, 12), np.uint8)
    labels[3:9, 3:9, 3:9] = 1
    ct = node_from_volume(Volume(labels.astype(np.int16), np.eye(4), "CT"), scene)
    node = segmentation_from_labels(Volume(labels, np.eye(4), "labels"), [Label(
        1, "liver", "Liver", (200, 100, 90), {"category": ["SCT", "123037004", "Anatomical Structure"],
                                              "type": ["SCT", "10200004", "Liver"], "modifier": None})], ct)
    button = slicer.qMRMLSegmentationShow3DButton()
    assert button.enabled is False
    button.setSegmentationNode(node)
    assert button.enabled is True and button.checked is False
    surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    button.click()
    assert node.GetSegmentation().ContainsRepresentation(surface)
    button.click()
    assert not node.GetSegmentation().ContainsRepresentation(surface)
    button.setSegmentationNode(None)
    button.delete()


def plot_chart(scene, values=(3.0, 2.0, 1.0)):
    import slicer
    import vtk

    table, series, chart = (add(scene, f"vtkMRML{kind}Node", kind) for kind in ("Table", "PlotSeries", "PlotChart"))
    for name in ("x", "y"):
        column = vtk.vtkDoubleArray()
        column.SetName(name)
        for number, value in enumerate(values):
            column.InsertNextValue(number if name == "x" else value)
        table.GetTable().AddColumn(column)
    series.SetAndObserveTableNodeID(table.GetID())
    series.SetXColumnName("x")
    series.SetYColumnName("y")
    series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
    chart.AddAndObservePlotSeriesNodeID(series.GetID())
    return chart


def test_a_plot_view_draws_the_chart_of_its_node(scene):
    import slicer

    chart, node = plot_chart(scene), scene.CreateNodeByClass("vtkMRMLPlotViewNode")
    node.UnRegister(None)
    view = slicer.qMRMLPlotView()
    with pytest.raises(RuntimeError):
        view.setMRMLPlotViewNode(node)              # the view has no scene yet
    view.setMRMLScene(scene)
    node.SetAndObserveParentLayoutNodeID(chart.GetID())
    scene.AddNode(node)
    node.SetPlotChartNodeID(chart.GetID())
    view.setMRMLPlotViewNode(node)
    assert [(name, len(points)) for name, _color, points in view._lines] == [("PlotSeries", 3)]
    view.resize(200, 120)
    empty = view.grab().toImage()
    scene.RemoveNode(chart)
    assert view._lines == [] and view.grab().toImage() != empty
    with pytest.raises(AttributeError):
        view.mrmlPlotViewNode()                     # not invokable in Slicer either
    view.setMRMLPlotViewNode(None)
    view.setMRMLScene(None)
    view.delete()


def test_a_plot_view_node_without_an_owner_is_the_layout_managers(scene):
    add(scene, "vtkMRMLPlotViewNode", "mine")
    assert any("NoOwner" in text for text in failures.taken())


def test_the_editor_insists_on_its_order(scene):
    import slicer

    def own():
        node = scene.CreateNodeByClass("vtkMRMLSegmentEditorNode")
        node.UnRegister(None)
        node.SetSingletonTag("Mine")
        return scene.AddNode(node)
    editor = slicer.qMRMLSegmentEditorWidget()
    segmentation, ct = add(scene, "vtkMRMLSegmentationNode", "s"), add(scene)
    with pytest.raises(WrongOrder):
        editor.setMRMLScene(scene)
    shared = scene.CreateNodeByClass("vtkMRMLSegmentEditorNode")
    shared.UnRegister(None)
    shared.SetSingletonTag("SegmentEditor")
    with pytest.raises(WrongOrder):
        editor.setMRMLSegmentEditorNode(shared)
    editor.setMRMLSegmentEditorNode(own())
    with pytest.raises(WrongOrder):
        editor.setSegmentationNode(segmentation)
    editor.setMRMLScene(scene)
    with pytest.raises(WrongOrder):
        editor.setSourceVolumeNode(ct)
    editor.setSegmentationNode(segmentation)
    editor.setSourceVolumeNode(ct)
    editor.installKeyboardShortcuts()
    with pytest.raises(WrongOrder):
        editor.installKeyboardShortcuts()
    editor.uninstallKeyboardShortcuts()
    editor.updateWidgetFromMRML()
    scene.RemoveNode(editor.mrmlSegmentEditorNode())
    with pytest.raises(WrongOrder):
        editor.updateWidgetFromMRML()
    editor.delete()


def test_a_section_hides_what_it_holds(slicerApp):
    import ctk
    import qt

    section, heard = ctk.ctkCollapsibleButton("Section"), []
    layout = qt.QVBoxLayout(section)
    shown, hidden = qt.QLabel("a"), qt.QLabel("b")
    layout.addWidget(shown)
    layout.addWidget(hidden)
    hidden.setVisible(False)
    section.connect("contentsCollapsed(bool)", heard.append)
    section.show()
    section.collapsed = True
    assert shown.visible is False and heard == [True]
    section.collapsed = False
    assert shown.visible is True and hidden.visible is False
    section.delete()


def test_a_dialog_without_an_answer_fails_the_test(slicerApp):
    import qt
    import slicer

    dialogs.answer(qt.QMessageBox.Ok)
    assert slicer.util.confirmOkCancelDisplay("Go?") is True
    assert dialogs.shown == [("message", "Go?")]
    with pytest.raises(dialogs.Unexpected):
        slicer.util.confirmOkCancelDisplay("Again?")
    assert failures.taken()
    slicerApp.testing = True
    before = list(dialogs.shown)
    slicer.util.confirmOkCancelDisplay("In testing mode nobody is asked")
    assert dialogs.shown == before


def test_a_form_with_a_mistake_is_refused(slicerApp, tmp_path):
    import slicer

    form = """<ui version="4.0"><class>F</class><widget class="qMRMLWidget" name="F"><layout class="QVBoxLayout">
      <item><widget class="qMRMLNodeComboBox" name="box"><property name="{property}"><bool>true</bool></property>
      </widget></item></layout></widget><connections><connection><sender>F</sender>
      <signal>mrmlSceneChanged(vtkMRMLScene*)</signal><receiver>{receiver}</receiver>
      <slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections></ui>"""
    path = tmp_path / "form.ui"
    path.write_text(form.format(property="noneEnabled", receiver="box"))
    widget = slicer.util.loadUI(str(path))
    ui = slicer.util.childWidgetVariables(widget)
    widget.setMRMLScene(slicer.mrmlScene)
    assert ui.box.noneEnabled is True and ui.box.mrmlScene() is slicer.mrmlScene
    widget.setMRMLScene(None)
    for wrong in ({"property": "noneEnabeld", "receiver": "box"}, {"property": "noneEnabled", "receiver": "bax"}):
        path.write_text(form.format(**wrong))
        with pytest.raises(ValueError):
            slicer.util.loadUI(str(path))


def test_slicer_5_10_has_no_packaging(slicerApp):
    import slicer

    try:
        packages.slicer_version(slicer, "5.10")
        with pytest.raises(ImportError):
            import slicer.packaging                                          # noqa: F401
    finally:
        packages.slicer_version(slicer, "5.12")
    import slicer.packaging                                                  # noqa: F811

    slicer.packaging.pip_ensure(["a>=1"], requester="HiEndSeg")
    assert packages.asked == [("pip_ensure", ["a>=1"])]
