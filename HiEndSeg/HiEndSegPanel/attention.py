"""The Attention section: an `AttentionPresenter`'s state in widgets, and widgets' changes to the presenter."""

from __future__ import annotations

import functools
import logging

import qt
import slicer
from slicer.i18n import tr as _

from .widgets import ButtonRow, Connections, fillBox, fillTree, fitTree, setText, swatch

#: Rows that are seen without scrolling.
MOST_ROWS = 8


def graphicsCard():
    """Whether a graphics card draws the 3D views of this Slicer; False where there is no 3D view."""
    try:
        from HiEndSegLib.bridge.cloud import drawn_by_a_card

        layout = slicer.app.layoutManager()
        if layout is None or not layout.threeDViewCount:
            return False
        return drawn_by_a_card(layout.threeDWidget(0).threeDView().renderWindow())
    except Exception:                   # noqa: BLE001 - then 3D is not offered
        logging.exception("HiEndSeg: asking the graphics card")
        return False


def showPicture(label, data):
    """A PNG file's bytes in a label; an empty one takes no room."""
    label.setVisible(bool(data))
    pixmap = qt.QPixmap()
    if data:
        pixmap.loadFromData(qt.QByteArray(data))
    label.setPixmap(pixmap)


def chooseIn(box, texts, index):
    """A combo box's (text, tooltip) rows, and which of them is chosen."""
    fillBox(box, texts)
    box.setCurrentIndex(index)


def putSlider(slider, value, most=None):
    """A slider's place, where it is another one."""
    if most is not None and slider.maximum != most:
        slider.setMaximum(most)
    if slider.value != value:
        slider.setValue(value)


