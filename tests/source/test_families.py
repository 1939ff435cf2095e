"""Every family: its halves compute what the class of diffusers does, and a folder that the class saved is exported."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import msgspec
import numpy as np
import pytest
import torch
from checkpoints import message_of
from family_cases import CASES, CHANNELS, class_of
from pipelines import pipeline_function
from places import ROOT
from safetensors.torch import load_file, save_file
from torch import Tensor

from vaedeploy.bundle import Bundle
from vaedeploy.errors import WeightsError
from vaedeploy.images.files import read_image, write_image
from vaedeploy.pipeline import export
from vaedeploy.pipeline.codec import decode_files, encode_files
from vaedeploy.runtime import VAE, onnxruntime_cpu
from vaedeploy.runtime.rows.half import RowsHalf
from vaedeploy.source import load_reference
from vaedeploy.source.families import FAMILIES, REFUSED
from vaedeploy.source.family import DESCRIBES, Architecture
from vaedeploy.source.network import build, tensor_shapes
from vaedeploy.system.installs import install_command
from vaedeploy.values.kinds import Part
from vaedeploy.values.latent import LatentSpec
from vaedeploy.verify.shapes import verification_shapes

every_family = pytest.mark.parametrize("name", CASES)

ALIKE = ("AsymmetricAutoencoderKL", "AutoencoderKLTemporalDecoder", "AutoencoderKLQwenImage")


def test_every_family_has_a_case() -> None:
    assert list(CASES) == list(FAMILIES)


def test_every_family_is_documented() -> None:
    page = (ROOT / "docs" / "weights.md").read_text()
    assert [name for name in FAMILIES if f"`{name}`" not in page] == []


@every_family
def test_defaults_of_its_config_are_those_of_the_class(name: str) -> None:
    architecture = type(FAMILIES[name].read(CASES[name].config()))
    theirs = inspect.signature(class_of(name)).parameters
    ours = {field.name: field for field in msgspec.structs.fields(architecture) if field.name != "packing"}
    assert theirs.keys() - ours.keys() <= architecture.ignored | DESCRIBES
    for field, argument in ((field, theirs[name]) for name, field in ours.items()):
        assert field.required == (argument.default is argument.empty)
        assert field.required or comparable(field.default) == comparable(argument.default)


def comparable(value: Any) -> Any:
    """Lists as tuples."""
    return tuple(map(comparable, value)) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("opacity", [False, True], ids=["", "with opacity"])
@every_family
def test_halves_are_those_of_the_class(name: str, opacity: bool) -> None:
    case = CASES[name].with_opacity() if opacity else CASES[name]
    assert FAMILIES[name].latent(FAMILIES[name].read(case.config())).image_channels == case.image_channels
    theirs: Any = case.theirs().double()
    encoder, decoder = build(FAMILIES[name].read(case.config()), case.tensors())
    assert not any(t.is_meta for half in (encoder, decoder) for t in (*half.parameters(), *half.buffers()))
    generator = torch.Generator().manual_seed(0)
    image = (
        torch.rand((2, case.image_channels, 8 * case.factor, 6 * case.factor), generator=generator, dtype=torch.float64)
        * 2
        - 1
    )
    raw = torch.randn((2, case.channels, 8, 6), generator=generator, dtype=torch.float64)
    encoded: Any = encoder.double()(image)
    own = list(encoded) if case.sampled else [encoded]
    for ours, other in zip(own, case.encode(theirs, image), strict=True):
        assert ours.shape == raw.shape
        assert is_within(ours, packed(name, other), case.tolerance)
    images = decoder.double()(raw)
    assert images.shape == image.shape
    assert is_within(images, case.decode(theirs, unpacked(name, raw)), case.tolerance)


def is_within(ours: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether they differ by no more than this, as relative L2."""
    return torch.equal(ours, other) or float((ours - other).norm() / other.norm()) < tolerance


def packed(name: str, latent: Tensor) -> Tensor:
    """The class' latent as its pipeline shows it to the diffusion model, before scale and shift."""
    if name != "AutoencoderKLFlux2":
        return latent
    shown: Tensor = pipeline_function("flux2.pipeline_flux2", "_patchify_latents")(latent)
    return shown


