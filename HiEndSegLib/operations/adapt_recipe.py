"""How long, how fast and on what an adaptation trains.

The numbers were chosen on a few runs of training/adaptation.py; they are a start, not an optimum.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True)
class Recipe:
    """steps: at most. crop: voxels along an edge, at most. batch: crops a step. crops: kept and used again (quick).
    lr: of what learns whole; lr_middle: of adapters (quick) or of everything below the head (full). lr_vit: factor on
    lr_middle for the ViT (full). rank: of adapters. ema: decay of the weights' average, which is what is scored and
    kept. every: steps between scores. patience: scores without a gain after which it stops. protect: how much a lost
    point of agreement of the protected structures weighs against a point of Dice of the taught. hold: weight of
    the overlap with the parent's scores in the loss. masks: weight of the queries' own masks. spread, bend, scale:
    of the augmentation, see `augment`. curve_steps: of the curve that is fitted first, 0 for none. blend: how far from
    the parent towards what was learned the result lies, where nothing new is taught (arXiv 2109.01903).
    """

    steps: int = 400
    crop: int = 72
    batch: int = 1
    crops: int = 160
    lr: float = 1e-3
    lr_middle: float = 1e-3
    lr_vit: float = 0.3
    rank: int = 8
    ema: float = 0.98
    every: int = 50
    patience: int = 4
    protect: float = 1.0
    hold: float = 1.0
    masks: float = 1.0
    warmup: int = 15
    spread: float = 0.0
    bend: float = 0.5
    scale: float = 0.10
    curve_steps: int = 200
    blend: float = 0.4

    def to_dict(self) -> dict:
        return asdict(self)


RECIPES = {"quick": Recipe(), "full": Recipe(steps=300, crops=0, lr=6e-4, lr_middle=3e-4)}
#: What is different where a model starts from an encoder.
FRESH = {"steps": 1200, "lr": 1e-3, "lr_middle": 1e-3, "ema": 0.99, "every": 100, "patience": 5}


def recipe_for(speed: str, fresh: bool) -> Recipe:
    """The speed's recipe. fresh: the model was made from an encoder and has everything to learn."""
    return replace(RECIPES[speed], **FRESH) if fresh else RECIPES[speed]


def with_steps(recipe: Recipe, steps: int | None) -> Recipe:
    """The recipe with another number of steps; scored at least four times all the same."""
    if steps is None:
        return recipe
    return replace(recipe, steps=steps, curve_steps=min(recipe.curve_steps, steps),
                   every=max(1, min(recipe.every, steps // 4 or 1)))
