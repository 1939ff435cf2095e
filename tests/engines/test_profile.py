"""Profiles of GPU kinds: those of the package are sound, and a contradiction is refused with its reason."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from shutil import which

import msgspec
import pytest
from engine_files import write_profile
from hypothesis import given
from hypothesis import strategies as st
from watched import memory_limit, no_hang

from vaedeploy.engines.profile import CAPABILITIES, get_profile, init_profile, profiles, read_profile
from vaedeploy.errors import ProfileError
from vaedeploy.system.gpu import cuda_devices, find_gpu
from vaedeploy.values.shapes import CORNERS, ShapeSet

KINDS = {
    "t4": "7.5",
    "rtx2080ti": "7.5",
    "sm75": "7.5",
    "a100": "8.0",
    "sm80": "8.0",
    "a10": "8.6",
    "rtx3060": "8.6",
    "rtx3090": "8.6",
    "a40": "8.6",
    "a6000": "8.6",
    "sm86": "8.6",
    "orin": "8.7",
    "l4": "8.9",
    "l40": "8.9",
    "l40s": "8.9",
    "rtx4060": "8.9",
    "rtx4070": "8.9",
    "rtx4080": "8.9",
    "rtx4090": "8.9",
    "sm89": "8.9",
    "h100": "9.0",
    "h200": "9.0",
    "b200": "10.0",
    "rtx5070": "12.0",
    "rtx5080": "12.0",
    "rtx5090": "12.0",
    "rtxpro6000": "12.0",
    "sm120": "12.0",
    "gb10": "12.1",
    "sm121": "12.1",
}


@pytest.fixture(autouse=True)
def _no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VAEDEPLOY_PROFILES", raising=False)


def test_the_kinds_that_the_package_carries() -> None:
    assert {name: p.compute_capability for name, p in profiles().items()} == KINDS


@pytest.mark.parametrize("name", KINDS)
def test_a_carried_profile_suits_every_vae_up_to_factor_64(name: str) -> None:
    profile = get_profile(name)
    for factor in (8, 16, 32, 64):
        assert profile.of_factor(factor) == (profile, [])
    assert profile.compute_capability in CAPABILITIES[profile.backend]
    assert profile.shapes == get_profile("rtx4060" if profile.memory_gib < 11 else "t4").shapes


def test_a_capability_has_a_profile_where_one_engine_runs_on_all_gpus_of_it() -> None:
    of_capability = {name: p for name, p in profiles().items() if name.startswith("sm")}
    assert {p.compute_capability for p in of_capability.values()} == set(CAPABILITIES["tensorrt-rtx"])
    for name, profile in of_capability.items():
        assert name == f"sm{profile.compute_capability.replace('.', '')}"
        assert (profile.backend, profile.memory_gib) == ("tensorrt-rtx", 11)


def test_a_carried_profile_for_a_vae_of_factor_128() -> None:
    """It takes every size that such a VAE can make and that the profile holds."""
    profile = get_profile("rtx4090")
    fitted, left_out = profile.of_factor(128)
    assert left_out == ["1216x832", "832x1216", "768x1344"]
    assert list(fitted.shapes) == [name for name in profile.shapes if name not in left_out]
    assert fitted.shapes["any"] == ShapeSet((128, 768, 1024), (128, 768, 1024), (1, 1, 4))
    assert fitted.shapes["wide"] == ShapeSet((128, 768, 1280), (128, 1280, 2048))
    for name, shape in fitted.shapes.items():
        corners = [shape.at(corner)[1:] for corner in ("min", "opt", "max")]
        assert all(side % 128 == 0 for corner in corners for side in corner)
        for height, width in itertools.product(range(128, 2049, 128), repeat=2):
            assert shape.holds(1, height, width) == profile.shapes[name].holds(1, height, width)


ASKED_FOR = [(512, 512), (768, 768), (1024, 1024), (1216, 832), (832, 1216), (768, 1344)]
"""Height and width of the sizes that have lines of their own."""

RANGES = {"any", "large", "wide", "tall"}

TWO_MEGAPIXELS = 1024 * 2048


def holding(height: int, width: int, batch: int = 1) -> list[str]:
    """The names of the shipped lines that hold a size, the tightest first."""
    shapes = get_profile("rtx4090").shapes
    held = [name for name, shape in shapes.items() if shape.holds(batch, height, width)]
    return sorted(held, key=lambda name: shapes[name].extent)


@pytest.mark.parametrize(("height", "width"), ASKED_FOR)
def test_a_size_that_is_asked_for_most_has_a_line_of_its_own(height: int, width: int) -> None:
    assert get_profile("rtx4090").shapes[holding(height, width)[0]] == ShapeSet(height=height, width=width)


def test_a_range_holds_every_aspect_ratio_up_to_2_of_two_megapixels() -> None:
    sides = range(64, 2049, 32)
    sizes = [(h, w) for h in sides for w in sides if h * w <= TWO_MEGAPIXELS and max(h, w) <= 2 * min(h, w)]
    assert {(640, 1152), (928, 1664), (1024, 2048), (1088, 1920), (1248, 1664), (1440, 1440)} < set(sizes)
    assert [size for size in [*sizes, (1328, 1328), (640, 1536), (1536, 640)] if not set(holding(*size)) & RANGES] == []


def test_four_images_of_a_megapixel_are_held() -> None:
    assert holding(1024, 1024, batch=4) == holding(512, 768, batch=3) == ["any"]


def test_a_profile_is_read() -> None:
    profile = get_profile("rtx4090")
    assert (profile.gpu, profile.memory_gib, profile.cuda_graphs) == ("NVIDIA GeForce RTX 4090", 24, True)
    assert profile.shapes["512"] == ShapeSet(height=512, width=512)
    assert str(profile.shapes["any"]) == "1-4x64-1024x64-1024"
    assert profile.options.of("tensorrt-rtx") == {"tf32": False}
    assert profile.options.of("tensorrt") == {"tf32": False, "hardware_compatibility": "none"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"colour": '"red"'}, "Object contains unknown field `colour`"),
        ({"name": '"mine"'}, "it has a field name; a profile is named by its file"),
        ({"memory_gib": None}, "Object missing required field `memory_gib`"),
        ({"memory_gib": "0"}, "Expected `float` > 0.0 - at `$.memory_gib`"),
        ({"compute_capability": '"8"'}, "Expected `str` matching regex '^[1-9][0-9]*\\\\.[0-9]\\\\Z' - at"),
        ({"compute_capability": '"8.9\\n"'}, "Expected `str` matching regex"),
        ({"memory_gib": "inf"}, "Expected `float` <= 65536"),
        ({"shapes": "{ a = { height = 2147483648, width = 8 } }"}, "1 <= min <= opt <= max < 2**31"),
        ({"precision": '"int8"'}, "Invalid enum value 'int8' - at `$.precision`"),
        (
            {"compute_capability": '"7.5"', "precision": '"bf16"'},
            "precision is bf16, and compute capability 7.5 has no bfloat16; it must be fp16 or fp32",
        ),
        (
            {"compute_capability": '"9.0"'},
            "backend tensorrt-rtx does not build for compute capability 9.0, only for 7.5, 8.0, 8.6, 8.9, 12.0, 12.1; "
            "here it must be tensorrt",
        ),
        ({"compute_capability": '"6.1"', "backend": '"tensorrt"'}, "here it must be another GPU"),
        ({"shapes": "{}"}, "Expected `object` of length >= 1 - at `$.shapes`"),
        (
            {"shapes": "{ a = { height = [512, 256, 1024], width = 8 } }"},
            "height is [512, 256, 1024]; it must be [min, opt, max] with 1 <= min <= opt <= max < 2**31 - at `$.shapes",
        ),
        ({"shapes": "{ a = { batch = 0, height = 8, width = 8 } }"}, "batch is [0, 0, 0]; it must be [min, opt, max]"),
        ({"shapes": "{ a = { height = 8 } }"}, "Object missing required field `width` - at `$.shapes[...]`"),
        ({"shapes": "{ a = { height = [8, 8], width = 8 } }"}, "Expected `array` of length 3, got 2"),
        ({"options": "{ fp16 = true }"}, "Object contains unknown field `fp16` - at `$.options`"),
        ({"options": "{ optimization_level = 6 }"}, "Expected `int` <= 5 - at `$.options.optimization_level`"),
        ({"gpu": "unquoted"}, "Invalid value"),
    ],
)
def test_a_contradiction_is_refused(tmp_path: Path, changes: dict[str, str | None], reason: str) -> None:
    path = write_profile(tmp_path, **changes)
    with pytest.raises(ProfileError) as refused:
        get_profile("mine", tmp_path)
    assert str(refused.value).startswith("profile mine cannot be used: ")
    assert reason in str(refused.value)
    assert str(refused.value).endswith(f"Its file: {path}")


@pytest.mark.parametrize("endless", ["pipe", "device", "1 TB"])
def test_what_never_ends_is_refused(tmp_path: Path, endless: str) -> None:
    file = tmp_path / "mine.toml"
    if endless == "pipe":
        os.mkfifo(file)
    elif endless == "device":
        file.symlink_to("/dev/zero")
    else:
        file.touch()
        os.truncate(file, 1 << 40)
    why = "it has more than 1,000,000 bytes" if endless == "1 TB" else "it is not a regular file"
    with no_hang(), memory_limit(1 << 30), pytest.raises(ProfileError, match=f"^profile mine cannot be used: {why}"):
        read_profile(file)


def test_nesting_that_is_too_deep_is_told(tmp_path: Path) -> None:
    write_profile(tmp_path, shapes="[" * 50_000 + "]" * 50_000)
    with pytest.raises(ProfileError, match=r"^profile mine cannot be used: maximum recursion depth exceeded"):
        get_profile("mine", tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="no file can have that name there")
def test_a_name_that_cannot_be_a_folder_in_a_bundle(tmp_path: Path) -> None:
    write_profile(tmp_path, "a:b")
    with pytest.raises(
        ProfileError, match=r"^profile a:b cannot be used: its file's name names a folder in bundles, and may contain"
    ):
        get_profile("a:b", tmp_path)


def test_files_that_an_editor_or_a_system_leaves_are_no_profiles(tmp_path: Path) -> None:
    write_profile(tmp_path, "._mine")
    assert set(profiles(tmp_path)) == set(KINDS)


def test_sizes_off_the_factor(tmp_path: Path) -> None:
    write_profile(tmp_path, shapes="{ odd = { height = 512, width = [64, 520, 1000] } }")
    profile = get_profile("mine", tmp_path)
    assert profile.of_factor(8) == (profile, [])
    fitted, left_out = profile.of_factor(32)
    assert (fitted.shapes, left_out) == ({"odd": ShapeSet(512, (64, 512, 992))}, [])
    with pytest.raises(ProfileError) as refused:
        profile.of_factor(1024)
    assert str(refused.value) == (
        "profile mine, shapes.odd: height 512 is not a multiple of 1024, as this VAE needs; the nearest are 1024"
    )


@pytest.mark.parametrize(
    ("ends", "narrowed"),
    [
        ((64, 520, 1000), (64, 512, 992)),
        ((33, 40, 100), (64, 64, 96)),  # what was tuned for is below the least
        ((32, 32, 32), (32, 32, 32)),
        ((33, 40, 63), None),
    ],
)
def test_ranges_end_at_multiples(ends: tuple[int, int, int], narrowed: tuple[int, int, int] | None) -> None:
    shape = ShapeSet(ends, 64, (1, 2, 4))
    assert shape.of_factor(32) == (None if narrowed is None else ShapeSet(narrowed, 64, (1, 2, 4)))
    assert shape.of_factor(1) == shape


def test_an_unknown_name_and_the_nearest() -> None:
    with pytest.raises(ProfileError) as refused:
        get_profile("rtx4091")
    assert str(refused.value) == (
        "no profile is named 'rtx4091'; the nearest are: rtx4090, rtx5090, rtx4080. A GPU without a profile takes that "
        "of its compute capability: sm75, sm80, sm86, sm89, sm120, sm121. To see all 30: vaedeploy profiles. "
        "Your own are looked for in --profiles DIR or VAEDEPLOY_PROFILES; to begin one: "
        "vaedeploy profiles --init rtx4091 --profiles DIR"
    )


def test_the_users_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_profile(tmp_path)
    assert get_profile("mine", tmp_path).gpu == "A GPU"
    monkeypatch.setenv("VAEDEPLOY_PROFILES", str(tmp_path))
    assert set(profiles()) == {*KINDS, "mine"}
    monkeypatch.setenv("VAEDEPLOY_PROFILES", str(tmp_path / "none"))
    with pytest.raises(ProfileError, match=r"the folder of profiles, .*none, is not there"):
        profiles()


def test_a_broken_file_of_the_users_is_no_hindrance_to_others(tmp_path: Path) -> None:
    write_profile(tmp_path, colour="1")
    assert get_profile("t4", tmp_path).name == "t4"


def test_a_users_profile_cannot_shadow_a_carried_one(tmp_path: Path) -> None:
    path = write_profile(tmp_path, "rtx4090")
    with pytest.raises(ProfileError) as refused:
        get_profile("t4", tmp_path)
    assert str(refused.value) == (
        f"{path} has the name of a profile that vaedeploy carries; an engine's folder would not say which was meant. "
        "Rename it, to my-rtx4090.toml for example"
    )


@given(st.lists(st.integers(0, 64), min_size=3, max_size=3))
def test_a_range_is_kept_exactly_if_it_is_one(numbers: list[int]) -> None:
    table = {"height": numbers, "width": 8}
    if 1 <= numbers[0] <= numbers[1] <= numbers[2]:
        shape = msgspec.convert(table, ShapeSet)
        assert [shape.at(corner) for corner in CORNERS] == [(1, n, 8) for n in numbers]
        assert shape.static == (numbers[0] == numbers[2])
        assert msgspec.json.decode(msgspec.json.encode(shape), type=ShapeSet) == shape
    else:
        with pytest.raises(msgspec.ValidationError, match="it must be"):
            msgspec.convert(table, ShapeSet)


# ---------------------------------------------------------------------------------------------------------------- init


DRIVER = """
#include <string.h>
int cuInit(unsigned flags) {{ return 0; }}
int cuDeviceGetCount(int *count) {{ *count = 1; return 0; }}
int cuDeviceGet(int *device, int ordinal) {{ *device = 40 + ordinal; return 0; }}
int cuDeviceGetName(char *name, int length, int device) {{ strncpy(name, "{name}", length); return device != 40; }}
int cuDeviceGetAttribute(int *value, int which, int device) {{
    *value = which == 75 ? {major} : which == 76 ? {minor} : -1;
    return device != 40;
}}
int cuDeviceTotalMem_v2(size_t *bytes, int device) {{ *bytes = {memory}ull; return device != 40; }}
"""


def driver(folder: Path, name: str, capability: str, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a library in the CUDA driver's place that tells of one GPU."""
    major, minor = capability.split(".")
    (folder / "driver.c").write_text(DRIVER.format(name=name, major=major, minor=minor, memory=memory))
    library = folder / f"{name.replace(' ', '')}.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, folder / "driver.c"], check=True)
    monkeypatch.setattr("vaedeploy.system.gpu.DRIVER", str(library))


