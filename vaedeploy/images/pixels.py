"""Arithmetic on images: conversion between float and uint8, and the errors of one image against another."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_levels(image: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Images (B, N, H, W) in [-1, 1] -> (B, H, W, N) uint8: ``round((x + 1) * 127.5)``, clamped. NaN becomes 0."""
    levels = np.nan_to_num(np.round((image + 1) * 127.5), nan=0.0).clip(0, 255)
    return np.ascontiguousarray(levels.transpose(0, 2, 3, 1)).astype(np.uint8)


def relative_errors(found: NDArray[Any], expected: NDArray[Any]) -> dict[str, Any]:
    """The metrics ``max_abs``, ``mean_abs`` and ``rel_l2`` of ``verify.report.Case``.

    All are infinite if the shapes differ.
    """
    if found.shape != expected.shape:
        return {"max_abs": math.inf, "mean_abs": math.inf, "rel_l2": math.inf}
    error = found.astype(np.float64) - expected
    norm = float(np.linalg.norm(expected.astype(np.float64)))
    return {
        "max_abs": float(np.abs(error).max()),
        "mean_abs": float(np.abs(error).mean()),
        "rel_l2": float(np.linalg.norm(error)) / (norm or 1.0),
    }


def pixel_errors(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> dict[str, Any]:
    """The metrics ``psnr``, ``pixels_off``, ``within_one_level`` and ``max_levels`` of ``verify.report.Case``.

    Both arrays must have the same shape. ``psnr`` is None for equal arrays.
    """
    error = np.abs(found.astype(np.int16) - expected)
    mean_square = float(np.mean(error.astype(np.float64) ** 2))
    return {
        "psnr": 10 * math.log10(255**2 / mean_square) if mean_square else None,
        "pixels_off": float(np.mean(error > 0)),
        "within_one_level": float(np.mean(error <= 1)),
        "max_levels": int(error.max()),
    }


def to_float(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Images (B, H, W, N) uint8 -> (B, N, H, W) float32 in [-1, 1]: ``x / 127.5 - 1``.

    An encoder graph with uint8 input computes the same.
    """
    batch, height, width, channels = image.shape
    result = np.empty((batch, channels, height, width), np.float32)
    np.divide(image.transpose(0, 3, 1, 2), np.float32(127.5), out=result)
    result -= np.float32(1)
    return result
