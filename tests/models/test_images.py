"""One opener: whatever holds a picture gives the pixels that transformers makes of it."""

import base64
import io
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_transforms import convert_to_rgb
from transformers.image_utils import load_image

import lvlm_interp as li
from lvlm_interp.errors import DataError, InputError
from lvlm_interp.models.inputs.images import image_size, open_image
from tests.models import processors, zoo


def noise(width, height, mode="RGB", seed=0):
    channels = {"RGB": (3,), "RGBA": (4,), "L": (), "LA": (2,), "CMYK": (4,)}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), np.uint8)
    return Image.fromarray(values, mode)


def saved(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def same(first, second):
    np.testing.assert_array_equal(np.asarray(first), np.asarray(second))


def test_every_door_opens_the_same_pixels(tmp_path):
    picture = noise(12, 7)
    path, data = tmp_path / "a.png", saved(picture)
    path.write_bytes(data)
    array = np.asarray(picture)
    coded = base64.b64encode(data).decode()
    doors = [picture, path, str(path), data, bytearray(data), array, array.astype(np.int64)]
    doors += [array / 255, torch.from_numpy(array.copy()), torch.from_numpy(array.copy()).int()]
    doors += [torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255]
    doors += [np.moveaxis(array, -1, 0), {"bytes": data, "path": None}, {"path": str(path)}]
    doors += [f"data:image/png;base64,{coded}", coded, {"bytes": None, "path": str(path)}]
    doors += [{"type": "image", "url": f"data:image/png;base64,{coded}"}]
    for door in doors:
        opened = open_image(door)
        same(opened, array)
        assert opened.mode == "RGB" and image_size(door) == (12, 7)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "L", "CMYK"])
def test_modes_become_what_transformers_makes_of_them(mode):
    picture = noise(9, 5, mode)
    same(open_image(picture), convert_to_rgb(picture, return_numpy=True))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", zoo.tiered(processors.BUILDERS))
def test_transparency_is_white_for_every_family_as_for_its_own_processor(name):
    clear = noise(48, 48, "RGBA")
    processor = processors.build(name)
    mine = li.wrap(zoo.build(name), processor).prepare([(clear, "is there a dog ?")])
    nested = type(processor).__name__.startswith(("Idefics", "SmolVLM", "Mllama", "Gemma3"))
    theirs = processor.image_processor([[clear]] if nested else [clear], return_tensors="pt")
    torch.testing.assert_close(
        mine["pixel_values"], theirs["pixel_values"].to(mine["pixel_values"].dtype)
    )


def test_palettes_with_a_transparent_colour_are_white_there():
    picture = Image.new("P", (8, 8), 0)
    picture.putpalette([200, 0, 0] + [0] * 765)
    data = saved(picture, transparency=0)
    assert np.asarray(open_image(data)).min() == 255


@pytest.mark.parametrize("tag", range(1, 9))
def test_orientation_tags_turn_the_picture_as_transformers_does(tmp_path, tag):
    picture = Image.new("RGB", (40, 20))
    picture.paste("red", (0, 0, 20, 10))
    exif = picture.getexif()
    exif[0x0112] = tag
    path = tmp_path / "turned.jpg"
    picture.save(path, exif=exif, quality=95)
    same(open_image(path), load_image(str(path)))
    assert image_size(path) == open_image(path).size == ((20, 40) if tag >= 5 else (40, 20))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.full((8, 8), 32768, np.uint16), 128),
        (np.full((8, 8), 1000, np.uint16), 4),
        (np.full((8, 8), 0.5, np.float32), 128),
        (np.full((8, 8), 200.0, np.float32), 200),
        (np.full((8, 8), 40000, np.int32), 156),
        (np.ones((8, 8), bool), 255),
    ],
)
def test_numbers_beyond_eight_bits_keep_their_range(values, expected):
    assert set(np.asarray(open_image(values)).ravel()) == {expected}
    if values.dtype != bool:
        kind = "TIFF" if values.dtype != np.uint16 else "PNG"
        assert set(np.asarray(open_image(saved(Image.fromarray(values), kind))).ravel()) == {
            expected
        }


def cut(kind):
    data = saved(noise(200, 200), kind)
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (cut("JPEG"), "cut short"),
        (cut("PNG"), "cut short"),
        (cut("WEBP"), "cut short|not an image"),
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"hello", "not an image that Pillow can read"),
        (saved(Image.new("1", (20000, 20000))), "too many pixels"),
        ("data:image/png;base64,!!!", "no valid base64"),
        ("data:image/png,abc", "base64,"),
        ("a\0.png", "no image file"),
        ("a" * 5000 + ".png", "no image file"),
        ("https://example.org/a.png", "only on request.*http=True"),
        (np.full((4, 4), -1.0), "fractions from 0 to 1"),
        (np.full((4, 4), np.nan), "fractions from 0 to 1"),
        (np.full((4, 4), 700.0), "from 0 to 1 or 255"),
        (np.zeros((5, 5, 2)), r"got the shape \(5, 5, 2\)"),
        (np.zeros((0, 4)), r"got the shape \(0, 4\)"),
        ({"caption": "x"}, "needs 'bytes', 'path' or 'url'"),
        (5, "got int"),
    ],
)
def test_what_is_no_image_is_refused_in_one_sentence(image, says):
    with pytest.raises(InputError, match=says):
        open_image(image)


def test_files_that_are_no_regular_file_are_not_opened(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for name in ("pipe.png", "link.png", "loop.png"):
        with pytest.raises(InputError, match="no image file"):
            open_image(tmp_path / name)
    with pytest.raises(InputError, match="is a folder"):
        open_image(tmp_path)


def test_an_address_is_fetched_on_request_alone(tmp_path):
    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    (tmp_path / "a.png").write_bytes(saved(noise(6, 4)))
    server = HTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        same(open_image(f"{address}/a.png", http=True), noise(6, 4))
        with pytest.raises(InputError, match="cannot be fetched"):
            open_image(f"{address}/none.png", http=True)
    finally:
        server.shutdown()
        server.server_close()


def test_an_example_of_any_source_runs_and_several_images_stay_several():
    model = li.wrap(zoo.build("llava"), processors.build("llava"))
    array = np.asarray(noise(24, 24))
    one = li.Example("1", array, "is there a dog ?")
    assert torch.equal(
        model.prepare(one)["pixel_values"],
        model.prepare([(noise(24, 24), "is there a dog ?")])["pixel_values"],
    )
    two = li.Example("2", [array, saved(noise(24, 24, seed=1))], "is there a dog ?")
    assert len(two.open_images()) == 2 and model.prepare(two).tokens[0].n_images == 2
    with pytest.raises(DataError, match="has 2 images"):
        two.open_image()


def test_half_characters_in_a_prompt_are_refused():
    model = li.wrap(zoo.build("llava"), processors.build("llava"))
    with pytest.raises(InputError, match="lone surrogate"):
        model.prepare([(noise(24, 24), "is there \ud83d ?")])
