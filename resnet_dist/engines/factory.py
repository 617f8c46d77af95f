"""Builds the engine of a recipe."""

from __future__ import annotations

import torch
from torch import nn

from resnet_dist.engines.ddp import DdpEngine, DdpSettings, LossSum
from resnet_dist.engines.protocol import Engine
from resnet_dist.errors import RecipeError
from resnet_dist.recipe.references import call_function
from resnet_dist.recipe.schema import Recipe

DEFAULT_STAGE = 2
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, None: None}


def build_engine(recipe: Recipe, module: nn.Module, optimizer: torch.optim.Optimizer, loss_sum: LossSum) -> Engine:
    """Return the engine of `recipe.engine` for a module that has its weights and is on its device. A collective.

    Raises RecipeError for an unknown name and for a user's function that returns no engine, MissingPackage if DeepSpeed
    is needed and not installed.
    """
    engine, speed = recipe.engine, recipe.speed
    sizes = {"batch_size": recipe.batch.size, "num_micro_batches": recipe.batch.parts}
    dtype = _DTYPES[engine.gradient_dtype]
    if engine.name == "ddp":
        settings = DdpSettings(
            bucket_mb=engine.bucket_mb,
            gradient_dtype=dtype,
            compile_backend="inductor" if speed.compile else None,
            cuda_graph=speed.cuda_graph,
        )
        return DdpEngine(
            module,
            optimizer,
            loss_sum,
            **sizes,
            autocast_dtype=autocast_dtype(recipe),
            gradient_clipping=recipe.optimizer.gradient_clipping,
            settings=settings,
        )
    if engine.name == "zero":
        from resnet_dist.engines.zero import ZeroEngine

        return ZeroEngine(
            module,
            optimizer,
            loss_sum,
            **sizes,
            autocast_dtype=autocast_dtype(recipe),
            stage=DEFAULT_STAGE if engine.stage is None else engine.stage,
            bucket_size_bytes=int(engine.bucket_mb * 2**20),
            gradient_clipping=recipe.optimizer.gradient_clipping,
            gradient_dtype=torch.float32 if dtype is None else dtype,
        )
    made = call_function("engine.name", engine.name, module, optimizer, loss_sum, **sizes, **engine.arguments)
    return _checked(engine.name, made)


def autocast_dtype(recipe: Recipe) -> torch.dtype | None:
    """Return the dtype of autocast, or None if it is off."""
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(recipe.precision)


def _checked(name: str, made: object) -> Engine:
    needed = [attribute for attribute in dir(Engine) if not attribute.startswith("_")]
    missing = [attribute for attribute in needed if not hasattr(made, attribute)]
    if missing:
        problem = f"{name!r} returned an object of type {type(made).__name__} without {', '.join(missing)}"
        raise RecipeError("engine.name", problem, "a function that returns a resnet_dist.engines.protocol.Engine")
    return made  # type: ignore[return-value]
