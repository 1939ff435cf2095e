"""Replacing the VAE in a bundle by one with other weights, and restoring it: what ``vaedeploy swap`` does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from vaedeploy.bundle import PREVIOUS, Bundle, BundleEdit, as_bundle, check_bundle, edit_bundle, naming_bundle
from vaedeploy.bundle.graphs import EXTRA_FORMS
from vaedeploy.bundle.manifest import NAME
from vaedeploy.engines.plan import plan_rebuilds
from vaedeploy.errors import BuildError, InputError, VerificationError
from vaedeploy.graph.graph import load_graph
from vaedeploy.images.opacity import on_white
from vaedeploy.images.photos import crop_batch, load_photos
from vaedeploy.images.pixels import pixel_errors, relative_errors
from vaedeploy.pipeline.build import build_planned
from vaedeploy.pipeline.export import export_vae, refuse_bundles
from vaedeploy.runtime import VAE
from vaedeploy.source import find_source, load_source
from vaedeploy.system.atomic import link_or_copy, replace_directory
from vaedeploy.system.interrupts import stop_if_interrupted
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.kinds import PARTS, Part
from vaedeploy.values.trials import trial_latents

if TYPE_CHECKING:
    from vaedeploy.values.reference import Reference


__all__ = ["Drift", "restore_vae", "swap_vae"]

SIDE = 24
"""Height and width, in latents as for ``trial_latents``, of the photographs on which ``Drift`` is measured."""


class Drift(msgspec.Struct, frozen=True):
    """How far a swap moves latents and images, on the three photographs of scikit-image.

    Both decoders are given the latents of the *old* encoder, because a diffusion model keeps giving latents of the old
    space.

    latent_rel_l2: relative L2 error of the new encoder's latents against the old one's.
    psnr: dB, of the new decoder's images against the old one's; None where no pixel differs.
    mean_levels: the mean absolute difference of those images, in 8-bit levels.
    shift: how much brighter red, green and blue are in the new images on average, in 8-bit levels; images with opacity
        are seen in front of white.
    """

    latent_rel_l2: float
    psnr: float | None
    mean_levels: float
    shift: tuple[float, float, float]


def swap_vae(
    bundle: Bundle | str | Path,
    vae: str | Path | Reference,
    *,
    weights: str | Path | None = None,
    revision: str | None = None,
    subfolder: str | None = None,
    progress: Progress = silent,
) -> tuple[Bundle, Drift]:
    """Replace the VAE in a bundle by another of the same architecture and latent contract.

    >>> bundle, drift = vd.swap_vae("mse840k", "my-finetune.safetensors")
    >>> drift.psnr, drift.mean_levels

    Returns the new bundle, and how far the new VAE moves latents and images.

    bundle: keeps its path, precision, forms and kind of encoder input; one that was made ``private`` stays so.
    vae, weights, revision, subfolder: the new VAE, as for ``export_vae``.
    progress: reports how far each stage is, see ``Progress``.

    The new graphs are verified, and every engine is built again, before anything is replaced. The new bundle keeps the
    old one under ``previous``, for ``restore_vae``; after several swaps that is still the original.

    Raises InputError for a VAE of another architecture or latent contract, BundleError for a bundle that is damaged or
    has files in it that are not its own, BackendError where its engines cannot be built again here, VerificationError,
    BuildError, and whatever else ``export_vae`` raises. The bundle is unchanged then.
    """
    refuse_bundles(vae, weights)
    source = find_source(vae, weights, revision=revision, subfolder=subfolder)
    found = Bundle.open(bundle.path if isinstance(bundle, Bundle) else bundle, verify_hashes=False)
    with edit_bundle(found, replace=True) as edit:
        # Every file is checked: restore_vae needs them whole, and a foreign file would be lost.
        old = check_bundle(found.path)
        jobs = plan_rebuilds(old)  # to fail before the long work
        reference = load_source(source, progress=progress)
        _check_contract(old, reference)
        manifest = old.manifest
        try:
            new = export_vae(
                reference,
                out=edit.draft / "bundle",
                precision=manifest.precision,
                image_input=manifest.image_input,
                rewrite=manifest.rewritten,
                private=manifest.vae.origin.is_private,
                forms=[form for form in EXTRA_FORMS if form in manifest.graphs["decoder"]],
                keep_fp32=manifest.keep_fp32,
                progress=progress,
            )
        except VerificationError as error:
            failed = sum(not case.passed for case in error.report.cases)
            raise VerificationError(
                f"{reference.name} failed its verification in {failed} of {len(error.report.cases)} cases, so bundle "
                f"{old.path} keeps the VAE that it has. To see them: vaedeploy export {vae} --out PLACE",
                error.report,
            ) from error
        _check_architecture(old, new)
        try:
            new = build_planned(new, jobs, progress=progress) if jobs else new
        except BuildError as error:
            error.bundle = None  # it is in the draft, which is removed
            raise
        drift = _drift(old, new)
        _keep(old, new)
        return _put_in_place(edit, new.path), drift


def restore_vae(bundle: Bundle | str | Path) -> Bundle:
    """Restore the VAE, the graphs and the engines that a bundle had before ``swap_vae``, bit for bit.

    >>> bundle = vd.restore_vae("mse840k")

    Raises InputError where no VAE was swapped, and BundleError where the bundle that was kept is damaged.
    """
    with edit_bundle(as_bundle(bundle), replace=True) as edit:
        if f"{PREVIOUS}/{NAME}" not in edit.bundle.manifest.files:
            raise InputError(
                f"bundle {edit.bundle.path} holds the VAE that it was made with: there is nothing to restore"
            )
        kept = check_bundle(edit.bundle.path / PREVIOUS)
        return _put_in_place(edit, _copy(kept, edit.draft / "bundle"))


def _check_contract(old: Bundle, reference: Reference) -> None:
    """Raise InputError where ``reference`` names another architecture or has another latent contract than ``old``."""
    had = old.manifest
    if reference.architecture != had.vae.architecture:
        raise InputError(
            f"{reference.name} is of architecture {reference.architecture}, and bundle {old.path} holds an "
            f"{had.vae.architecture}; a swap keeps the architecture. Export it to a bundle of its own"
        )
    if reference.latent.image_channels != had.latent.image_channels:
        raise InputError(
            f"{reference.name} is a VAE of {reference.latent.colors} images, and bundle {old.path} holds one of "
            f"{had.latent.colors} images: what gives the bundle images and takes them from it would break. Export it "
            "to a bundle of its own"
        )
    if reference.latent != had.latent:
        differing = [
            f"{field} (bundle: {ours}, {reference.name}: {theirs})"
            for field, ours, theirs in had.latent.differences(reference.latent)
        ]
        raise InputError(
            f"{reference.name} has another latent contract than bundle {old.path}: {', '.join(differing)}. Diffusion "
            "models made for one of them give the other wrong latents. Export it to a bundle of its own"
        )


def _check_architecture(old: Bundle, new: Bundle) -> None:
    """Raise InputError where the weights of the two bundles' graphs differ in shape."""
    for part in PARTS:
        if _tensors(old, part) != _tensors(new, part):
            raise InputError(
                f"the {part} of {new.manifest.vae.name} has other layers than that of bundle {old.path}; a swap keeps "
                "the architecture. Export it to a bundle of its own"
            )


