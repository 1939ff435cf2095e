"""Bundles + photographs -> Comparison: what ``vaedeploy compare`` does."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from vaedeploy.bundle import Bundle, bundle_folder
from vaedeploy.errors import InputError
from vaedeploy.images.opacity import Color
from vaedeploy.images.photos import image_files, shrink_middle
from vaedeploy.page import check_folder, write_page
from vaedeploy.pipeline.compare.opacity import OnWhite
from vaedeploy.pipeline.compare.page import comparison_document
from vaedeploy.pipeline.compare.reconstruct import (
    cuts_of,
    read_photos,
    reconstruct,
    reconstructions,
    with_perceptual,
)
from vaedeploy.pipeline.compare.result import Comparison, summarize, truest
from vaedeploy.pipeline.compare.shown import broken_vaes
from vaedeploy.pipeline.compare.speed import time_vaes
from vaedeploy.pipeline.compare.swaps import SWAP_PHOTOS, SWAP_SIDE, swap_matrix
from vaedeploy.runtime import VAE
from vaedeploy.system.arguments import as_list, refuse_repeats
from vaedeploy.system.places import resolved
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.latent import RGB, RGBA


def compare_bundles(
    bundles: Sequence[Bundle | str | Path],
    images: str | Path | Sequence[str | Path],
    *,
    page: str | Path | None = None,
    background: Color | None = None,
    backend: str | None = None,
    timing: bool = True,
    progress: Progress = silent,
) -> Comparison:
    """Compare several VAEs on photographs: their quality, their speed, and whether each decodes the others' latents.

    >>> comparison = vd.compare_bundles(["mse840k", "my-finetune"], "photos", page="comparison")
    >>> comparison.truest_color, comparison.truest_detail
    >>> {(swap.encoder, swap.decoder): swap.verdict for swap in comparison.swaps}

    bundles: two or more. The comparison calls each by its folder's name, or by its path where two have the same name.
    images: a photograph or a folder, or a list of them. Their middle is compared, in a size that all bundles take and
        of at most 1024 pixels a side; ``cuts`` lists the photographs of which that is only a part. VAEs of RGBA images
        get them with opacity, opaque where they have none. Where RGBA and RGB VAEs are compared, photographs must be
        opaque, and RGBA images are judged as they look in front of white.
    page: a folder for an HTML page that shows the comparison.
    background: the colour behind transparent photographs, RGB, 0 to 255; without it these are not compared. It is
        useless where all VAEs are of RGBA images.
    backend: the backend that computes; None takes the first that works here, see ``VAE``.
    timing: also time a call of each VAE to encode and to decode, see ``Speed``. It takes about a third of the time,
        and five seconds or more.
    progress: reports how far each step is, see ``Progress``.

    All bundles are held in memory at once.

    Photographs that cannot be read or are under 32 pixels a side are listed in ``failures``; the others are compared.

    Raises InputError for fewer than two bundles, a bundle or photograph given twice, or a useless ``background``,
    ImageError where no photograph is left, and whatever ``VAE`` raises. A ``page`` that cannot be written raises
    OutputError before any work, or PageError, which holds the comparison, afterwards.
    """
    given = as_list("bundles", bundles)
    names = _names([bundle.path if isinstance(bundle, Bundle) else bundle_folder(bundle) for bundle in given])
    files = image_files(images)
    if page is not None:
        check_folder(page)
    started = time.perf_counter()
    with ExitStack() as stack:
        opened = {name: stack.enter_context(VAE(path, backend)) for name, path in names.items()}
        flattened, vaes = _alike(opened)
        rgba = not flattened and next(iter(opened.values())).latent.image_channels == RGBA
        factor = math.lcm(*(vae.latent.factor for vae in vaes.values()))
        photos, cuts, failures = read_photos(files, factor, rgba, background)
        pictures = reconstruct(vaes, photos, cuts, progress)
        swap_photos = [photos[name] for name in _evenly(list(photos), SWAP_PHOTOS)]
        swaps, strips = swap_matrix(vaes, [shrink_middle(photo, factor, SWAP_SIDE) for photo in swap_photos], progress)
        spent = time.perf_counter() - started
        channels = RGBA if rgba else RGB
        speeds = time_vaes(vaes, swap_photos, factor, channels, spent, progress) if timing else ()
    pictures, left_out = with_perceptual(pictures, progress)
    rows = reconstructions(pictures)
    summaries = tuple(summarize(name, [row for row in rows if row.bundle == name]) for name in vaes)
    broken = broken_vaes(pictures)
    told = (flattened, left_out, failures, broken)
    cut = cuts_of(pictures)
    comparison = Comparison(tuple(vaes), summaries, *truest(summaries, broken), speeds, swaps, rows, *told, cut)
    if page is not None:
        write_page(comparison_document(comparison, pictures, strips), page, comparison)
    return comparison


def _names(paths: Sequence[Path]) -> dict[str, Path]:
    """Each bundle by a name that no other has.

    Raises InputError for fewer than two bundles or one given twice.
    """
    if len(paths) < 2:
        raise InputError(f"{len(paths)} bundle was given; give two or more to compare. For one, there is look")
    refuse_repeats("bundle", paths)
    short = [resolved(path).name for path in paths]
    return {name if short.count(name) == 1 else str(path): path for name, path in zip(short, paths, strict=True)}


def _alike(vaes: Mapping[str, VAE]) -> tuple[tuple[str, ...], Mapping[str, VAE | OnWhite]]:
    """The names of the RGBA VAEs that are compared as ``OnWhite``, because a VAE of RGB images is among the others, and
    all VAEs, whose images then have the same channels.
    """
    rgba = tuple(name for name, vae in vaes.items() if vae.latent.image_channels == RGBA)
    flattened = rgba if len(rgba) < len(vaes) else ()
    return flattened, {name: OnWhite(vae) if name in flattened else vae for name, vae in vaes.items()}


def _evenly(names: list[str], count: int) -> list[str]:
    """``count`` of ``names`` at even distances, or all where there are fewer."""
    places = np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)
    return [names[place] for place in places]
