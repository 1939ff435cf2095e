"""The page as a file: what is in it, how large it is, and what lies beside it."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
import skimage.data
from faults import blur
from pages import BLURRED, document, picture, scene
from PIL import Image
from places import KODAK
from tiny_bundle import tiny_bundle

from vaedeploy.errors import OutputError
from vaedeploy.images.files import read_image
from vaedeploy.images.opacity import on_checkerboard, verification_mask, with_opacity
from vaedeploy.images.photos import SAMPLES
from vaedeploy.page import check_folder, write, write_page
from vaedeploy.page.charts import HEIGHT, WIDTH, spectrum_chart, tone_chart
from vaedeploy.page.images import HEAT, at_most, error_levels, heat_map, lossless, worst_area
from vaedeploy.page.measures import DETAIL
from vaedeploy.quality import find_faults, measure_quality
from vaedeploy.quality.candidates import Candidate, Picture


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(document(), tmp_path_factory.mktemp("report") / "new" / "folder")


def test_the_page_is_one_file_that_asks_for_nothing(page: Path) -> None:
    text = page.read_text()
    assert [path.name for path in page.parent.iterdir()] == ["index.html"]
    assert set(re.findall(r'(?:src|href)="([^"]{5})', text)) == {"data:", "#pict"}
    assert "http:" not in text.replace("http-equiv", "")
    assert "https:" not in text


def test_the_verdict_comes_first_then_a_picture_then_words_and_numbers(page: Path) -> None:
    text = page.read_text()
    order = ["first is truest &amp; best", "Nothing here was measured.", ">one<", "<li>Said later.", ">Speed<"]
    order += [">Picture by picture<", ">two<"]
    assert sorted(order, key=text.index) == order
    assert "first and second &lt;on&gt; paper" in text
    assert text.count(f'<span class="finding">{BLURRED.name}</span> {BLURRED.words}') == 2
    assert text.count("no fault is seen.") == 2


def test_sorting_has_numbers_and_not_their_text(page: Path) -> None:
    assert re.findall(r'data-value="([\d.]+)">(\d+ ms)<', page.read_text()) == [("10.0", "10 ms"), ("9.0", "9 ms")]


def test_an_identical_picture_has_no_number_that_is_none(tmp_path: Path) -> None:
    pixels = scene()
    same = Picture("same", pixels, (Candidate("copy", pixels, measure_quality(pixels, pixels), ()),))
    text = write_page(document(same), tmp_path).read_text()
    assert 'data-value="Infinity">identical<' in text
    assert "None" not in text
    assert "copy differs from the photograph in no pixel" in text
    assert "Where copy is worst" not in text
    assert "nan" not in re.sub(r'"data:[^"]*"', "", text)


@pytest.mark.parametrize("name", SAMPLES)
def test_pictures_of_the_slider_are_near(name: str) -> None:
    photo = getattr(skimage.data, name)()
    error = np.asarray(opened(at_most(photo, 768)).convert("RGB")).astype(float) - photo
    assert 0 < np.sqrt(np.mean(error**2)) < 4


def test_the_worst_area_is_exact(page: Path) -> None:
    uris = re.findall(r'<img src="(data:image/png[^"]+)" alt="one([^"]*)"', page.read_text())
    told = {alt: np.asarray(opened(uri).convert("RGB")) for uri, alt in uris}
    reference = scene()
    candidate = picture("one", reference).candidates[0]
    area = worst_area(error_levels(reference, candidate.pixels))
    assert (told[", where first is worst: photograph"] == area.of(reference)).all()
    assert (told[", where first is worst: first"] == area.of(candidate.pixels)).all()


def test_the_worst_area_is_where_the_error_is() -> None:
    error = np.zeros((200, 300), np.uint8)
    error[120:184, 230:294] = 9
    area = worst_area(error)
    assert (area.top, area.left, area.side, area.levels) == (120, 230, 64, 9.0)
    error[:64, :64] = 10
    assert (worst_area(error).top, worst_area(error).left) == (0, 0)
    assert worst_area(np.zeros((40, 90), np.uint8)).side == 40


def test_the_heat_map_has_the_colour_of_each_step_and_keeps_the_worst_of_shared_pixels() -> None:
    levels = np.array([0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 255], np.uint8)
    (row,) = np.asarray(opened(heat_map(levels[None], 384)).convert("RGB"))
    steps = (0, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7)
    assert [f"#{bytes(color).hex()}" for color in row] == [HEAT[step][1] for step in steps]
    large = np.zeros((771, 771), np.uint8)
    large[770, 770] = 255
    assert opened(heat_map(large, 384)).size == (257, 257)
    assert np.asarray(opened(heat_map(large, 384)))[256, 256] == 7


def test_lossless_is_lossless_and_large_pictures_are_shrunk() -> None:
    pixels = scene(50, 70)
    assert (np.asarray(opened(lossless(pixels))) == pixels).all()
    assert opened(at_most(pixels, 35)).size == (35, 25)
    assert opened(at_most(pixels, 70)).size == (70, 50)


def test_a_page_that_cannot_be_small_enough_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_page(document(picture("a", scene(40, 40), names=("x",))), tmp_path / "small")
    assert not caplog.messages
    monkeypatch.setattr(write, "MOST_BYTES", 1000)
    page = write_page(document(picture("a", scene(40, 40), names=("x",))), tmp_path / "page")
    size = f"{len(page.read_bytes()) / 1e6:.1f}"
    assert caplog.messages == [f"the page in {tmp_path / 'page'} has {size} MB, more than the 0 that it should have"]


def test_the_page_gives_units_in_words(tmp_path: Path) -> None:
    page = write_page(document(picture("a", scene(40, 40), names=("x",))), tmp_path).read_text()
    assert " Unit: " in page
    assert not re.search(r"\. In (of|%)", page)


def test_long_names_make_no_name_of_a_file_that_no_disk_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "LAYOUTS", ((32, 1),))
    write_page(document(picture("p" * 240, scene(40, 40), names=("v" * 100,))), tmp_path)
    assert len(list((tmp_path / "pictures").iterdir())) == 2


def test_a_page_that_would_be_too_large_shows_shrunk_pictures_and_links_full_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = document(picture("a/b ü", scene(300, 420), names=("x y", "x-y")))
    whole = write_page(made, tmp_path / "whole")
    assert not (tmp_path / "whole" / "pictures").exists()
    monkeypatch.setattr(write, "MOST_BYTES", len(whole.read_bytes()) - 1)
    page = write_page(made, tmp_path / "shrunk")
    assert len(page.read_bytes()) <= write.MOST_BYTES
    links = re.findall(r'<a href="(pictures/[^"]+)">([^<]+)</a>', page.read_text())
    assert links == [
        ("pictures/001-0-a-b-photograph.png", "photograph"),
        ("pictures/001-1-a-b-x-y.png", "x y"),
        ("pictures/001-2-a-b-x-y.png", "x-y"),
    ]
    (only,) = made.pictures
    for (file, _), pixels in zip(links, (only.reference, *(c.pixels for c in only.candidates)), strict=True):
        assert (read_image(page.parent / file) == pixels).all()


def test_of_very_many_pictures_the_furthest_are_shown_and_the_others_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "LAYOUTS", ((768, 2),))
    pixels = scene()
    same = Picture("same", pixels, (Candidate("copy", pixels, measure_quality(pixels, pixels), ()),))
    made = document(picture("one", pixels), same, picture("three", scene(seed=3)))
    page = write_page(made, tmp_path)
    text = page.read_text()
    assert re.findall(r'<div class="slider" data-picture="(\w+)"', text) == ["one", "three"]
    links = re.findall(r'<a href="(pictures/002[^"]+)">([^<]+)</a>', text)
    assert links == [("pictures/002-0-same-photograph.png", "photograph"), ("pictures/002-1-same-copy.png", "copy")]
    assert (read_image(tmp_path / links[1][0]) == pixels).all()


def test_charts_stay_within_their_frames_however_far_a_picture_is_off() -> None:
    reference = scene()
    for wrong in (
        np.zeros_like(reference),
        255 - reference,
        np.random.default_rng(0).integers(0, 256, reference.shape, np.uint8),
    ):
        candidate = Candidate("wrong", wrong, measure_quality(reference, wrong), ())
        for chart in (spectrum_chart([candidate]), tone_chart([candidate])):
            (line,) = chart.lines
            assert all(0 <= dot.x <= WIDTH and 0 <= dot.y <= HEIGHT for dot in line.dots)
            assert len({tick.text for tick in chart.y_ticks}) >= 3


def test_the_charts_tell_what_was_measured() -> None:
    candidate = picture("one", scene()).candidates[0]
    (line,) = spectrum_chart([candidate]).lines
    assert [dot.words for dot in line.dots][:2] == [
        f"2 to 4 pixels: {candidate.quality.detail.gains[0]:.0%}",
        f"4 to 8 pixels: {candidate.quality.detail.gains[1]:.0%}",
    ]
    (line,) = tone_chart([candidate]).lines
    assert len(line.dots) == len(candidate.quality.contrast.tone_curve)


def test_fine_detail_is_one_number_in_words_table_and_chart() -> None:
    reference = scene()
    blurred = blur(reference, 1.0)
    quality = measure_quality(reference, blurred)
    candidate = Candidate("blurred", blurred, quality, find_faults(quality))
    fine = f"{quality.detail.fine:.0%}"
    (sentence,) = [finding.words for finding in candidate.findings if finding.name == "blurred"]
    assert f" {fine} of the fine detail" in sentence
    assert f"{DETAIL.text(quality)}%" == fine
    chart = spectrum_chart([candidate])
    (line,) = chart.lines
    assert line.figure == f"{fine} of the fine detail"
    marked = [dot for dot in line.dots if chart.mark.start < dot.x < chart.mark.end]
    shown = [float(dot.words.split(": ")[1].rstrip("%")) for dot in marked]
    assert [dot.words.split(":")[0] for dot in marked] == ["2 to 4 pixels", "4 to 8 pixels", "8 to 16 pixels"]
    assert np.mean(shown) == pytest.approx(100 * quality.detail.fine, abs=1)


def test_a_place_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"^cannot write a report to .*file: a file is where a folder is needed"):
        write_page(document(), tmp_path / "file")


def test_a_page_of_another_program_is_not_replaced_and_one_of_ours_is(tmp_path: Path) -> None:
    write_page(document(), tmp_path / "ours")
    check_folder(tmp_path / "ours")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "index.html").write_text("<!doctype html>\n<title>My pictures</title>\n")
    with pytest.raises(OutputError, match=r"theirs has an index\.html that vaedeploy did not write\. Choose another"):
        check_folder(tmp_path / "theirs")


def test_a_bundle_gets_no_page(tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "one")
    with pytest.raises(OutputError, match=r"one is a bundle, and another file would damage it\. Choose another folder"):
        check_folder(tmp_path / "one")


def test_a_folder_is_not_given_the_name_of_a_page(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"look\.html is the name of a page, and a folder is needed, in which index"):
        check_folder(tmp_path / "look.html")


@pytest.mark.slow
@pytest.mark.skipif(not KODAK.is_dir(), reason="the photographs of ../shared/images/kodak are not here")
def test_eight_photographs_of_two_candidates_stay_under_five_megabytes_at_full_size(tmp_path: Path) -> None:
    photos = {path.stem: read_image(path) for path in sorted(KODAK.glob("*.png"))[:8]}
    page = write_page(document(*(picture(name, photo) for name, photo in photos.items())), tmp_path)
    assert len(page.read_bytes()) < 5_000_000
    assert "Full size:" not in page.read_text()


def test_documents_compare_by_identity_since_they_hold_arrays() -> None:
    made = document()
    assert made == made
    assert made != msgspec.structs.replace(made)


def test_a_folder_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    check_folder(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    check_folder(tmp_path / "there")
    assert list(tmp_path.rglob("*")) == [tmp_path / "there"]
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        with pytest.raises(OutputError, match=r"^cannot write a report to "):
            check_folder(tmp_path / place)


def test_pictures_with_opacity_are_shown_on_a_checkerboard_and_written_as_they_are(tmp_path: Path) -> None:
    reference = with_opacity(scene(96, 1100), verification_mask(96, 1100))
    wrong = reference.copy()
    wrong[10:40, 700:740, 3] = 0
    candidate = Candidate("wrong", wrong, measure_quality(reference, wrong), ())
    page = write_page(document(Picture("one", reference, (candidate,))), tmp_path)
    text = page.read_text()
    shown = {alt: opened(uri) for uri, alt in re.findall(r'<img src="(data:image/png[^"]+)" alt="one([^"]*)"', text)}
    area = worst_area(error_levels(reference, wrong))
    for name, pixels in (("photograph", reference), ("wrong", wrong)):
        crop = shown[f", where wrong is worst: {name}"]
        assert crop.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(crop), on_checkerboard(area.of(pixels)))
    assert opened(at_most(reference, 768)).mode == "RGB"
    for file in page.parent.glob("pictures/*.png"):
        wanted = wrong if "wrong" in file.name else reference
        np.testing.assert_array_equal(read_image(file, opacity=True), wanted)
    assert len(list(page.parent.glob("pictures/*.png"))) == 2
    assert "Squares show through" in text
    assert text.count(">Opacity<") >= 1


def test_errors_of_opacity_count_and_colours_that_nobody_sees_do_not() -> None:
    reference = with_opacity(np.full((4, 4, 3), 255, np.uint8), 100)
    other = reference.copy()
    other[1, 2, 3] = 40  # white in front of white
    assert error_levels(reference, other)[1, 2] == error_levels(reference, other).max() == 60
    clear = with_opacity(np.zeros((4, 4, 3), np.uint8), 0)
    assert error_levels(clear, with_opacity(np.full((4, 4, 3), 200, np.uint8), 0)).max() == 0


def test_a_page_without_opacity_says_nothing_of_it(page: Path) -> None:
    text = page.read_text()
    assert "Squares show through" not in text
    assert "pacity<" not in text
