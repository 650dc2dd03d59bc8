"""`mforce app` as its users meet it: in a browser, by two at once, and by those who mean harm."""

from __future__ import annotations

import importlib.util
import io
import signal
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image

from tests import browser
from tests.page import Client, Served, picture, serving

trimesh = pytest.importorskip("trimesh")
missing = importlib.util.find_spec("gradio") is None  # not imported here, which takes seconds
pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing, reason="needs gradio")]
WIDTH, HEIGHT = 40, 30


@pytest.fixture(scope="module")
def served(forcing_run: Path, tmp_path_factory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("app")
    with serving(forcing_run, folder) as running:
        yield running
        # Connections of browsers are still open, and one user waits for an answer.
        client = Client(running.address)
        client.ask("i2d_run", None)
        start = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(10) == 143
        assert time.monotonic() - start < 3
        assert list(folder.iterdir()) == []
    log = folder.with_name(f"{folder.name}.log").read_text()
    assert log.endswith("mforce app: stopped by SIGTERM\n")
    assert "Traceback" not in log, log


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "photo 1.jpg"
    path.write_bytes(jpeg(0))
    return path


def jpeg(seed: int) -> bytes:
    colors = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(colors.repeat(5, 0).repeat(5, 1)).save(buffer, "JPEG")
    return buffer.getvalue()


def png(width: int, height: int) -> bytes:
    """A black 1-bit PNG of any size in few bytes."""
    rows, packer = bytes((width + 7) // 8 + 1), zlib.compressobj(9)
    pixels = b"".join(packer.compress(rows) for _ in range(height)) + packer.flush()

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content).to_bytes(4, "big")
        return len(content).to_bytes(4, "big") + kind + content + check

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    head = chunk(b"IHDR", size + bytes([1, 0, 0, 0, 0]))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def shows(selector: str) -> str:
    """JavaScript: whether an image below a selector is loaded, or the part of its address."""
    return f"[...document.querySelectorAll({selector!r})].some(e => e.naturalWidth > 0)"


@pytest.mark.skipif(browser.executable() is None, reason="needs a Chromium")
def test_photo_becomes_depth_in_a_browser(served: Served, photo: Path, tmp_path: Path):
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    with browser.started(tmp_path / "profile") as tab:
        tab.open(served.address)
        tab.upload("input[type=file]", photo)
        tab.wait(shows("img[src*=photo]"))
        tab.click(".label-wrap")  # more settings
        tab.fill("input[type=number][aria-label*='Jumps']", 100)
        slider = "input[type=range][aria-label*='Jumps']"
        tab.wait(f"document.querySelector({slider!r}).value == 100")
        tab.click("#i2d_run")
        tab.wait(shows("#i2d_depth img"), 60)
        tab.wait("!!document.querySelector('#i2d_scene canvas')")
        client, content = Client(served.address), {}
        for name in ("depth.npy", "points.ply"):
            link = f"#i2d_files a[href$='{name}']"
            path = unquote(urlsplit(tab.wait(f"document.querySelector({link!r})?.href")).path)
            status, content[name] = client.get(path)
            assert status == 200

        tab.open(served.address, 390, 844)  # a phone, and a file that is no image
        tab.upload("input[type=file]", text)
        tab.wait("!!document.querySelector('img[src*=text]')")
        tab.click("#i2d_run")
        message = "text.jpg: cannot be read as an image"
        tab.wait(f"document.body.innerText.includes({message!r})")
        assert str(served.folder) not in tab.text()
        others = {url for url in tab.requests if url.startswith(("http", "ws"))}
        assert all(url.startswith(served.address) for url in others), others
    end = time.monotonic() + 20
    while client.get(path)[0] != 403:  # the user has left, and so do the files
        assert time.monotonic() < end
        time.sleep(0.1)
    depth = np.load(io.BytesIO(content["depth.npy"]))
    cloud = trimesh.load(io.BytesIO(content["points.ply"]), file_type="ply")
    assert depth.shape == (HEIGHT, WIDTH)
    assert len(cloud.vertices) == np.isfinite(depth).sum() == WIDTH * HEIGHT
    np.testing.assert_allclose(np.sort(cloud.vertices[:, 2]), np.sort(depth, None), rtol=1e-6)
    assert len(np.unique(cloud.colors, axis=0)) > 10


def test_two_users_at_once_get_their_own_results(served: Served):
    def depth(path: str) -> np.ndarray:
        status, content = users[0].get(f"/gradio_api/file={path}")
        assert status == 200
        return np.load(io.BytesIO(content))

    users = [Client(served.address) for _ in range(2)]
    uploads = [user.upload("photo.jpg", jpeg(seed))[1] for seed, user in enumerate(users)]
    together = [
        user.ask("i2d_run", picture(path)) for user, path in zip(users, uploads, strict=True)
    ]
    answers = [event.wait() for event in together]
    assert [error for error, _ in answers] == [None, None]
    alone = Client(served.address).ask("i2d_run", picture(uploads[1])).wait()
    maps = [
        depth(next(path for path in paths if path.endswith("depth.npy")))
        for _, paths in (*answers, alone)
    ]
    assert maps[0].shape == (HEIGHT, WIDTH)
    np.testing.assert_array_equal(maps[1], maps[2])
    assert np.abs(maps[0] - maps[1]).max() > 1e-3
    assert set(answers[0][1]).isdisjoint(answers[1][1])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (picture("/etc/passwd"), "holds what the page does not send"),
        ("no image", "holds what the page does not send"),
        (picture("http://127.0.0.1:1/photo.jpg"), "was not uploaded here"),
        ({"url": "data:image/png;base64,AAAA", "meta": {"_type": "gradio.FileData"}}, "uploaded"),
        (None, "no image"),
    ],
)
def test_pages_read_uploads_only(served: Served, value, message):
    error, paths = Client(served.address).ask("i2d_run", value).wait()
    assert error is not None and message in error and paths == []


