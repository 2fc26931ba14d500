"""From what the Attention presenter knows to an `AttentionState`: wording, and what is enabled when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..geometry.points import point_words
from . import wording
from .attention_state import (AttentionState, ConfidenceRow, HeadRow, InspectRow, LayerRow, LegendRow, MapKindRow,
                              ModelChoice, QueryKindRow, RankRow, StructureChoice)

if TYPE_CHECKING:
    from .attention import AttentionPresenter

_ = wording.translator(__name__)


def _mark(text: str) -> str:
    """A text that is translated when it is used."""
    return text


#: Blocks that the Hi-End-MAE paper shows (operations/attend_result.py, which needs numpy).
PAPER_LAYERS = (2, 5, 8, 11)
#: Titles of the color bar.
LEGEND, UNSURE = _mark("Times an even share"), _mark("Uncertainty, 0 to 1")


def show(p: AttentionPresenter) -> AttentionState:
    """p: the presenter, whose parts are read and never changed."""
    card, stage, extras = p.card, p._stage, p._extras
    result = p._results["main"][1] if "main" in p._results else None
    obstacle, line = p.obstacle, p._line
    working = line.asks("main") or line.asks("other")
    phase = p._phase
    fields: dict[str, Any] = {}
    fields.update(_what_happens(p, phase, obstacle, working, result))
    fields.update(_questions(p, result))
    fields.update(_look(p, result))
    fields.update(_compared(p, result))
    basic = p.basic_obstacle
    segmentation = p._node(p._segmentation_id())
    return AttentionState(
        phase=phase, working=working, fraction=line.fraction if line.busy else 0.0,
        volume_id=p._volume_id, segmentation_id=p._segmentation_id(), model_id=None if card is None else card.key,
        models=tuple(ModelChoice(other.key, _title(other, p)) for other in p._catalogue.cards),
        point_id=stage.point.node_id, point=stage.point.position, placing=stage.point.placing,
        point_text="" if stage.point.position is None else point_words(stage.point.position),
        heat_id=stage.heat_id, opacity=p.opacity, threshold=p.threshold, smooth=p.smooth,
        heads_wanted=extras.heads_wanted, heads_picture=extras.heads_picture, compare_picture=extras.compare_picture,
        rank_available=not basic, rank_working=line.asks("ranks"), rank=tuple(
            RankRow(row.layer, block_title(row.layer), row.rank, row.limit) for row in extras.ranks),
        rank_picture=extras.rank_picture, rank_sentence=_rank_sentence(extras),
        can_save=phase == "shown" and stage.heat_id is not None, saved_id=extras.saved_id,
        surface_available=stage.graphics and stage.heat_id is not None and segmentation is not None,
        surface=stage.surface, **_uncertainty(p, basic), **_inspector(p, basic), **fields)


def block_title(layer: int, kind: str = "encoder") -> str:
    return (_("Layer {number}") if kind == "head" else _("Block {number}")).format(number=layer)


def head_title(head: str) -> str:
    return _("Mean") if head == "mean" else _("Head {number}").format(number=head)


def map_title(p: AttentionPresenter, slot: str, one: Any) -> str:
    """What tells the two maps of a comparison apart, short."""
    if p.compare == "model":
        card = p.card if slot == "main" else p.other_card
        return card.title if card is not None else ""
    return block_title(one.layer, p._results["main"][1].kind)


def map_words(p: AttentionPresenter, one: Any) -> str:
    """What a kept map is, for its name: "attention of block 11, mean of the heads, at R 12 A -40 S 150"."""
    question, result = p._results["main"]
    if result.kind == "sensitivity":
        what = _("sensitivity")
    elif result.kind == "rollout":
        what = _("attention rollout from block {layer}").format(layer=one.layer)
    elif result.kind == "head":
        what = _("attention of object query {number}, layer {layer}").format(number=result.object_query,
                                                                             layer=one.layer)
    else:
        what = _("attention of block {layer}").format(layer=one.layer)
    if result.kind in ("encoder", "head") and result.heads > 1:
        what += ", " + (_("mean of the heads") if one.head is None else _("head {head}").format(head=one.head))
    if p.query == "structure":
        return _("{what}, of {structure}").format(what=what, structure=_structure_name(p))
    return _("{what}, at {place}").format(what=what, place=point_words(p._stage.point.position or result.point))


def _structure_name(p: AttentionPresenter) -> str:
    return next((name for id_, name, _color in p._stage.structures(p._segmentation_id()) if id_ == p.structure),
                p.structure or "")


def _what_happens(p: AttentionPresenter, phase: str, obstacle: str, working: bool, result: Any) -> dict:
    line, volume = p._line, p._node(p._volume_id)
    name = "" if volume is None else volume.GetName()
    if phase == "failed":
        headline = p._error
    elif p._stage.point.placing:
        headline = _("Click into a slice of \"{volume}\".").format(volume=name)
    elif phase == "starting":
        headline = _("The engine is busy; the map follows.") if line.queued else \
            _("Looking into the model ({what})").format(what=line.message or _("starting"))
    elif phase == "shown" and result is not None:
        maps = p._maps()
        headline = maps[0].sentence or map_words(p, maps[0])
    else:
        headline = obstacle or _("See what the model looks at in \"{volume}\".").format(volume=name)
    if p._extras.uncertainty_shown and phase != "failed":
        headline = _("Where {model} is unsure").format(model=p.card.title)
    notes = list(result.sentences[1:]) if result is not None and phase == "shown" else []
    if phase == "shown" and p.is_even:
        notes.append(_("This block spreads its attention almost evenly, so the map says little; try another block."))
    if phase == "shown" and p._views == 0 and not p._away:
        notes.append(_("No slice view shows the volume; choose it as background to see the map."))
    if phase == "shown" and volume is not None and volume.GetParentTransformNode() is not None:
        notes.append(_("The volume lies under a transform; places in these sentences are those before it."))
    if phase == "shown" and p._error:
        notes.append(p._error)
    return {"headline": headline, "detail": " ".join(dict.fromkeys(notes)),
            "meaning": _meaning(p, result),
            "button_text": _("Hide the map") if p._open else _("Show the map"),
            "button_enabled": p._open or not obstacle,
            "button_tooltip": _("Views and mouse will be as before.") if p._open else obstacle or
            _("Ask what the model looks at from the point; it can be dragged afterwards.")}


def _meaning(p: AttentionPresenter, result: Any) -> str:
    """What bright places of the map on screen mean."""
    if p._extras.uncertainty_shown:
        return " ".join(p._extras.uncertainty.sentences[:1])
    return _named(p, result.sentences[0]) if result is not None and result.sentences else ""


def _questions(p: AttentionPresenter, result: Any) -> dict:
    rows = p._stage.structures(p._segmentation_id())
    head_known = result is None or p.kind != "head" or result.kind == "head"
    queries = (
        QueryKindRow("point", _("A point"), _("Put a point into a slice and drag it.")),
        QueryKindRow("structure", _("A structure"), _("All voxels of a segment of the volume's result.") if rows else
                     _("Segment the volume first."), bool(rows)),
        QueryKindRow("query", _("An object query"), _("One of the queries that the inspector below lists."),
                     p._extras.inspect is not None or p.object_query is not None))
    kinds = (
        MapKindRow("encoder", _("Encoder, one block"), _("Softmax attention of one block of the encoder."),
                   p.query != "query"),
        MapKindRow("rollout", _("Encoder, all blocks"), _("Attention followed from a block down to the image."),
                   p.query != "query"),
        MapKindRow("head", _("Mask head"), _("What the object query that speaks for this place looks at.") if head_known
                   else _("This model has no object queries.")))
    depth = 0 if result is None else result.layers
    taps = p.taps
    kind = p.kind if result is None else result.kind            # what is there may be another than was asked for
    layers = tuple(LayerRow(n, block_title(n, kind), n in taps) for n in range(depth))
    heads = 0 if result is None or p.kind == "rollout" else result.heads
    return {"queries": queries, "query": p.query, "kinds": kinds, "kind": p.kind, "layers": layers,
            "structures": tuple(StructureChoice(*row) for row in rows), "structure": p.structure,
            "object_query": p.object_query, "layer": p.layer or 0,
            "layer_text": _layer_text(p.layer, depth, taps, kind),
            "heads": (HeadRow("mean", _("Mean of {count}").format(count=heads) if heads > 1 else _("Mean")),
                      *(HeadRow(str(n), head_title(str(n))) for n in range(heads if heads > 1 else 0))),
            "head": p.head}


def _layer_text(layer: int | None, depth: int, taps: tuple[int, ...], kind: str) -> str:
    if layer is None or not depth:
        return ""
    if kind == "head":
        return _("Layer {layer} of 0 to {last} of the mask head").format(layer=layer, last=depth - 1)
    if layer in taps:
        return _("Block {layer} of 0 to {last}, one of the {count} that the papers show").format(
            layer=layer, last=depth - 1, count=len(taps)) if taps == PAPER_LAYERS else \
            _("Block {layer} of 0 to {last}, the last of a quarter").format(layer=layer, last=depth - 1)
    return _("Block {layer} of 0 to {last}").format(layer=layer, last=depth - 1)


def _look(p: AttentionPresenter, result: Any) -> dict:
    """Colors and threshold of the map on screen."""
    if result is None and not p._extras.uncertainty_shown:
        return {}
    from ..bridge.heat import heat_color
    from ..pictures import color_bar
    from .attention_extras import heat_colors, unsure_floor

    if p._extras.uncertainty_shown:
        top, floor, title = 1.0, unsure_floor(p.threshold), _(UNSURE)
        words = _("Nothing is drawn below an uncertainty of {value}.").format(value=f"{floor:.2f}")
    else:
        top, floor, title = p._stage.top, p.threshold * p._stage.top, _(LEGEND)
        words = _("Nothing is drawn below {value} times an even share.").format(value=f"{floor:.1f}")
    return {"legend_picture": color_bar(heat_colors, top=top, floor=floor), "threshold_text": words,
            "legend": tuple(LegendRow(share * top, f"{share * top:.1f}", heat_color(share))
                            for share in (0.0, 0.25, 0.5, 0.75, 1.0)),
            "legend_title": title}


def _compared(p: AttentionPresenter, result: Any) -> dict:
    maps, card = p._maps(), p.card
    others = tuple(ModelChoice(other.key, _title(other, p)) for other in p._catalogue.cards
                   if card is None or other.key != card.key)
    sentence = ""
    if maps is not None and maps[1] is not None:
        from .attention_maps import in_common

        sentence = _("{first} and {second} have {share} % of their attention in common.").format(
            first=map_title(p, "main", maps[0]), second=map_title(p, "other", maps[1]),
            share=f"{100 * in_common(*maps):.0f}")
    elif maps is not None and p.compare == "layer" and p.other_layer == maps[0].layer:
        sentence = _("Both are the same; choose another block.") if result.layers > 1 else \
            _("There is one map only; compare it with another model's.")
    elif p.compare == "model" and not others:
        sentence = _("There is no other model to compare with; adapt this one, or add one.")
    depth = 0 if result is None else result.layers
    return {"compare": p.compare, "compare_models": others, "other_layer": p.other_layer or 0,
            "other_layer_text": _layer_text(p.other_layer, depth, p.taps, p.kind if result is None else result.kind),
            "other_model_id": p._other_key,
            "other_heat_id": p._stage.other_id, "compare_sentence": sentence,
            "side_by_side": p._extras.side_by_side, "side_by_side_available": p._stage.pair.available
            and p.compare != "none"}


def _rank_sentence(extras: Any) -> str:
    if extras.rank_error or not extras.ranks:
        return extras.rank_error
    low = min(extras.ranks, key=lambda row: row.rank)
    high = max(extras.ranks, key=lambda row: row.rank)
    return _("The attention values use from {low} (block {first}) to {high} (block {second}) of {limit} directions; "
             "more means richer features (effective rank).").format(
        low=f"{low.rank:.0f}", first=low.layer, high=f"{high.rank:.0f}", second=high.layer, limit=high.limit)


def _uncertainty(p: AttentionPresenter, obstacle: str) -> dict:
    extras, running = p._extras, p._extras.running
    tooltip = obstacle or _("Where the model is unsure, over the whole volume; takes as long as segmenting it.")
    base = {"uncertainty_available": running is not None or not obstacle, "uncertainty_tooltip": tooltip,
            "uncertainty_working": running is not None, "uncertainty_id": extras.uncertainty_id,
            "uncertainty_shown": extras.uncertainty_shown, "uncertainty_sentence": extras.uncertainty_error}
    if running is not None:
        base["uncertainty_sentence"] = _("{percent} %: {what}").format(
            percent=f"{100 * running.progress.fraction:.0f}", what=running.progress.message)
    found = extras.uncertainty
    if found is None:
        return base
    colors = {label.id: tuple(label.color) for label in p.card.labels} if p.card is not None else {}
    rows = [ConfidenceRow(row["id"], row["name"], colors.get(row["id"], (128, 128, 128)), float(row["confidence"]),
                          _("{percent} % of {name} is less sure than even odds.").format(
                              percent=f"{100 * row['unsure']:.0f}", name=row["name"]))
            for row in found.structures]
    return {**base, "confidence": tuple(sorted(rows, key=lambda row: row.confidence)),
            "uncertainty_sentence": base["uncertainty_sentence"] or " ".join(found.sentences)}


def _inspector(p: AttentionPresenter, obstacle: str) -> dict:
    extras, working = p._extras, p._line.asks("inspect")
    base = {"inspect_available": not obstacle, "inspect_working": working, "inspect_sentence": extras.inspect_error,
            "inspect_tooltip": obstacle or _("Which object query of the mask head speaks for what around the point.")}
    found = extras.inspect
    if found is None:
        return base
    names = {label.id: label.name for label in p.card.labels} if p.card is not None else {}
    at_point = dict(found.at_point)

    def named(id_: str) -> str:
        return names.get(id_, id_)

    def near(pairs: Any) -> tuple[str, ...]:
        return tuple(f"{number} ({cosine:.2f})" for number, cosine in pairs[:3])

    rows = []
    for query in sorted(found.queries, key=lambda query: (-at_point.get(query.number, 0.0), -query.voxels)):
        (id_, probability), made = query.classes[0], tuple(named(other) for other in query.made)
        share = at_point.get(query.number)
        likely = ", ".join(f"{named(other)} {100 * chance:.0f} %" for other, chance in query.classes[:4])
        rows.append(InspectRow(
            query.number, _("Query {number}").format(number=query.number), named(id_), float(probability),
            None if share is None else float(share), made, near(query.similar_classes), near(query.similar_masks),
            _("Speaks for: {classes}. Closest by class: {by_class}; by mask: {by_mask}.").format(
                classes=likely, by_class=", ".join(near(query.similar_classes)) or "-",
                by_mask=", ".join(near(query.similar_masks)) or "-")))
    return {**base, "inspect": tuple(rows), "inspect_picture": extras.inspect_picture,
            "inspect_sentence": extras.inspect_error or
            _named(p, " ".join(found.sentences))}


def _named(p: AttentionPresenter, text: str) -> str:
    """A sentence of the library, which knows structures by id, with their names."""
    for label in p.card.labels if p.card is not None else ():
        text = text.replace(f"'{label.id}'", label.name)
    return text


def _title(card: Any, p: AttentionPresenter) -> str:
    """A model's title, with its version where two have the same."""
    same = [other for other in p._catalogue.cards if other.title == card.title]
    return card.title if len(same) < 2 else f"{card.title} {card.version}"
