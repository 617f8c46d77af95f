"""Rules for `engine` and `speed`."""

from __future__ import annotations

from collections.abc import Iterator

from resnet_dist.errors import RecipeError
from resnet_dist.recipe.references import is_reference
from resnet_dist.recipe.requirements import LARGEST_COUNT, REFERENCE_FORM, Uses, Values, one_of
from resnet_dist.recipe.rules.batch import PARTS, shares_spans
from resnet_dist.recipe.schema import Recipe

ENGINE_NAMES = ("ddp", "zero")
_MOST_COMPILED = 8  # resolutions: torch._dynamo.config.recompile_limit, after which a model is no longer compiled

VALUES: Values = (
    ("engine.bucket_mb", lambda size: 0 < size <= LARGEST_COUNT, f"MiB, above 0 and up to {LARGEST_COUNT}"),
)

USES: Uses = (
    ("engine.arguments", lambda r: is_reference(r.engine.name), "engine.name", REFERENCE_FORM),
    ("engine.stage", lambda r: r.engine.name == "zero", "engine.name", "zero"),
    ("speed.sgd_kernel", lambda r: r.optimizer.name == "sgd", "optimizer.name", "sgd"),
    ("speed.compile", lambda r: r.engine.name == "ddp", "engine.name", "ddp"),
    ("speed.cuda_graph", lambda r: r.engine.name == "ddp", "engine.name", "ddp"),
)


def problems(recipe: Recipe, world_size: int) -> Iterator[RecipeError]:
    """Errors in the engine, its precision and its speed."""
    yield from one_of("engine.name", recipe.engine.name, ENGINE_NAMES)
    yield from _engine(recipe)
    yield from _speed(recipe)
    if recipe.speed.cuda_graph and shares_spans(recipe, world_size):
        # DDP's all-reduces would run in the graph beside those of batch norm, on another communicator. NCCL requires
        # the same order of both on all workers, which parallel branches of a graph do not have.
        found = "found true with batch norm whose statistics are exchanged between workers in the forward pass"
        allowed = "false; or a batch_norm.span that lies on one worker, or worker"
        yield RecipeError("speed.cuda_graph", found, allowed, ("batch_norm.span",))


def _engine(recipe: Recipe) -> Iterator[RecipeError]:
    engine, precision = recipe.engine, recipe.precision
    if engine.name == "zero" and engine.stage not in (None, 0, 1, 2):
        why = ": partitioned weights would be gathered in every layer, and a ResNet's fit on every worker"
        yield RecipeError("engine.stage", f"found {engine.stage}{why if engine.stage == 3 else ''}", "0, 1 or 2")
    if engine.name == "zero" and precision in ("float16", "float64"):
        why = "the weights that ZeRO updates are float32" if precision == "float64" else "ZeRO has no loss scaler here"
        found = f"found {precision} with engine.name zero: {why}"
        yield RecipeError("precision", found, "float32, tf32 or bfloat16", ("engine.name",))
    if precision == "float64" and engine.gradient_dtype is not None:
        found = f"found {engine.gradient_dtype} with precision float64"
        yield RecipeError("engine.gradient_dtype", found, "leave it out", ("precision",))


def _speed(recipe: Recipe) -> Iterator[RecipeError]:
    speed, bucket_mb = recipe.speed, recipe.engine.bucket_mb
    if speed.sgd_kernel == "fused" and recipe.precision == "float16":
        found = "found fused with precision float16: the momentum is uninitialised if the first step is skipped"
        yield RecipeError("speed.sgd_kernel", found, "auto, foreach or loop", ("precision",))
    if speed.cuda_graph and recipe.precision == "float16":
        found = "found true with precision float16, whose loss scaler needs the host in every step"
        yield RecipeError("speed.cuda_graph", found, "precision bfloat16, or cuda_graph false", ("precision",))
    for key in ("on_error", "known_bad"):
        value = getattr(recipe.data, key)
        if speed.cuda_graph and value not in ("fail", None):
            found = f"found true with data.{key} {value}: a graph has a fixed number of samples"
            allowed = "cuda_graph false; or data without broken images, data.on_error fail and no data.known_bad"
            yield RecipeError("speed.cuda_graph", found, allowed, (f"data.{key}",))
    if speed.cuda_graph and recipe.batch.parts > 1:
        found = (
            f"found true with batch.num_micro_batches {recipe.batch.parts}: a graph overwrites gradients and cannot"
            " accumulate them"
        )
        yield RecipeError("speed.cuda_graph", found, "num_micro_batches 1, or cuda_graph false", PARTS)
    if speed.cuda_graph and recipe.data.progressive:
        found = "found true with data.progressive: a graph has images of one size"
        yield RecipeError("speed.cuda_graph", found, "false, or leave out data.progressive", ("data.progressive",))
    num_resolutions = len(set(recipe.data.training_resolutions))
    if speed.compile and num_resolutions > _MOST_COMPILED:
        found = f"found true with {num_resolutions} resolutions (data.progressive), of which each is compiled"
        allowed = f"false, or at most {_MOST_COMPILED} resolutions"
        yield RecipeError("speed.compile", found, allowed, ("data.progressive",))
    if speed.compile and recipe.engine.name == "ddp" and 0 < bucket_mb < 1:
        found = (
            f"found true with engine.bucket_mb {bucket_mb:g}: torch compiles a model under DDP only with buckets of"
            " 1 MiB or more"
        )
        yield RecipeError("speed.compile", found, "engine.bucket_mb from 1 up, or compile false", ("engine.bucket_mb",))
