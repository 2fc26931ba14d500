"""What `HiEndSegLogic` offers to scripts: the panel's presenters without a panel, driven until they are done.

Waits on the engine, not on Slicer's event loop: no click can come in between.
"""

from __future__ import annotations

import logging
import time
from collections import ChainMap

import slicer
from HiEndSegLib.errors import Cancelled, HiEndSegError, OptionError
from HiEndSegLib.models.registry import Registry
from HiEndSegLib.presenter.adapt import AdaptPresenter
from HiEndSegLib.presenter.segment import SegmentPresenter
from slicer.i18n import tr as _

from . import machine
from .settings import Settings

#: Seconds that the plan of an adaptation may take, before it is started without one.
PATIENCE = 20.0


def segment(volumeNode, *, model, device, only, roi, output, frames, progress):
    """See `HiEndSegLogic.segment`."""
    presenter = _presenter(model, device, only, roi)
    try:
        presenter.set_volume(volumeNode)
        if output is not None:
            presenter.set_output(output)
        presenter.run(existing="new" if output is None else "replace", frames=frames, transform="as_is")
        summary = _wait(presenter, progress)
        if summary.error is not None:
            raise summary.error
        return slicer.mrmlScene.GetNodeByID(summary.placed[-1].segmentation_id)
    finally:
        presenter.close()


def segmentNodes(volumeNodes, *, model, device, only, roi, progress):
    """See `HiEndSegLogic.segmentNodes`."""
    presenter = _presenter(model, device, only, roi)
    try:
        presenter.run_many(list(volumeNodes))
        summary, placed = _wait(presenter, progress), []
        finished = iter(summary.placed)
        for outcome in summary.outcomes:
            if not outcome.ok:
                logging.error("HiEndSeg: %s", outcome.sentence)
            placed.append(slicer.mrmlScene.GetNodeByID(next(finished).segmentation_id) if outcome.ok else None)
        return placed
    finally:
        presenter.close()


def adapt(volumeNode, segmentationNode, name, *, structures, speed, model, encoder, device, sides, keepTeaching,
          keepAnyway, progress):
    """See `HiEndSegLogic.adapt`."""
    segment = _presenter(model, device, None, None)
    settings = ChainMap({}, Settings())
    presenter = AdaptPresenter(scene=slicer.mrmlScene, engine=machine.engine(), registry=Registry(), settings=settings,
                               segment=segment)
    try:
        presenter.refresh()
        presenter.set_volume(volumeNode)
        presenter.set_segmentation(segmentationNode)
        if model is not None:
            presenter.set_model(segment.state.model_id)
        if encoder is not None:
            presenter.set_encoder(encoder)
        presenter.set_speed(speed)
        presenter.set_keep_teaching(keepTeaching)
        presenter.compare()
        _drive(presenter, progress)
        if structures is not None:
            _check(presenter, [structures] if isinstance(structures, str) else list(structures))
        presenter.set_name(name)
        deadline = time.monotonic() + PATIENCE
        while any(row.fits is None for row in presenter.state.speeds) and time.monotonic() < deadline:
            presenter.tick()
            time.sleep(0.02)
        if not presenter.state.run_enabled:
            raise OptionError(presenter.state.run_tooltip)
        presenter.run(sides=sides)
        _drive(presenter, progress)
        if presenter.state.question is not None:
            raise OptionError(_('{question} Give sides="keep" or sides="swap".').format(
                question=presenter.state.question.text))
        if keepAnyway and presenter.state.can_keep:
            presenter.keep_anyway()
            _drive(presenter, progress)
        return presenter.state.result_key
    finally:
        presenter.close()
        segment.close()


def _check(presenter, structures):
    """Teach these and no others."""
    known = [row.id for row in presenter.state.rows]
    unknown = [id_ for id_ in structures if id_ not in known]
    if unknown or not structures:
        raise OptionError(_("The segmentation has no structure {ids}; it has {known}.").format(
            ids=", ".join(unknown) or _("(none given)"), known=", ".join(known)))
    for id_ in known:
        presenter.check(id_, id_ in structures)


def _drive(presenter, progress):
    """Until nothing runs; raises what it failed with."""
    while presenter.state.busy:
        presenter.wait(timeout=0.2)
        if progress is not None:
            progress(presenter.state.fraction, presenter.state.headline)
    if presenter.state.phase == "failed":
        raise HiEndSegError(presenter.state.detail or presenter.state.headline)


def _presenter(model, device, only, roi):
    """A presenter of its own, which knows how long things take and leaves the panel's last model and device alone."""
    registry = Registry()
    card = registry.get(model)
    settings = ChainMap({"model": card.id, "device": device}, Settings())
    presenter = SegmentPresenter(scene=slicer.mrmlScene, engine=machine.engine(), registry=registry, settings=settings)
    presenter.refresh()
    presenter.set_model(card.key)
    if presenter.state.model_id != card.key:
        raise OptionError(_("The model {name} is not installed; add it in the section Models first.").format(
            name=card.key))
    if only is not None:
        only = [only] if isinstance(only, str) else list(only)
        unknown = [id_ for id_ in only if id_ not in {label.id for label in card.labels}]
        if unknown or not only:
            raise OptionError(_("The model {name} has no structure {ids}; it has {known}.").format(
                name=card.key, ids=", ".join(unknown) or _("(none given)"),
                known=", ".join(label.id for label in card.labels)))
        presenter.set_only(only)
    presenter.set_roi(roi)
    return presenter


def _wait(presenter, progress):
    """The summary of what was started; raises what kept it from starting."""
    if not presenter.state.busy:
        raise HiEndSegError(presenter.state.detail or presenter.state.headline)
    summary = presenter.wait(each=None if progress is None else
                             lambda: progress(presenter.state.fraction, presenter.state.headline))
    if summary.cancelled:
        raise Cancelled()
    return summary
