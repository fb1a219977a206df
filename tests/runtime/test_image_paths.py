"""Pictures given as paths: what is opened, what is not, and how it is named in errors."""

import io
import os
import pickle
import socket
import threading
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from pocketdx_runtime.errors import ImageError, ImageReason, PocketDxError
from pocketdx_runtime.image import decode


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def refusal(source: object, **options: object) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(source, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.jpg", tmp_path / "gone" / "deeper.jpg"):
        error = refusal(path)
        assert error.reason is ImageReason.NOT_FOUND
        assert str(error) == f"{path}: no such file; check the path"
        assert isinstance(error, PocketDxError)


def test_a_path_through_a_file_or_with_a_nul_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert refusal(tmp_path / "a.jpg" / "b.jpg").reason is ImageReason.NOT_FOUND
    error = refusal("a\0b.jpg")
    assert error.reason is ImageReason.UNREADABLE
    assert str(error).startswith("a\\x00b.jpg: ")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path)
    assert error.reason is ImageReason.NOT_A_FILE
    assert "folder" in str(error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused_without_waiting_for_its_writer(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jpg"
    os.mkfifo(pipe)
    result: list[ImageError] = []
    thread = threading.Thread(target=lambda: result.append(refusal(pipe)), daemon=True)
    thread.start()
    thread.join(5)
    assert not thread.is_alive()
    assert result[0].reason is ImageReason.NOT_A_FILE


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero here")
def test_a_device_is_refused_even_through_a_link(tmp_path: Path) -> None:
    link = tmp_path / "endless.png"
    link.symlink_to("/dev/zero")
    for path in (Path("/dev/zero"), link):
        assert refusal(path).reason is ImageReason.NOT_A_FILE


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket has to be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        assert refusal("socket.jpg").reason is ImageReason.NOT_A_FILE


def test_a_link_to_a_picture_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(encode(Image.new("RGB", (48, 32)), "PNG"))
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    assert decode(tmp_path / "link.png").shape == (32, 48, 3)


def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encode(Image.new("RGB", (48, 32)), "PNG"))

    def forbid(*_: object, **__: object) -> int:  # root may read everything, so the mode bits cannot show it
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", forbid)
    error = refusal(path)
    assert error.reason is ImageReason.UNREADABLE
    assert "Permission denied" in str(error)


def test_a_file_over_the_limit_is_refused_by_its_size_without_being_read(tmp_path: Path) -> None:
    path = tmp_path / "big.jpg"
    with path.open("wb") as file:
        file.truncate(200 * 2**20)  # sparse
    tracemalloc.start()
    try:
        error = refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert error.reason is ImageReason.TOO_LARGE
    assert str(error) == f"{path}: 200.0 MiB is more than the limit of 64.0 MiB; use a smaller file"


def test_the_name_given_by_the_caller_is_used_and_cannot_break_the_line() -> None:
    error = refusal(b"", name="upload\n\x1b[31m\udcff.jpg")
    assert error.source == "upload\n\x1b[31m\udcff.jpg"
    assert str(error).startswith("upload\\n\\x1b[31m\\udcff.jpg: empty")


def test_an_error_survives_a_process_pool() -> None:
    error = pickle.loads(pickle.dumps(refusal(b"", name="a.jpg")))
    assert isinstance(error, ImageError)
    assert (error.source, error.reason, str(error)) == ("a.jpg", ImageReason.EMPTY, str(refusal(b"", name="a.jpg")))
