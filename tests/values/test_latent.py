"""The latent contract as a value, and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from vaedeploy.errors import ContractError
from vaedeploy.values.latent import LatentSpec


@pytest.mark.parametrize(
    "value", [2, np.float32(2), np.array(2.0), torch.tensor(2)], ids=["int", "numpy", "numpy array", "torch"]
)
def test_any_number_is_kept_as_a_float(value: Any) -> None:
    spec = LatentSpec(channels=2, factor=4, scale=value, shift=value)
    assert msgspec.json.encode(spec) == msgspec.json.encode(LatentSpec(channels=2, factor=4, scale=2.0, shift=2.0))


@pytest.mark.parametrize("value", [[1, 2], np.array([1, 2]), torch.tensor([1.0, 2.0])], ids=["list", "numpy", "torch"])
def test_any_sequence_is_kept_as_a_tuple_of_floats(value: Any) -> None:
    spec = LatentSpec(channels=2, factor=4, scale=value, shift=value)
    assert (spec.scale, spec.shift) == ((1.0, 2.0), (1.0, 2.0))
    assert hash(spec) == hash(LatentSpec(channels=2, factor=4, scale=(1.0, 2.0), shift=(1.0, 2.0)))
    assert msgspec.json.decode(msgspec.json.encode(spec), type=LatentSpec) == spec


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": "4"}, "latent channels is '4'; it must be a whole number"),
        ({"factor": 8.0}, "latent factor is 8.0; it must be a whole number"),
        ({"factor": 0}, "latent factor is 0; it must be 1 or more"),
        ({"scale": "1"}, "latent scale is '1'; it must be one number, or one number per channel"),
        ({"scale": None}, "latent scale is None; it must be one number, or one number per channel"),
        ({"shift": [1.0, [2.0]]}, "latent shift is [1.0, [2.0]]; it must be one number, or one number per channel"),
        (
            {"scale": [1.0, 2.0]},
            "latent scale has 2 numbers for 4 channels; it must be one number, or one for each channel",
        ),
        ({"scale": 0}, "latent scale is 0; dividing by it is impossible"),
        ({"shift": float("inf")}, "latent shift is inf; it must be finite"),
        ({"image_channels": 1}, "image_channels is 1; it must be 3 (RGB) or 4 (RGBA)"),
        ({"image_channels": 5}, "image_channels is 5; it must be 3 (RGB) or 4 (RGBA)"),
        ({"image_channels": 4.0}, "image_channels is 4.0; it must be 3 (RGB) or 4 (RGBA)"),
    ],
)
def test_what_cannot_hold_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError) as error:
        LatentSpec(**{"channels": 4, "factor": 8, "scale": 1.0, **fields})
    assert str(error.value) == message


def test_a_contract_of_rgb_images_is_written_as_before_there_were_others() -> None:
    """Its bytes are part of ``Reference.identity``, and older versions refuse a field that they do not know."""
    spec = LatentSpec(channels=4, factor=8, scale=0.5)
    assert msgspec.json.encode(spec) == b'{"channels":4,"factor":8,"scale":0.5,"shift":0.0,"sampled":true}'
    stated = msgspec.json.decode(b'{"channels":4,"factor":8,"scale":0.5,"image_channels":3}', type=LatentSpec)
    assert stated == spec
    assert msgspec.json.encode(stated) == msgspec.json.encode(spec)


def test_a_contract_of_rgba_images_is_another() -> None:
    rgb, rgba = (LatentSpec(channels=4, factor=8, scale=0.5, image_channels=n) for n in (3, 4))
    assert (rgb.colors, rgba.colors) == ("RGB", "RGBA")
    assert rgb.differences(rgba) == [("image_channels", 3, 4)]
    assert msgspec.json.encode(rgba).endswith(b',"sampled":true,"image_channels":4}')
    assert msgspec.json.decode(msgspec.json.encode(rgba), type=LatentSpec) == rgba