def test_init_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("vaedeploy.system.gpu.DRIVER", "libcuda.so.none")
    monkeypatch.chdir(tmp_path)
    path = init_profile("mine")
    assert path == Path("mine.toml")
    assert "No GPU was found: these are an RTX 4090's." in path.read_text()
    assert caplog.messages == [
        "no GPU was found here, so mine.toml has the values of an RTX 4090. Change gpu, compute_capability, memory_gib "
        "and backend to those of yours"
    ]
    profile = read_profile(path)
    assert (profile.compute_capability, profile.backend, profile.precision) == ("8.9", "tensorrt-rtx", "fp16")
    assert list(profile.shapes) == ["512", "1024", "any", "large", "wide", "tall"]


def test_init_makes_the_folder(tmp_path: Path) -> None:
    path = init_profile("mine", tmp_path / "new" / "folder")
    assert get_profile("mine", path.parent).name == "mine"


@pytest.mark.skipif(which("gcc") is None, reason="the stand-in for the driver is compiled")
def test_init_with_the_gpu_in_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(tmp_path, "NVIDIA H100 80GB HBM3", "9.0", 85_520_809_984, monkeypatch)
    assert (cuda_devices(), find_gpu(1)) == (1, None)
    profile = read_profile(init_profile("mine", tmp_path))
    assert (profile.gpu, profile.compute_capability, profile.memory_gib) == ("NVIDIA H100 80GB HBM3", "9.0", 79.6)
    assert profile.backend == "tensorrt"
    driver(tmp_path, "NVIDIA GeForce GTX 1080", "6.1", 8_589_934_592, monkeypatch)
    with pytest.raises(ProfileError, match=r"^NVIDIA GeForce GTX 1080 has compute capability 6.1; no backend"):
        init_profile("old", tmp_path)
    assert not (tmp_path / "old.toml").exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("rtx4090", r"^profile rtx4090 is there already: .*rtx4090.toml. Choose another name$"),
        ("mine", r"^profile mine is there already: .*mine.toml. Choose another name$"),
        (
            "../mine",
            r"^'../mine' is not a profile name: it may contain only a-z, 0-9, '.', '_' and '-', and must be a ",
        ),
        ("con", "^'con' is not a profile name"),
        ("nul.2", "is not a profile name"),
        ("mine.", "is not a profile name"),
        ("My GPU", "is not a profile name"),
    ],
)
def test_init_refuses(tmp_path: Path, name: str, reason: str) -> None:
    before = write_profile(tmp_path).read_text()
    with pytest.raises(ProfileError, match=reason):
        init_profile(name, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]
    assert (tmp_path / "mine.toml").read_text() == before