def test_no_path_of_the_server_can_be_read(served: Served):
    client = Client(served.address)
    status, own = client.upload("photo.jpg", jpeg(0))
    assert status == 200 and client.get(f"/gradio_api/file={own}") == (200, jpeg(0))
    above = "../" * 12
    for path in (
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=//etc/passwd",
        f"/gradio_api/file={above}etc/passwd",
        f"/gradio_api/file={own}/{above}etc/passwd",
        "/gradio_api/file=%2Fetc%2Fpasswd",
        "/gradio_api/file=%252Fetc%252Fpasswd",
        "/file=/etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/gradio_api/proxy=http://127.0.0.1:1/",
        f"/static/{above}etc/passwd",
        f"/assets/{above}etc/passwd",
        "/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
        f"/gradio_api/file={served.folder}",
        f"/gradio_api/file={__file__}",
    ):
        assert client.raw(path) in (400, 403, 404), path


def test_large_upload_is_refused_politely(served: Served):
    client = Client(served.address)
    status, message = client.upload("large.jpg", bytes(60 * 10**6))
    assert (status, message) == (413, "the file is too large: at most 50 MB\n")
    assert client.upload("small.jpg", jpeg(1))[0] == 200


def test_decompression_bomb_is_refused_politely(served: Served):
    bomb = png(20_000, 20_000)
    assert len(bomb) < 10**6
    client = Client(served.address)
    _, path = client.upload("bomb.png", bomb)
    error, paths = client.ask("i2d_run", picture(path)).wait()
    assert error is not None and error.startswith("bomb.png: has ") and "scale it down" in error
    assert paths == []


def test_settings_that_the_page_does_not_offer_are_refused(served: Served):
    client = Client(served.address)
    for component in client.config["components"]:
        if component["props"].get("label") == "Ensemble":
            component["props"]["value"] = 10**9
    _, path = client.upload("photo.jpg", jpeg(0))
    error, _ = client.ask("i2d_run", picture(path)).wait()
    assert error is not None and error.startswith("ensemble is 1000000000")