def unpacked(name: str, latent: Tensor) -> Tensor:
    if name != "AutoencoderKLFlux2":
        return latent
    raw: Tensor = pipeline_function("flux2.pipeline_flux2", "_unpatchify_latents")(latent)
    return raw


@every_family
def test_each_half_has_its_own_tensors_alone(name: str) -> None:
    case = CASES[name]
    encoder, decoder = build(FAMILIES[name].read(case.config()), case.tensors())
    held = [*encoder.state_dict().values(), *decoder.state_dict().values()]
    assert len({t.data_ptr() for t in held if t.ndim}) == len([t for t in held if t.ndim])
    assert {n.split(".")[0] for n in encoder.state_dict()} <= {"encoder", "quant_conv"}
    assert {n.split(".")[0] for n in decoder.state_dict()} <= {"decoder", "post_quant_conv"}


EXPORTED = [
    # Their blocks are those of AutoencoderKL and of Wan, so that these stand for them.
    pytest.param(name, marks=pytest.mark.full) if name in ALIKE else name
    for name in CASES
    if name != "AutoencoderKL"  # which all other tests export
]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPORTED)
def test_a_folder_that_the_class_saved_is_exported(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without the large shape: attention over all of it takes most of the time.
    monkeypatch.setattr(export, "verification_shapes", lambda factor: verification_shapes(factor)[:-1])
    case = CASES[name]
    bundle = export.export_vae(case.folder(tmp_path / "saved"), out=tmp_path / "bundle", **case.given())
    assert bundle.verified
    assert bundle.manifest.vae.architecture == name
    rewrites = bundle.manifest.rewrites[bundle.manifest.graphs["decoder"]["onnxruntime"]]
    assert rewrites["fold_upsampling"] == case.folds
    latent = bundle.manifest.latent
    assert (latent.channels, latent.factor, latent.sampled) == (case.channels, case.factor, case.sampled)
    if case.scale is not None:
        numbers = case.scale, case.shift or 0.0
        assert latent == LatentSpec(case.channels, case.factor, *numbers, case.sampled, case.image_channels)
    check_rows(bundle)
    if case.image_channels == 4:
        check_pictures(bundle, tmp_path)


def check_pictures(bundle: Bundle, folder: Path) -> None:
    """That pictures with opacity are encoded and decoded, and that opacity is among what is encoded."""
    factor = bundle.manifest.latent.factor
    pixels = np.random.default_rng(0).integers(0, 256, (8 * factor - 1, 8 * factor, 4), np.uint8)
    (folder / "pictures").mkdir()
    write_image(folder / "pictures" / "one.png", pixels)
    write_image(folder / "pictures" / "opaque.png", pixels[..., :3])
    with VAE(bundle.path) as vae:
        encode_files(vae, folder / "pictures", folder / "latents", sample=False, seed=None, pad=True).check()
        decode_files(vae, folder / "latents", folder / "decoded").check()
        expected = vae.decode(vae.encode(pixels, pad=True), size=pixels.shape[:2])[0]
    one, opaque = (read_image(folder / "decoded" / f"{name}.png", opacity=True) for name in ("one", "opaque"))
    np.testing.assert_array_equal(one, expected)
    assert opaque.shape == pixels.shape
    assert (one != opaque).any()


def check_rows(bundle: Bundle) -> None:
    """Both halves of a bundle give by rows what they give as a whole, and the same bits whatever is stored."""
    latent = bundle.manifest.latent
    random = np.random.default_rng(0)
    inputs: dict[Part, tuple[int, ...]] = {
        "encoder": (1, latent.image_channels, 13 * latent.factor, 7 * latent.factor),
        "decoder": (1, latent.channels, 13, 7),
    }
    for part, shape in inputs.items():
        half, session = RowsHalf(bundle, part), onnxruntime_cpu.Session(bundle.graph(part, "onnxruntime"))
        given = np.tanh(random.standard_normal(shape)).astype(np.float32)
        output = bundle.manifest.interface(part).outputs[0]
        (whole,) = session.run([output], {half.table.input: given})
        results = []
        for budget in (1 << 40, 0):
            (result,) = half.run(half.plan(13, 7, budget), [output], given)
            results.append(result)
        assert np.array_equal(*results)
        assert np.linalg.norm(results[0] - whole) <= 2e-6 * np.linalg.norm(whole)


@every_family
def test_weights_of_another_family_do_not_fit(name: str, tmp_path: Path) -> None:
    other = next(n for n in CASES if n != name)
    (tmp_path / "config.json").write_text(json.dumps(CASES[name].config()))
    save_file(CASES[other].tensors(), tmp_path / "diffusion_pytorch_model.safetensors")
    message = message_of(WeightsError, tmp_path)
    assert "does not fit" in message or "holds no VAE that can be loaded" in message


@every_family
def test_fields_that_are_not_known_are_refused(name: str, tmp_path: Path) -> None:
    path = CASES[name].folder(tmp_path / "saved")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "new_option": False, "other": None}))
    load_reference(path, **CASES[name].given())
    (path / "config.json").write_text(json.dumps({**config, "new_option": "fast"}))
    assert message_of(WeightsError, path).startswith(
        f"{path / 'config.json'} has fields that this vaedeploy does not know: new_option 'fast'. They may change what "
        "the VAE computes. Take vaedeploy's newest version; or, if they change nothing, remove them from a copy of the "
        "file. "
    )


