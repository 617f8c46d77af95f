"""Rules for `regularization`, `loss` and `data.augmentation`: what changes the images, the targets and the loss."""

from __future__ import annotations

from collections.abc import Iterator

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.references import is_reference
from resnet_dist.recipe.requirements import PROBABILITY, REFERENCE_FORM, Uses, Values, one_of, passed_already, whole
from resnet_dist.recipe.rules.batch import MIXING
from resnet_dist.recipe.schema import Recipe

LOSS_NAMES = ("cross_entropy", "bce")
AUGMENTATION_NAMES = ("none", "randaugment", "trivialaugment")
HIGHEST_MAGNITUDE = 30  # torchvision's RandAugment has 31 levels
_AUGMENTATION = "data.augmentation.name"
_MOST_OPS = 14  # of one image: as many as there are operations

_ALPHA = (lambda alpha: 0 <= alpha <= 100, "from 0 (off) to 100")  # Beta(100, 100) is 0.5 ± 0.04

VALUES: Values = (
    ("regularization.label_smoothing", *PROBABILITY),
    ("regularization.mixup", *_ALPHA),
    ("regularization.cutmix", *_ALPHA),
    ("regularization.random_erasing", lambda probability: 0 <= probability <= 1, "from 0 to 1"),
    ("loss.target_threshold", *PROBABILITY),
    ("data.color_jitter", lambda largest: 0 <= largest <= 10, "from 0 (none) to 10"),
    ("data.augmentation.magnitude", *whole(0, HIGHEST_MAGNITUDE)),
    ("data.augmentation.num_ops", *whole(1, _MOST_OPS)),
)

USES: Uses = (
    ("regularization.label_smoothing", lambda r: r.loss.name in LOSS_NAMES, "loss.name", " or ".join(LOSS_NAMES)),
    ("loss.class_weights", lambda r: r.loss.name in LOSS_NAMES, "loss.name", " or ".join(LOSS_NAMES)),
    ("loss.target_threshold", lambda r: r.loss.name == "bce", "loss.name", "bce"),
    ("loss.arguments", lambda r: is_reference(r.loss.name), "loss.name", REFERENCE_FORM),
    ("data.augmentation.magnitude", lambda r: r.data.augmentation.name == "randaugment", _AUGMENTATION, "randaugment"),
    ("data.augmentation.num_ops", lambda r: r.data.augmentation.name == "randaugment", _AUGMENTATION, "randaugment"),
    ("data.augmentation.arguments", lambda r: is_reference(r.data.augmentation.name), _AUGMENTATION, REFERENCE_FORM),
)


def problems(recipe: Recipe) -> Iterator[RecipeError]:
    """Errors in the names of losses and augmentations, and in combinations of regularizers."""
    yield from one_of("loss.name", recipe.loss.name, LOSS_NAMES)
    yield from one_of("data.augmentation.name", recipe.data.augmentation.name, AUGMENTATION_NAMES)
    yield from passed_already("loss.arguments", recipe.loss, ("logits", "targets"))
    yield from passed_already("data.augmentation.arguments", recipe.data.augmentation, ("images", "uniform"))
    yield from _threshold(recipe)


def _threshold(recipe: Recipe) -> Iterator[RecipeError]:
    threshold = recipe.loss.target_threshold
    if threshold is not None and recipe.loss.name == "bce" and not recipe.regularization.mixes_pairs:
        found = f"found {threshold}, which has no effect here: without mixup and CutMix each image has one class"
        yield RecipeError("loss.target_threshold", found, "only with mixup or cutmix above 0; leave it out", MIXING)