class AttentionSection:
    """ui: the form's widgets."""

    def __init__(self, ui, presenter):
        self.ui, self.presenter = ui, presenter
        self._shown = None              # the state that the widgets show
        self._writing = False           # the widgets' own signals mean nothing while they are written
        self._taps, self._tapsShown = ButtonRow(ui.attentionTapsLayout), None
        percent = 100.0
        self._connections = Connections(
            (ui.attentionModelBox, "currentIndexChanged(int)", self.onModel),
            (ui.attentionQueryBox, "currentIndexChanged(int)", self.onQuery),
            (ui.attentionStructureBox, "currentIndexChanged(int)", self.onStructure),
            (ui.attentionPlaceButton, self.onPlace), (ui.attentionCrosshairButton, self.onCrosshair),
            (ui.attentionKindBox, "currentIndexChanged(int)", self.onKind),
            (ui.attentionLayerSlider, "valueChanged(int)", self.onLayer),
            (ui.attentionHeadBox, "currentIndexChanged(int)", self.onHead),
            (ui.attentionOpacitySlider, "valueChanged(int)", self._number(presenter.set_opacity, percent)),
            (ui.attentionThresholdSlider, "valueChanged(int)", self._number(presenter.set_threshold, percent)),
            (ui.attentionSmoothBox, "toggled(bool)", self._flag(presenter.set_smooth)),
            (ui.attentionButton, self.onButton), (ui.attentionSaveButton, self.onSave),
            (ui.attentionSurfaceBox, "toggled(bool)", self.onSurface),
            (ui.attentionCompareKindBox, "currentIndexChanged(int)", self.onCompare),
            (ui.attentionOtherModelBox, "currentIndexChanged(int)", self.onOtherModel),
            (ui.attentionOtherLayerSlider, "valueChanged(int)", self.onOtherLayer),
            (ui.attentionPairBox, "toggled(bool)", self._flag(presenter.set_side_by_side)),
            (ui.attentionHeadsBox, "toggled(bool)", self._flag(presenter.set_heads_wanted)),
            (ui.attentionRankButton, self.onRank), (ui.attentionInspectButton, self.onInspect),
            (ui.attentionUncertaintyButton, self.onUncertainty),
            (ui.attentionUncertaintyBox, "toggled(bool)", self._flag(presenter.show_uncertainty)),
            (ui.attentionInspectList, "itemClicked(QTreeWidgetItem*,int)", self.onObjectQuery))
        presenter.changed.connect(self.show)
        self.show()

    def close(self):
        """Listen to nothing any more."""
        self.presenter.changed.disconnect(self.show)
        self._connections.close()
        self._taps.clear()

    def enter(self):
        """The module is on screen: only now are there 3D views to ask."""
        self.presenter.set_graphics(graphicsCard())

    # ---------------------------------------------------------------------------------------- widgets → presenter

    def _number(self, action, whole):
        def changed(value=0):
            if not self._writing:
                action(value / whole)
        return changed

    def _flag(self, action):
        def changed(on=False):
            if not self._writing:
                with slicer.util.tryWithErrorDisplay(_("HiEndSeg could not show that.")):
                    action(on)
        return changed

    def _choose(self, rows, index, action):
        if not self._writing and 0 <= index < len(rows):
            with slicer.util.tryWithErrorDisplay(_("HiEndSeg could not show that.")):
                action(rows[index].id)

    def onModel(self, index=-1):
        self._choose(self._shown.models, index, self.presenter.set_model)

    def onQuery(self, index=-1):
        if self._writing:
            return
        self._choose(self._shown.queries, index, self.presenter.set_query)
        self._rewrite()                 # a choice that is not possible now is not taken

    def onStructure(self, index=-1):
        self._choose(self._shown.structures, index, self.presenter.set_structure)

    def onKind(self, index=-1):
        if self._writing:
            return
        self._choose(self._shown.kinds, index, self.presenter.set_kind)
        self._rewrite()

    def onHead(self, index=-1):
        self._choose(self._shown.heads, index, self.presenter.set_head)

    def onOtherModel(self, index=-1):
        self._choose(self._shown.compare_models, index, self.presenter.set_other_model)

    def onCompare(self, index=-1):
        if not self._writing and index >= 0:
            self.presenter.set_compare(("none", "layer", "model")[index])

    def onLayer(self, value=0):
        if not self._writing:
            self.presenter.set_layer(value)

    def onOtherLayer(self, value=0):
        if not self._writing:
            self.presenter.set_other_layer(value)

    def onPlace(self):
        with slicer.util.tryWithErrorDisplay(_("No point can be set.")):
            self.presenter.place_point()
        self._rewrite()                 # the button stays down only while a click is awaited

    def onCrosshair(self):
        with slicer.util.tryWithErrorDisplay(_("No point can be set.")):
            self.presenter.point_at_crosshair()

    def onButton(self):
        with slicer.util.tryWithErrorDisplay(_("HiEndSeg could not look into the model.")):
            self.presenter.press()

    def onSave(self):
        with slicer.util.tryWithErrorDisplay(_("The map could not be kept.")):
            self.presenter.save()

    def onSurface(self, on=False):
        if not self._writing:
            with slicer.util.tryWithErrorDisplay(_("The map cannot be shown in 3D."), waitCursor=True):
                self.presenter.set_surface(on)

    def onRank(self):
        self.presenter.ask_ranks()

    def onInspect(self):
        self.presenter.ask_inspect()

    def onUncertainty(self):
        with slicer.util.tryWithErrorDisplay(_("HiEndSeg could not measure its uncertainty.")):
            self.presenter.ask_uncertainty()

    def onObjectQuery(self, item=None, column=0):
        index = self.ui.attentionInspectList.indexOfTopLevelItem(item)
        if not self._writing and 0 <= index < len(self._shown.inspect):
            with slicer.util.tryWithErrorDisplay(_("HiEndSeg could not show that.")):
                self.presenter.set_object_query(self._shown.inspect[index].number)

    # ---------------------------------------------------------------------------------------- presenter → widgets

    def show(self):
        """Write what differs from what the widgets show."""
        state, before = self.presenter.state, self._shown
        if state == before:
            return
        self._shown, self._writing = state, True
        try:
            def differs(*names):
                return before is None or any(getattr(state, n) != getattr(before, n) for n in names)

            self._showWords(state)
            if differs("models", "model_id", "queries", "query", "structures", "structure", "kinds", "kind", "point",
                       "placing"):
                self._showQuestion(state)
            if differs("layers", "layer", "layer_text", "heads", "head"):
                self._showLayers(state)
            if differs("opacity", "threshold", "threshold_text", "smooth"):
                self._showLook(state)
            if differs("compare", "compare_models", "other_layer", "other_layer_text", "other_model_id", "layers",
                       "compare_sentence", "side_by_side", "side_by_side_available"):
                self._showCompared(state)
            for label, name in ((self.ui.attentionLegend, "legend_picture"),
                                (self.ui.attentionComparePicture, "compare_picture"),
                                (self.ui.attentionHeadsPicture, "heads_picture"),
                                (self.ui.attentionRankPicture, "rank_picture"),
                                (self.ui.attentionInspectPicture, "inspect_picture")):
                if differs(name):
                    showPicture(label, getattr(state, name))
            if differs("rank_available", "rank_working", "rank_sentence", "heads_wanted", "inspect_available",
                       "inspect_working", "inspect", "inspect_sentence", "object_query"):
                self._showMore(state)
            if differs("uncertainty_available", "uncertainty_working", "uncertainty_sentence", "uncertainty_shown",
                       "uncertainty_tooltip", "confidence"):
                self._showUncertainty(state)
        finally:
            self._writing = False

    def _rewrite(self):
        """Put the widgets back to what the state says."""
        self._shown = None
        self.show()

    def _showWords(self, state):
        ui = self.ui
        for label, text in ((ui.attentionHeadline, state.headline), (ui.attentionMeaning, state.meaning),
                            (ui.attentionDetail, state.detail)):
            setText(label, text)
        if ui.attentionButton.text != state.button_text:
            ui.attentionButton.setText(state.button_text)
        ui.attentionButton.setEnabled(state.button_enabled)
        ui.attentionButton.setToolTip(state.button_tooltip)
        ui.attentionProgressBar.setVisible(state.phase == "starting")
        ui.attentionProgressBar.setValue(int(1000 * state.fraction))
        ui.attentionResultRow.setVisible(state.heat_id is not None)
        ui.attentionSaveButton.setEnabled(state.can_save)
        ui.attentionSurfaceBox.setVisible(state.surface_available or state.surface)
        ui.attentionSurfaceBox.setChecked(state.surface)

    def _showQuestion(self, state):
        ui = self.ui
        chooseIn(ui.attentionModelBox, [(row.title, row.id) for row in state.models],
                 self._index(state.models, state.model_id))
        for box, rows, chosen in ((ui.attentionQueryBox, state.queries, state.query),
                                  (ui.attentionKindBox, state.kinds, state.kind)):
            chooseIn(box, [(row.title, row.sentence) for row in rows], self._index(rows, chosen))
        chooseIn(ui.attentionStructureBox, [(row.name, row.name) for row in state.structures],
                 self._index(state.structures, state.structure))
        for index, row in enumerate(state.structures):
            ui.attentionStructureBox.setItemIcon(index, swatch(row.color))
        ui.attentionStructureBox.setVisible(state.query == "structure")
        ui.attentionPointRow.setVisible(state.query != "structure")
        ui.attentionPlaceButton.setChecked(state.placing)
        setText(ui.attentionPointText, state.point_text)

    def _showLayers(self, state):
        ui = self.ui
        many = len(state.layers) > 1
        for widget in (ui.attentionLayerLabel, ui.attentionLayerRow):
            widget.setVisible(many)
        if many:
            putSlider(ui.attentionLayerSlider, state.layer, len(state.layers) - 1)
        ui.attentionLayerText.setText(state.layer_text)
        taps = [row.layer for row in state.layers if row.tap]
        if taps != self._tapsShown:
            self._tapsShown = taps
            self._taps.fill([(str(layer), functools.partial(self.presenter.set_layer, layer)) for layer in taps])
        chooseIn(ui.attentionHeadBox, [(row.title, row.title) for row in state.heads],
                 self._index(state.heads, state.head))
        for widget in (ui.attentionHeadLabel, ui.attentionHeadBox):
            widget.setVisible(len(state.heads) > 1)

    def _showLook(self, state):
        ui = self.ui
        putSlider(ui.attentionOpacitySlider, int(round(100 * state.opacity)))
        putSlider(ui.attentionThresholdSlider, int(round(100 * state.threshold)))
        setText(ui.attentionThresholdText, state.threshold_text)
        ui.attentionSmoothBox.setChecked(state.smooth)

    def _showCompared(self, state):
        ui = self.ui
        names = ((_("With nothing"), "none"), (_("With another block"), "layer"), (_("With another model"), "model"))
        chooseIn(ui.attentionCompareKindBox, [(text, text) for text, _id in names],
                 [id_ for _text, id_ in names].index(state.compare))
        chooseIn(ui.attentionOtherModelBox, [(row.title, row.id) for row in state.compare_models],
                 self._index(state.compare_models, state.other_model_id))
        ui.attentionOtherModelBox.setVisible(state.compare == "model")
        layers = state.compare == "layer" and len(state.layers) > 1
        if layers:
            putSlider(ui.attentionOtherLayerSlider, state.other_layer, len(state.layers) - 1)
        ui.attentionOtherLayerSlider.setVisible(layers)
        setText(ui.attentionOtherLayerText, state.other_layer_text if layers else "")
        ui.attentionPairBox.setVisible(state.side_by_side_available)
        ui.attentionPairBox.setChecked(state.side_by_side)
        setText(ui.attentionCompareSentence, state.compare_sentence)

    def _showMore(self, state):
        ui = self.ui
        ui.attentionHeadsBox.setChecked(state.heads_wanted)
        ui.attentionRankButton.setEnabled(state.rank_available and not state.rank_working)
        setText(ui.attentionRankSentence, _("Measuring the blocks…") if state.rank_working else state.rank_sentence)
        ui.attentionInspectButton.setEnabled(state.inspect_available and not state.inspect_working)
        setText(ui.attentionInspectSentence, _("Running the mask head…") if state.inspect_working else
                state.inspect_sentence)
        rows = ui.attentionInspectList
        rows.setVisible(bool(state.inspect))
        if state.inspect:
            fillTree(rows, [_("Query"), _("Speaks for"), _("Sure"), _("Here")],
                     [((row.title, row.structure, f"{100 * row.probability:.0f} %",
                        "" if row.share is None else f"{100 * row.share:.0f} %"), row.sentence)
                      for row in state.inspect])
            fitTree(rows, MOST_ROWS)

    def _showUncertainty(self, state):
        ui = self.ui
        ui.attentionUncertaintyButton.setEnabled(state.uncertainty_available)
        ui.attentionUncertaintyButton.setText(_("Stop") if state.uncertainty_working else _("Uncertainty"))
        ui.attentionUncertaintyButton.setToolTip(state.uncertainty_tooltip)
        setText(ui.attentionUncertaintySentence, state.uncertainty_sentence)
        ui.attentionUncertaintyBox.setVisible(bool(state.confidence))
        ui.attentionUncertaintyBox.setChecked(state.uncertainty_shown)
        rows = ui.attentionConfidenceList
        rows.setVisible(bool(state.confidence))
        if state.confidence:
            items = fillTree(rows, [_("Structure"), _("Sure")],
                             [((row.name, f"{100 * row.confidence:.0f} %"), row.sentence) for row in state.confidence])
            for item, row in zip(items, state.confidence):
                item.setIcon(0, swatch(row.color))
            fitTree(rows, MOST_ROWS)

    @staticmethod
    def _index(rows, id_):
        return next((index for index, row in enumerate(rows) if row.id == id_), -1)