@every_family
def test_images_of_other_channels_are_refused(name: str, tmp_path: Path) -> None:
    fields = CHANNELS.get(name, ("in_channels", "out_channels"))
    config = {**CASES[name].config(), **dict.fromkeys(fields, 5)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"a": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    assert "has 5 channels in and 5 out; both must be " in message_of(WeightsError, tmp_path)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("ConsistencyDecoderVAE", "its decoder draws noise, which a graph must not"),
        ("AutoencoderKLCogVideoX", "it is a VAE of videos, and what is exported here takes images"),
    ],
)
def test_classes_that_cannot_be_loaded_say_why(name: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
    save_file({"a": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    assert message_of(WeightsError, tmp_path) == (
        f"{tmp_path / 'config.json'} is the config of {name}, which cannot be loaded: {why}. Any VAE can be given as "
        "two modules of your own: vaedeploy.Reference(encoder=..., decoder=..., latent=vaedeploy.LatentSpec(...)), in "
        "Python"
    )


def test_no_class_is_both_loaded_and_refused() -> None:
    assert not FAMILIES.keys() & REFUSED.keys()
    assert all(class_of(name).__name__ == name for name in FAMILIES)
    if diffusers.__version__.startswith("0.41."):
        pytest.skip("diffusers 0.41, the oldest, lacks some of the classes that are refused")
    assert all(class_of(name).__name__ == name for name in REFUSED)


def test_diffusers_that_is_too_old_for_a_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers.models.autoencoders.autoencoder_kl_flux2", None)
    config = {**CASES["AutoencoderKLFlux2"].config(), "latent_channels": 5}  # which no other test has built
    with pytest.raises(WeightsError) as error:
        tensor_shapes(FAMILIES["AutoencoderKLFlux2"].read(config))
    assert str(error.value) == (
        f"diffusers {diffusers.__version__} has no AutoencoderKLFlux2; it is older than vaedeploy needs it. Run: "
        f"{install_command('export')}"
    )


def test_architectures_of_two_classes_differ() -> None:
    kl, tiny = (FAMILIES[name].read(CASES[name].config()) for name in ("AutoencoderKL", "AutoencoderTiny"))
    assert isinstance(kl, Architecture)
    assert kl.differences(tiny) == ["class_name"]


def test_counters_may_be_missing_and_do_not_change_the_identity(tmp_path: Path) -> None:
    path = CASES["AutoencoderDC"].folder(tmp_path / "saved")
    identity = load_reference(path).identity
    file = path / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    counters = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
    assert counters
    save_file({**tensors, **{name: torch.tensor(7) for name in counters}}, file)
    assert load_reference(path).identity == identity
    save_file({name: tensor for name, tensor in tensors.items() if name not in counters}, file)
    assert load_reference(path).identity == identity