def _tensors(bundle: Bundle, part: Part) -> list[tuple[int, ...]]:
    """The shapes of a portable graph's kernels and matrices, sorted. Vectors are left out: the exporter keeps only one
    of several equal ones, such as biases of zeros.
    """
    initializers = load_graph(bundle.graph(part), part).model.graph.initializers.values()
    shapes = [value.shape.numpy() for value in initializers if value.shape is not None]
    return sorted(shape for shape in shapes if len(shape) > 1)


def _drift(old: Bundle, new: Bundle) -> Drift:
    factor = old.manifest.latent.factor
    photos = load_photos()
    side = trial_latents(SIDE, factor) * factor
    batch = crop_batch(photos, len(photos), side, side, channels=old.manifest.latent.image_channels)
    options: dict[str, Any] = {"backend": "onnxruntime-cpu", "verify_hashes": False}
    with VAE(old.path, **options) as before, VAE(new.path, **options) as after:
        latent = before.encode(batch)
        moved = relative_errors(after.encode(batch), latent)["rel_l2"]
        found, expected = after.decode(latent), before.decode(latent)
    difference = found.astype(np.float64) - expected
    red, green, blue = (on_white(found).astype(np.float64) - on_white(expected)).mean(axis=(0, 1, 2)).tolist()
    psnr = pixel_errors(found, expected)["psnr"]
    return Drift(moved, psnr, float(np.abs(difference).mean()), (red, green, blue))


def _keep(old: Bundle, new: Bundle) -> None:
    """Put the old bundle into the new one, or the earlier bundle that the old one keeps, if any."""
    first = old.path / PREVIOUS
    kept = Bundle.open(first, verify_hashes=False) if (first / NAME).exists() else old
    with edit_bundle(new) as edit:
        folder = _copy(kept, edit.draft)
        edit.put(files={f"{PREVIOUS}/{name}": folder / name for name in (NAME, *kept.manifest.files)})


def _copy(bundle: Bundle, folder: Path) -> Path:
    """Copy the manifest and every file that it names into ``folder``, as hard links where the disk has them: that is
    safe, because a file of a bundle is never changed in place.
    """
    for name in (NAME, *bundle.manifest.files):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(bundle.path / name, target)
    return folder


def _put_in_place(edit: BundleEdit, made: Path) -> Bundle:
    stop_if_interrupted()
    with naming_bundle(edit.bundle.path):
        replace_directory(made, edit.bundle.path.resolve())
    return Bundle.open(edit.bundle.path, verify_hashes=False)
