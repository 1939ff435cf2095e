"""One VAE on one's own pictures: ``vaedeploy look``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from vaedeploy.bundle import Bundle, bundle_folder
from vaedeploy.images.cut import Cut
from vaedeploy.images.opacity import Color
from vaedeploy.images.photos import image_files
from vaedeploy.page import Document, check_folder, write_page
from vaedeploy.pipeline.compare.reconstruct import (
    cuts_of,
    read_photos,
    reconstruct,
    reconstructions,
    with_perceptual,
)
from vaedeploy.pipeline.compare.result import Reconstruction, summarize
from vaedeploy.pipeline.compare.words import bundle_line, cut_lines, failure_lines, perceptual_lines
from vaedeploy.quality.candidates import Picture
from vaedeploy.runtime import VAE
from vaedeploy.system.places import resolved
from vaedeploy.system.progress import Progress, silent
from vaedeploy.values.latent import RGBA
from vaedeploy.values.words import counted


class Looked(msgspec.Struct, frozen=True, omit_defaults=True):
    """The result of ``look_at_bundle``.

    bundle: its folder's name. reconstructions: what was measured of each picture.
    left_out: sentences on the metrics that were not measured, because their packages, weights or memory are not here.
    failures: a sentence for each picture that is not shown, because it cannot be read.
    cuts: the part that was looked at, for each picture that was cut.
    """

    bundle: str
    reconstructions: tuple[Reconstruction, ...]
    left_out: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    cuts: tuple[Cut, ...] = ()


def look_at_bundle(
    bundle: Bundle | str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    page: str | Path,
    background: Color | None = None,
    backend: str | None = None,
    progress: Progress = silent,
) -> Looked:
    """Show what one VAE does to pictures: each is encoded and decoded, and shown beside the original on an HTML page.

    >>> found = vd.look_at_bundle("mse840k", ["portrait.png", "photos"], page="look")
    >>> for row in found.reconstructions:
    ...     print(row.picture, [finding.words for finding in row.findings])

    images: image files, and folders of them, or one path. Their middle is looked at, in a size that the bundle takes
        and of at most 1024 pixels a side; ``cuts`` lists the pictures of which that is only a part. A VAE of RGBA
        images is given their opacity.
    page: the folder for the page.
    background: the colour behind transparent pictures, RGB, 0 to 255; without it these are not shown. A VAE of RGBA
        images has no use for it.
    backend: the backend that computes; None takes the first that works here, see ``VAE``.
    progress: reports how many pictures are done, see ``Progress``.

    Pictures that cannot be read or are under 32 pixels a side are listed in ``failures``, and the others are shown.

    Raises InputError for no image, one given twice, or a useless ``background``, ImageError for a missing file and
    where no picture is left, and whatever ``VAE`` raises. A ``page`` that cannot be written raises OutputError before
    any work, or PageError, which holds the result, afterwards.
    """
    files = image_files(images)
    check_folder(page)
    path = bundle.path if isinstance(bundle, Bundle) else bundle_folder(bundle)
    name = resolved(path).name
    with VAE(path, backend) as vae:
        photos, cuts, failures = read_photos(files, vae.latent.factor, vae.latent.image_channels == RGBA, background)
        pictures = reconstruct({name: vae}, photos, cuts, progress)
    pictures, left_out = with_perceptual(pictures, progress)
    found = Looked(name, reconstructions(pictures), left_out, failures, cuts_of(pictures))
    write_page(look_document(found, pictures), page, found)
    return found


def look_document(found: Looked, pictures: Sequence[Picture]) -> Document:
    """What the page shows."""
    name, total = found.bundle, counted(len(pictures), "picture")
    changed = [row.findings for row in found.reconstructions if row.findings]
    faults = list(dict.fromkeys(finding.name for findings in changed for finding in findings))
    changes = f"{name} changes {len(changed)} of {total} visibly: {', '.join(faults)}"
    same = f"{name} changes {'nothing visibly in what was looked at' if found.cuts else 'no picture visibly'}"
    return Document(
        title=f"{name} on {total}",
        verdict=changes if changed else same,
        tone="mixed" if changed else "good",
        sentences=(*cut_lines(found.cuts, len(pictures)), *failure_lines(found.failures, len(pictures))),
        reference="photograph",
        pictures=tuple(pictures),
        further=(
            bundle_line(summarize(name, list(found.reconstructions)), found.reconstructions),
            *perceptual_lines(found.reconstructions),
        ),
        notes=found.left_out,
    )
