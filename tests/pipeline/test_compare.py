"""Several VAEs side by side: who is truest, who understands whom, and what is said of it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import skimage.data
from codec import Codec
from PIL import Image
from scipy.ndimage import gaussian_filter
from tiny_bundle import tiny_bundle

from vaedeploy.bundle import Bundle
from vaedeploy.errors import ImageError, InputError, SizeError
from vaedeploy.images.cut import Cut
from vaedeploy.images.files import read_image, write_image
from vaedeploy.images.opacity import on_white, verification_mask, with_opacity
from vaedeploy.images.photos import SAMPLES, crop_middle
from vaedeploy.images.pixels import to_levels
from vaedeploy.pipeline.compare import Reconstruction, Summary, Swap, Transform, compare_bundles, speed
from vaedeploy.pipeline.compare.opacity import OnWhite
from vaedeploy.pipeline.compare.result import Comparison, summarize, truest
from vaedeploy.pipeline.compare.shown import CLOSE, least_psnr, plain_psnr
from vaedeploy.pipeline.compare.speed import ROUNDS
from vaedeploy.pipeline.compare.swaps import GAIN, MARGIN_PSNR, _map_colors, swap_matrix
from vaedeploy.pipeline.compare.transform import apply, causes, fit_transform, identity
from vaedeploy.pipeline.compare.words import remedy, summary_lines, verdict_line
from vaedeploy.quality import Finding, measure_quality
from vaedeploy.runtime import VAE
from vaedeploy.system.progress import silent
from vaedeploy.values.latent import LatentSpec

ORDER = (3, 1, 0, 2)
CHANNELS = 12
SHUFFLED = np.random.default_rng(1).permutation(CHANNELS)
FLIPPED = np.where(np.arange(CHANNELS) % 4 == 0, -1, 1)[:, None, None]
TURN = np.linalg.qr(np.random.default_rng(2).normal(size=(CHANNELS, CHANNELS)))[0]


@pytest.fixture(scope="module")
def crops() -> list[np.ndarray]:
    return [crop_middle(getattr(skimage.data, name)(), 4, 128) for name in SAMPLES]


def swaps(crops: list[np.ndarray], **codecs: Codec) -> dict[tuple[str, str], Swap]:
    return {(swap.encoder, swap.decoder): swap for swap in swap_matrix(codecs, crops)[0]}


def turned(latent: np.ndarray) -> np.ndarray:
    return np.einsum("ij,bjhw->bihw", TURN, latent)


def turned_back(latent: np.ndarray) -> np.ndarray:
    return np.einsum("ji,bjhw->bihw", TURN, latent)


# ------------------------------------------------------------------------------------------------- transforms


@pytest.mark.parametrize(
    "transform",
    [
        Transform((0, 1, 2, 3), (1, 1, 1, 1), 1.4, 0.0),
        Transform((0, 1, 2, 3), (-1, -1, -1, -1), 1.0, 0.0),
        Transform(ORDER, (1, -1, 1, 1), 0.13, 0.0),
        Transform(ORDER, (1, 1, 1, 1), 0.7, 0.25),
    ],
)
def test_a_transform_is_found_from_its_result_and_undoes_what_it_does(transform: Transform) -> None:
    source = np.random.default_rng(0).normal(0.3, 1, (2, 4, 16, 16)).astype(np.float32)
    found = fit_transform(source, apply(transform, source))
    assert (found.order, found.signs) == (transform.order, transform.signs)
    assert found.scale == pytest.approx(transform.scale, rel=1e-4)
    assert found.shift == pytest.approx(transform.shift, abs=1e-4)
    back = fit_transform(apply(transform, source), source)
    np.testing.assert_allclose(apply(back, apply(transform, source)), source, atol=1e-4)


def test_noise_does_not_lower_the_scale() -> None:
    rng = np.random.default_rng(0)
    source = rng.normal(0, 1, (1, 4, 64, 64))
    noisy = 1.5 * (source + rng.normal(0, 0.5, source.shape)) / np.hypot(1, 0.5)
    assert fit_transform(source, noisy).scale == pytest.approx(1.5, rel=0.02)


def test_each_cause_has_its_name_and_its_remedy() -> None:
    plain = identity(4)
    assert causes(plain) == ()
    for change, cause, words in (
        ({"scale": 1.4}, "wrong scale", "multiply the latent by 1.400"),
        ({"shift": -0.3}, "wrong shift", "add -0.300 to the latent"),
        ({"signs": (-1,) * 4}, "sign flip", "flip the sign of the latent"),
        ({"signs": (1, -1, 1, -1)}, "sign flip", "flip the sign of channels 1, 3"),
        ({"order": ORDER}, "permuted channels", "take the latent's channels in the order 3, 1, 0, 2"),
    ):
        transform = msgspec.structs.replace(plain, **change)
        assert causes(transform) == (cause,)
        assert remedy(transform) == words
    both = Transform(ORDER, (1, 1, 1, -1), 2.0, 0.0)
    assert causes(both) == ("permuted channels", "sign flip", "wrong scale")
    assert remedy(both).count(", then ") == 2
    assert causes(msgspec.structs.replace(plain, scale=1.01, shift=0.01)) == ()


# ------------------------------------------------------------------------------------------------- swap matrix


def test_equal_codecs_are_compatible_and_say_how_they_differ(crops: list[np.ndarray]) -> None:
    found = swaps(crops, one=Codec(), other=Codec(painted=lambda levels: levels + 1))
    assert set(found) == {("one", "other"), ("other", "one")}
    for swap in found.values():
        assert (swap.verdict, swap.cause, swap.transform, swap.findings) == ("compatible", None, None, ())
        assert swap.psnr > swap.own_psnr - MARGIN_PSNR
        assert "colour differs by 0." in swap.words
        assert "contrast 100%" in swap.words


@pytest.mark.parametrize(
    ("decoded", "cause", "scale"),
    [
        (lambda z: z * 0.7, "wrong scale", 1 / 0.7),
        (lambda z: z * 0.9, "wrong scale", 1 / 0.9),
        (lambda z: z * 1.4, "wrong scale", 1 / 1.4),
        (lambda z: z / 3, "wrong scale", 3),
        (lambda z: z - 0.3, "wrong shift", 1),
        (lambda z: -z, "sign flip", 1),
        (lambda z: z * FLIPPED, "sign flip", 1),
        (lambda z: z[:, SHUFFLED], "permuted channels", 1),
    ],
    ids=["smaller", "a little smaller", "larger", "a third", "shifted", "all signs", "some signs", "order"],
)
def test_a_decoder_that_is_wrong_by_itself_is_found_out(
    crops: list[np.ndarray], decoded: Callable[[Any], Any], cause: str, scale: float
) -> None:
    found = swaps(crops, right=Codec(), wrong=Codec(decoded=decoded))
    swap = found["right", "wrong"]
    assert swap.cause == cause
    assert swap.verdict == ("compatible with a shift" if cause.startswith("wrong") else "not compatible")
    assert swap.transform.scale == pytest.approx(scale, rel=0.05)
    assert swap.restored_psnr > swap.psnr + GAIN
    latent = Codec().encode(crops[0])
    np.testing.assert_allclose(decoded(apply(swap.transform, latent)), latent, atol=0.1)
    back = found["wrong", "right"]
    assert back.verdict == "compatible"
    assert "better than their own decoder" in back.words
    # Only what ``Codec`` always does. Beside the wrong pictures of its own decoder, true ones would be off in colour.
    assert {finding.name for finding in back.findings} == {"blurred"}
    assert "Beside the shrunk photographs" in back.words


@pytest.mark.parametrize(("factor", "faults"), [(0.7, {"washed out"}), (1.4, {"over-saturated"})])
def test_a_wrong_scale_is_told_in_words_and_of_the_vae_by_itself(
    crops: list[np.ndarray], factor: float, faults: set[str]
) -> None:
    found = swaps(crops, right=Codec(), wrong=Codec(decoded=lambda z: z * factor))
    for pair in (("right", "wrong"), ("wrong", "wrong")):
        assert faults & {finding.name for finding in found[pair].findings}
        assert found[pair].cause == "wrong scale"
        assert found[pair].transform.scale == pytest.approx(1 / factor, rel=0.05)
        assert f"multiply the latent by {found[pair].transform.scale:.3f}" in found[pair].words
    assert ("right", "right") not in found


@pytest.mark.parametrize(
    ("encoded", "decoded", "cause"),
    [
        (lambda z: 1.8 * z, lambda z: z / 1.8, "wrong scale"),
        (lambda z: -z, lambda z: -z, "sign flip"),
        (lambda z: z[:, SHUFFLED], lambda z: z[:, np.argsort(SHUFFLED)], "permuted channels"),
        (lambda z: 1.5 * z[:, SHUFFLED], lambda z: z[:, np.argsort(SHUFFLED)] / 1.5, "permuted channels"),
        (turned, turned_back, "another latent space"),
    ],
    ids=["scale", "signs", "order", "order and scale", "rotation"],
)
def test_a_vae_that_is_right_by_itself_and_has_another_latent_is_found_out(
    crops: list[np.ndarray], encoded: Callable[[Any], Any], decoded: Callable[[Any], Any], cause: str
) -> None:
    found = swaps(crops, one=Codec(), other=Codec(encoded=encoded, decoded=decoded))
    assert {swap.cause for swap in found.values()} == {cause}
    assert all((swap.transform is None) == (cause == "another latent space") for swap in found.values())


@pytest.mark.parametrize(
    ("scale", "shift", "cause"), [(1.25, 0.0, "wrong scale"), (1.0, 0.3, "wrong shift")], ids=["scale", "shift"]
)
def test_a_change_of_latents_is_measured_where_their_sides_are_odd(scale: float, shift: float, cause: str) -> None:
    crops = [crop_middle(getattr(skimage.data, name)(), 4, 4 * 33) for name in SAMPLES]
    other = Codec(encoded=lambda z: scale * z + shift, decoded=lambda z: (z - shift) / scale)
    swap = swaps(crops, one=Codec(), other=other)["one", "other"]
    assert swap.transform is not None
    assert swap.cause == cause
    assert swap.transform.scale == pytest.approx(scale, rel=0.01)
    assert swap.transform.shift == pytest.approx(shift, abs=0.01)


@pytest.mark.parametrize(
    ("painted", "cause"),
    [
        (lambda levels: (levels + levels.mean(axis=3, keepdims=True)) / 2, "colour and contrast"),
        (lambda levels: levels * np.array([1.15, 1.0, 0.8]), "colour and contrast"),
        (lambda levels: gaussian_filter(levels, (0, 1.1, 1.1, 0)), "detail"),
    ],
    ids=["pale", "warm", "blurred"],
)
def test_other_colours_and_less_detail_are_a_shift(
    crops: list[np.ndarray], painted: Callable[[Any], Any], cause: str
) -> None:
    swap = swaps(crops, one=Codec(), other=Codec(painted=painted))["one", "other"]
    assert (swap.verdict, swap.cause) == ("compatible with a shift", cause)
    assert swap.findings[0].words in swap.words


def test_another_contract_is_not_tried(crops: list[np.ndarray]) -> None:
    other = dataclasses.replace(Codec(), latent=LatentSpec(channels=16, factor=4, scale=1.0))
    found, strips = swap_matrix({"one": Codec(), "other": other}, crops)
    told = {(swap.encoder, swap.decoder): swap for swap in found}["one", "other"]
    assert (told.verdict, told.cause, told.psnr) == ("not compatible", "another latent contract", None)
    assert told.words == (
        "one has latents of 12 channels at 1/4 of the size, other of 16 channels at 1/4 of the size: they cannot be "
        "exchanged."
    )
    assert all(strip.pictures for strip in strips)


def noise(seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """What a decoder with random weights paints: the picture hardly shows in it."""

    def painted(levels: np.ndarray) -> np.ndarray:
        mixed = np.random.default_rng(seed).normal(0, 60, levels.shape)
        return 0.2 * levels + np.array([150.0, 30.0, 90.0]) + mixed

    return painted


@pytest.mark.parametrize("other", [noise(1), lambda levels: noise(1)(levels) / 2], ids=["noise", "darker noise"])
def test_vaes_that_do_not_show_the_photographs_are_not_judged(crops: list[np.ndarray], other: Any) -> None:
    found = swaps(crops, one=Codec(painted=noise(0)), other=Codec(painted=other))
    assert set(found) == {("one", "other"), ("other", "one")}
    for swap in found.values():
        assert (swap.verdict, swap.cause, swap.transform) == ("cannot be judged", "broken by itself", None)
        assert swap.own_psnr < plain_psnr(crops)
        assert swap.words.startswith(
            "one and other do not show the photographs with their own latents (PSNR: one "
        ) or (swap.words.startswith("other and one do not show the photographs with their own latents (PSNR: other "))


def test_beside_a_vae_that_does_not_show_the_photographs_nothing_is_said(crops: list[np.ndarray]) -> None:
    found = swaps(crops, right=Codec(), broken=Codec(painted=noise(0)))
    assert {swap.verdict for pair, swap in found.items() if pair == ("right", "broken")} == {"cannot be judged"}
    assert found["right", "broken"].words == (
        "broken does not show the photographs with its own latents (PSNR: broken "
        f"{found['broken', 'right'].own_psnr:.1f} dB; a plain picture of the mean colour has "
        f"{plain_psnr(crops):.1f} dB), so nobody can tell whether broken decodes those of right."
    )
    # Its encoder is right, which is seen where the other decodes its latents.
    assert found["broken", "right"].verdict == "compatible"


def test_a_photograph_of_nearly_one_colour_is_shown_by_what_is_close_to_it() -> None:
    plain = np.full((32, 32, 3), 99, np.uint8)
    assert plain_psnr([plain]) == np.inf
    assert least_psnr([plain]) == CLOSE
    halves = np.concatenate([plain, 0 * plain])
    assert plain_psnr([halves]) == pytest.approx(20 * np.log10(255 / 49.5))
    assert plain_psnr([plain, 0 * plain]) == np.inf  # each has its own mean
    assert least_psnr([halves]) == pytest.approx(plain_psnr([halves]) + 3)


# ------------------------------------------------------------------------------------------------- truest


def summary(bundle: str, color: float, detail: float) -> Summary:
    return Summary(bundle, 30.0, color, 1.0, 1.0, detail)


@pytest.mark.parametrize(
    ("color", "detail", "words"),
    [
        (("a", "b"), ("a", "b"), "Use either: no VAE is truer than another in colour or in detail; "),
        (("a", "b"), ("b",), "No VAE is truer in colour, and b is truest in detail; "),
        (("a",), ("a", "b"), "a is truest in colour, and no VAE is truer in detail; "),
        (("b",), ("b",), "b is truest, in colour and in detail; "),
    ],
)
def test_the_verdict_is_a_sentence(color: tuple[str, ...], detail: tuple[str, ...], words: str) -> None:
    found = Comparison(("a", "b"), (), color, detail, (), (), ())
    assert verdict_line(found) == f"{words}all can take each other's latents."


def equals(*swaps: Swap, bundles: tuple[str, ...] = ("a", "b"), faulty: str = "") -> Comparison:
    """A comparison of VAEs of which none is truer. faulty: one of them, of which a fault is seen."""
    photo = skimage.data.astronaut()[:64, :64]
    quality = measure_quality(photo, photo)
    fault = Finding("grid", "artifacts.grid", 1.0, 0.3, "levels", "A grid.", 3.3)
    rows = tuple(Reconstruction(name, "face", quality, (fault,) if name == faulty else ()) for name in bundles)
    summaries = tuple(summarize(name, [row]) for name, row in zip(bundles, rows, strict=True))
    return Comparison(bundles, summaries, bundles, bundles, (), swaps, rows)


def test_where_no_vae_is_better_the_answer_says_which_to_use() -> None:
    same = "no VAE is truer than another in colour or in detail"
    shifted = Swap("a", "b", "compatible with a shift", "")
    other = Swap("a", "b", "not compatible", "")
    keep = f"Keep the one that your diffusion model was trained with: {same}"
    assert verdict_line(equals()) == f"Use either: {same}; all can take each other's latents."
    assert verdict_line(equals(bundles=("a", "b", "c"))).startswith(f"Use any of them: {same}; ")
    assert verdict_line(equals(other)) == f"{keep}; not all can take each other's latents."
    assert verdict_line(equals(shifted)) == f"{keep}; all can take each other's latents, but not without a shift."
    # What is seen of one and not of the other is a reason to choose.
    assert verdict_line(equals(faulty="b")) == f"N{same[1:]}; all can take each other's latents."
    line, *_ = summary_lines(equals())
    assert line == "Use either: in colour and in detail, no difference between them is large enough to tell."
    assert summary_lines(equals(faulty="b"))[:2] == [
        "In colour, no difference between them is large enough to tell.",
        "In detail, no difference between them is large enough to tell.",
    ]


def test_the_truest_are_those_that_nobody_is_clearly_before() -> None:
    rows = (summary("a", 2.0, 0.8), summary("b", 2.05, 0.9), summary("c", 3.0, 1.3))
    assert truest(rows) == (("a", "b"), ("b",))
    assert truest((summary("a", 2.0, 1.15), summary("b", 1.0, 0.9))) == (("b",), ("b",))  # false detail is none
    assert truest(rows, ["b"]) == (("a",), ("a",))
    assert truest(rows, ["a", "b", "c"]) == ((), ())


@pytest.mark.parametrize(
    ("broken", "line", "verdict"),
    [
        (("a", "b"), "No VAE shows the photographs, so none is truest. Their weights may be", "No VAE shows the photo"),
        (("b",), "b does not show the photographs and is not called truest. Its weights may be", "a is truest, in"),
    ],
)
def test_broken_vaes_are_not_called_truest(broken: tuple[str, ...], line: str, verdict: str) -> None:
    best = tuple(name for name in "ab" if name not in broken)
    swap = Swap("a", "b", "cannot be judged", "", "broken by itself")
    found = Comparison(("a", "b"), (), best, best, (), (swap,), (), broken=broken)
    lines = summary_lines(found)
    assert lines[-1].startswith(line)
    assert [text for text in lines if text.startswith("Truest")] == [
        f"Truest in {x}: a." for x in ("colour", "detail") if best
    ]
    assert verdict_line(found).startswith(verdict)
    assert verdict_line(found).endswith("; whether all can take each other's latents cannot be judged.")


# ------------------------------------------------------------------------------------------------- bundles


@pytest.fixture(autouse=True)
def without_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LPIPS and DISTS are left out, on a machine that has what they need as well: see test_perceptual.py."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    tiny_bundle(folder / "one")
    tiny_bundle(folder / "two", seed=1)
    (folder / "photos").mkdir()
    for name in SAMPLES[:2]:
        Image.fromarray(getattr(skimage.data, name)()[:98, :131]).save(folder / "photos" / f"{name}.png")
    return folder


def test_bundles_are_compared_and_the_page_is_written(folder: Path) -> None:
    found = compare_bundles([folder / "one", folder / "two"], folder / "photos", page=folder / "page")
    assert found.bundles == ("one", "two")
    assert [(r.bundle, r.picture) for r in found.reconstructions] == [
        ("one", "astronaut"),
        ("two", "astronaut"),
        ("one", "coffee"),
        ("two", "coffee"),
    ]
    assert {(s.bundle, s.part) for s in found.speeds} == {(b, p) for b in ("one", "two") for p in ("encode", "decode")}
    assert all(s.ms > 0 and s.least_ms <= s.ms <= s.most_ms for s in found.speeds)
    assert {(s.encoder, s.decoder) for s in found.swaps} >= {("one", "two"), ("two", "one")}
    assert found.cuts == (Cut("astronaut", 96, 128, 98, 131), Cut("coffee", 96, 128, 98, 131))
    text = (folder / "page" / "index.html").read_text()
    assert text.index("Only the middle of 2 of 2 pictures is looked at") < text.index("</header>")
    assert text.count("Only its middle is looked at (height x width): 96x128 of 98x131 pixels, 95.7%.") == 2
    assert text.index("<article>") < text.index("The VAEs side by side") < text.index("Compatible latents")
    shrunk = "PSNR is of up to 4 photographs that are shrunk to 256 pixels, so it differs from that of the VAEs side"
    assert text.index("Compatible latents") < text.index(shrunk)
    assert re.findall(r'<option value="\d" selected>(\w+)</option>', text) == ["one", "two"] * 2
    assert '<header class="bad">' in text or '<header class="mixed">' in text  # faults are seen


@pytest.mark.parametrize(("least", "side", "rounds"), [(math.inf, 512, ROUNDS), (0.0, 256, 1)])
def test_slow_vaes_are_timed_on_a_smaller_picture_and_in_fewer_rounds(
    folder: Path, monkeypatch: pytest.MonkeyPatch, least: float, side: int, rounds: int
) -> None:
    monkeypatch.setattr(speed, "LEAST", least)
    monkeypatch.setattr(speed, "SHARE", 0.0)
    found = compare_bundles([folder / "one", folder / "two"], folder / "photos", page=folder / f"page{side}")
    assert [(s.part, s.bundle) for s in found.speeds] == [(p, b) for p in ("encode", "decode") for b in ("one", "two")]
    assert {(s.height, s.width, s.rounds) for s in found.speeds} == {(side, side, rounds)}
    what = f"one picture of {side}x{side} pixels, " + ("the median of 5 rounds" if rounds > 1 else "in one round")
    told = summary_lines(found)[-2:]
    assert [line.split(":")[0] for line in told] == [f"To encode {what}", f"To decode {what}"]
    assert all(len(re.findall(r" ms \(\d+ to \d+\)", line)) == (2 if rounds > 1 else 0) for line in told)
    assert f"Times are of {what}." in (folder / f"page{side}" / "index.html").read_text()


def test_what_fails_at_half_the_side_is_timed_at_the_whole() -> None:
    class Picky(Codec):
        backend = "an engine of one size"

        def encode(self, image: np.ndarray) -> np.ndarray:
            if image.shape[1] != 512:
                raise SizeError("no engine takes it")
            return super().encode(image)

    photo = skimage.data.astronaut()
    found = speed.time_vaes({"picky": Picky()}, [photo], 4, 3, 0.0, silent)
    assert [(s.part, s.height, s.problem, s.rounds > 0) for s in found] == [
        ("encode", 512, None, True),
        ("decode", 512, None, True),
    ]


def test_timing_can_be_left_out(vaedeploy: Callable[..., Any], folder: Path) -> None:
    arguments = ("compare", folder / "one", folder / "two", "--images", folder / "photos", "--no-timing")
    ended = vaedeploy(*arguments, "-o", folder / "untimed")
    assert ended.code == 0
    assert "time to" not in ended.out
    assert "To encode" not in ended.out
    assert "Timing" not in ended.err
    text = (folder / "untimed" / "index.html").read_text()
    assert "Medians over all photographs" in text
    assert "Time to encode" not in text
    assert json.loads(vaedeploy(*arguments, "--json").out)["speeds"] == []


def test_the_command_prints_words_or_one_json_document(vaedeploy: Callable[..., Any], folder: Path) -> None:
    arguments = ("compare", folder / "one", folder / "two", "--images", folder / "photos")
    ended = vaedeploy(*arguments)
    assert ended.code == 0
    assert re.split("  +", ended.out.splitlines()[0]) == [
        *("VAE", "PSNR, dB", "colour difference, CIEDE2000", "colour strength, %", "contrast, %"),
        *("fine detail, %", "time to encode, ms", "time to decode, ms"),
    ]
    assert "one into two: " in ended.out
    told = json.loads(vaedeploy(*arguments, "--json").out)
    assert told["bundles"] == ["one", "two"]
    assert len(told["reconstructions"]) == 4


def test_bundles_of_one_name_are_called_by_their_paths(folder: Path, tmp_path: Path) -> None:
    other = tiny_bundle(tmp_path / "one", seed=2)
    found = compare_bundles([folder / "one", other.path], folder / "photos")
    assert found.bundles == (str(folder / "one"), str(other.path))


def test_photographs_of_a_list_are_compared(folder: Path) -> None:
    chosen = sorted((folder / "photos").iterdir())[1:]
    found = compare_bundles([folder / "one", folder / "two"], chosen)
    assert {row.picture for row in found.reconstructions} == {path.stem for path in chosen}


def test_what_cannot_be_compared_is_told(folder: Path, tmp_path: Path) -> None:
    one, two, photos = folder / "one", folder / "two", folder / "photos"
    small = tmp_path / "small"
    small.mkdir()
    Image.fromarray(np.zeros((35, 31, 3), np.uint8)).save(small / "dot.png")
    for bundles, images, error, message in (
        ([one], photos, InputError, "1 bundle was given; give two or more to compare. For one, there is look"),
        (
            [one, folder / "photos" / ".." / "one"],
            photos,
            InputError,
            f"bundle {one} was given twice; give",
        ),
        ([one, two], tmp_path / "none", ImageError, f"there is no file or folder {tmp_path / 'none'}. Give"),
        (
            [one, two],
            small,
            ImageError,
            f"{small / 'dot.png'} is 35x31 (height x width); to be measured, a picture",
        ),
        ([one, two], [], InputError, "no image was given; give files, or folders of them"),
        ([one, two], [np.zeros((32, 32, 3), np.uint8)], InputError, "image 0 is of type ndarray; give the path of a"),
        ([one, two], [photos, small / "none.png"], ImageError, f"there is no picture {small / 'none.png'}"),
        ([one, two], [small, small / "dot.png"], InputError, f"picture {small / 'dot.png'} was given twice"),
    ):
        with pytest.raises(error) as raised:
            compare_bundles(bundles, images)
        assert str(raised.value).startswith(message)


@pytest.fixture(scope="module")
def see_through(folder: Path) -> Path:
    """Bundles of RGBA images, and a photograph with opacity."""
    for seed in (0, 1):
        tiny_bundle(folder / f"rgba{seed}", seed=seed, image_channels=4)
    (folder / "clear").mkdir()
    photo = skimage.data.astronaut()[:64, :96]
    write_image(folder / "clear" / "a.png", with_opacity(photo, verification_mask(64, 96)))
    return folder


def test_bundles_of_images_with_opacity_are_compared(see_through: Path) -> None:
    bundles = [see_through / "rgba0", see_through / "rgba1"]
    found = compare_bundles(bundles, see_through / "clear", page=see_through / "clear page")
    assert found.flattened == ()
    assert all(r.quality.opacity.mean_abs > 0 for r in found.reconstructions)
    assert [s.opacity for s in found.summaries] == [r.quality.opacity.mean_abs for r in found.reconstructions]
    assert "Opacity is" in " ".join(summary_lines(found))
    assert "Squares show through" in (see_through / "clear page" / "index.html").read_text()
    with VAE(bundles[0]) as vae:
        photo = read_image(see_through / "clear" / "a.png", opacity=True)
        expected = measure_quality(photo, vae.decode(vae.encode(photo), output="float")[0], factor=4)
    assert found.reconstructions[0].quality == expected
    opaque = compare_bundles(bundles, see_through / "photos")
    assert all(r.quality.opacity is not None for r in opaque.reconstructions)


def test_images_with_opacity_are_compared_with_others_in_front_of_white(see_through: Path) -> None:
    bundles = [see_through / "one", see_through / "rgba0"]
    found = compare_bundles(bundles, see_through / "photos", page=see_through / "mixed page")
    assert found.flattened == ("rgba0",)
    assert "RGBA images were compared with RGB images" in (see_through / "mixed page" / "index.html").read_text()
    assert {(s.encoder, s.decoder) for s in found.swaps} >= {("one", "rgba0"), ("rgba0", "one")}
    assert all(r.quality.opacity is None for r in found.reconstructions)
    assert any(line.startswith("RGBA images were compared with RGB images: rgba0 enc") for line in summary_lines(found))
    photo = crop_middle(read_image(see_through / "photos" / "astronaut.png"), 4, 1024)
    with VAE(bundles[1]) as vae:
        seen = on_white(vae.decode(vae.encode(with_opacity(photo)))[0])
        told = OnWhite(vae).decode(vae.encode(with_opacity(photo)), output="float")[0]
    row = next(r for r in found.reconstructions if r.bundle == "rgba0")
    assert row.quality.error.psnr == pytest.approx(measure_quality(photo, seen).error.psnr, abs=0.2)
    assert np.abs(to_levels(told[None])[0].astype(int) - seen).max() <= 2
    with pytest.raises(ImageError, match=r"a\.png has transparent pixels"):
        compare_bundles(bundles, see_through / "clear")
    grey = compare_bundles(bundles, see_through / "clear", background=(128, 128, 128))
    assert [(row.bundle, row.quality.opacity) for row in grey.reconstructions] == [("one", None), ("rgba0", None)]


def test_one_photograph_that_cannot_be_compared_ends_nothing(
    vaedeploy: Callable[..., Any], folder: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(folder / "photos", photos)
    (photos / "broken.png").write_bytes(b"no picture")
    arguments = ("compare", folder / "one", folder / "two", "--images", photos, "-o", tmp_path / "page")
    ended = vaedeploy(*arguments)
    assert ended.code == 2
    assert ended.out.startswith("VAE ")
    assert (
        f"Error: 1 of 3 pictures failed; the result is of the others:\n  {photos / 'broken.png'} is not an image"
        in ended.err
    )
    text = (tmp_path / "page" / "index.html").read_text()
    assert text.index("1 of 3 pictures is not shown: ") < text.index("</header>")
    told = json.loads(vaedeploy(*arguments[:-2], "--json").out)
    assert len(told["reconstructions"]) == 4
    assert told["failures"][0].startswith(f"{photos / 'broken.png'} is not an image")


def test_a_change_of_colours_leaves_opacity(crops: list[np.ndarray]) -> None:
    pictures = [with_opacity(crop, verification_mask(*crop.shape[:2])) for crop in crops]
    darker = [with_opacity(crop // 2, 77) for crop in crops]
    for mapped, crop in zip(_map_colors(darker, pictures), crops, strict=True):
        assert (mapped[..., 3] == 77).all()
        assert np.abs(mapped[..., :3].astype(int) - crop).max() <= 3


# ------------------------------------------------------------------------------------------------- real VAEs


@dataclass(frozen=True)
class Rescaled:
    """A VAE under another latent contract: half of its scale."""

    vae: VAE

    @property
    def latent(self) -> LatentSpec:
        return msgspec.structs.replace(self.vae.latent, scale=0.5 * self.vae.latent.scale)

    def encode(self, image: np.ndarray) -> np.ndarray:
        return self.vae.encode(image) * np.float32(0.5)

    def decode(self, latent: np.ndarray) -> np.ndarray:
        return self.vae.decode(latent * np.float32(2))


@pytest.mark.slow
def test_the_demo_vaes_are_compatible_and_a_wrong_scale_is_estimated(
    demo_bundle: Bundle, demo_mse_bundle: Bundle
) -> None:
    with warnings.catch_warnings(action="ignore"):  # the second was not verified
        demo, mse = VAE(demo_bundle.path), VAE(demo_mse_bundle.path)
    with demo, mse:
        crop = crop_middle(skimage.data.astronaut(), 8, 256)
        found, _ = swap_matrix({"demo": demo, "demo-mse": mse, "scaled": Rescaled(demo)}, [crop])
    told = {(swap.encoder, swap.decoder): swap for swap in found}
    for pair in (("demo", "demo-mse"), ("demo-mse", "demo")):
        assert (told[pair].verdict, told[pair].cause) == ("compatible", None)
        assert "colour differs by" in told[pair].words
    for pair, scale, fault in (
        (("demo", "scaled"), 0.5, "over-saturated"),
        (("scaled", "demo"), 2.0, "washed out"),
        (("demo-mse", "scaled"), 0.5, "over-saturated"),
    ):
        assert (told[pair].verdict, told[pair].cause) == ("compatible with a shift", "wrong scale")
        assert told[pair].transform.scale == pytest.approx(scale, rel=0.05)
        assert fault in {finding.name for finding in told[pair].findings}


def test_opened_bundles_can_be_compared(tmp_path: Path) -> None:
    bundles = [tiny_bundle(tmp_path / name, seed=seed) for seed, name in enumerate(("a", "b"))]
    (tmp_path / "photos").mkdir()
    write_image(tmp_path / "photos" / "a.png", np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    assert compare_bundles(bundles, tmp_path / "photos").bundles == ("a", "b")
