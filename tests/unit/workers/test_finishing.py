import io
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from workers.finishing import finish, identify

FINGERPRINT = "0123456789abcdef" * 4


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))


def test_the_pixels_come_back_as_they_went(picture: Image.Image) -> None:
    with Image.open(io.BytesIO(finish(picture, fingerprint=FINGERPRINT))) as read:
        assert (read.format, read.mode) == ("PNG", "RGB")
        assert read.tobytes() == picture.tobytes()


def test_the_same_picture_gives_the_same_bytes(picture: Image.Image) -> None:
    metadata = {"kontext:seed": "7", "kontext:name": "é服"}
    first = finish(picture, fingerprint=FINGERPRINT, metadata=metadata)
    assert first == finish(picture.copy(), fingerprint=FINGERPRINT, metadata=dict(reversed(metadata.items())))
    assert first != finish(picture, fingerprint=FINGERPRINT[::-1], metadata=metadata)


def test_the_fingerprint_is_read_back_without_the_pixels(picture: Image.Image) -> None:
    png = finish(picture, fingerprint=FINGERPRINT)
    assert identify(png) == FINGERPRINT
    assert identify(png[: png.index(b"IDAT") + 4]) == FINGERPRINT


def test_other_bytes_have_no_fingerprint(picture: Image.Image) -> None:
    plain = io.BytesIO()
    picture.save(plain, "PNG")
    png = finish(picture, fingerprint=FINGERPRINT)
    for data in (b"", b"\x89PNG", b"<html>", plain.getvalue(), png[:40], b"\x89PNG\r\n\x1a\n\xff\xff\xff\xfftEXt"):
        assert identify(data) is None


def test_it_says_that_a_model_made_it(picture: Image.Image) -> None:
    with Image.open(io.BytesIO(finish(picture, fingerprint=FINGERPRINT, metadata={"kontext:seed": "7"}))) as read:
        read.load()
        assert read.info["srgb"] == 0
        assert read.info["Software"] == "Kontext Batch"
        assert read.info["kontext:seed"] == "7"
        packet = str(read.info["XML:com.adobe.xmp"])
    description = ElementTree.fromstring(packet)[0][0]
    mark = description.attrib["{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"]
    assert mark == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
