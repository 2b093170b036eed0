"""Redraw the random features of a whole model, by optimiser steps.

A redraw changes the function that the model computes, so it belongs between an optimiser step and the next forward
pass, never inside one: activation checkpointing then recomputes with the projection that it first ran with.
"""

from __future__ import annotations

from torch import nn

from .features import FeatureModule


def redraw_features(model: nn.Module, optimizer_step: int) -> tuple[str, ...]:
    """Redraw the projection of every layer of FAVOR attention in a model whose `redraw_interval` is over.

        for step, batch in enumerate(batches, start=1):
            loss(model, batch).backward()
            optimizer.step()
            redraw_features(model, step)

    The projection follows from (seed, optimizer_step // redraw_interval) alone (`FavorAttention.redraw_if_due`): ranks
    of data-parallel training agree without communication, a second call for the same step changes nothing, and a run
    that is resumed goes on as one that never stopped. Layers with redraw_interval=None keep what they have.

    Args:
        model: any module.
        optimizer_step: steps the optimiser has made, not micro-batches.

    Returns:
        Names of the layers that were redrawn.
    """
    found = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, FeatureModule)]
    return tuple(name for name, layer in found if layer.redraw_if_due(optimizer_step))
