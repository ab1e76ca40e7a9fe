"""Data: the built-in gratings, image folders, and CIFAR-10's download against a server on this computer."""

import hashlib
import http.server
import io
import os
import pickle
import struct
import tarfile
import threading
import zlib

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import simsiam_sghmc as s

CIFAR10 = torchvision.datasets.CIFAR10


def test_gratings_are_balanced_and_a_function_of_the_seed():
    images, labels = s.gratings(200, seed=1)
    assert images.shape == (200, 3, 32, 32) and images.dtype == torch.uint8
    assert labels.bincount().tolist() == [20] * 10
    again, _ = s.gratings(200, seed=1)
    other, _ = s.gratings(200, seed=2)
    assert torch.equal(images, again) and not torch.equal(images, other)
    assert 20 < images.float().std() < 110


def test_an_image_folder_is_read_in_class_order_and_resized(pictures, tmp_path):
    data = s.load_data(str(pictures))
    assert data.train.shape == (24, 3, 32, 32) and data.test.shape == (12, 3, 32, 32)
    assert data.train_labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    means = data.train.float().mean(dim=(2, 3))
    assert means.argmax(dim=1).tolist() == data.train_labels.tolist()  # class i is brightest in channel i
    for split in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            Image.new("L", (50, 20), 90).save(tmp_path / split / label / "grey.jpg")
    assert (s.load_data(str(tmp_path)).train == 90).all()


def test_the_identity_of_a_folder_is_its_images_and_their_classes_and_not_its_path(pictures, tmp_path):
    first = s.load_data(str(pictures)).source
    (tmp_path / "moved").symlink_to(pictures)
    assert s.load_data(str(tmp_path / "moved")).source == first
    for split in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / split / label).mkdir(parents=True)
            Image.new("RGB", (32, 32), (1, 2, 3)).save(tmp_path / split / label / "x.png")
    seen = {first, s.load_data(str(tmp_path)).source}
    for split in ("test", "train"):  # another image, then the same ones, of which one is of the other class
        Image.new("RGB", (32, 32), (9, 9, 9)).save(tmp_path / split / "b/y.png")
        seen.add(s.load_data(str(tmp_path)).source)
        (tmp_path / split / "b/x.png").rename(tmp_path / split / "a/y.png")
        seen.add(s.load_data(str(tmp_path)).source)
    assert len(seen) == 6


@pytest.fixture
def folder(tmp_path):
    """folder(path below it, image): save an image in a folder of two classes, a/1.png and b/1.png in train and test."""

    def save(name, image, **options):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)

    for split in ("train", "test"):
        for label in "ab":
            save(f"{split}/{label}/1.png", Image.new("RGB", (32, 32), (50, 60, 70)))
    save.root = tmp_path / "images"
    return save


def test_images_of_nested_folders_count_and_hidden_ones_do_not(folder):
    image = Image.new("RGB", (32, 32), (9, 9, 9))
    for name in ("train/a/deep/er/2.png", "train/a/2 – ü\n.PNG", "train/b/3.jpg"):
        folder(name, image)
    for name in ("train/.hidden/1.png", "train/a/.ipynb_checkpoints/1.png", "train/a/._1.png", "test/.b/1.png"):
        folder(name, image)
    for name in ("notes.txt", "print.pdf"):  # Pillow only writes the second
        (folder.root / "train/a" / name).write_text("no image")
    data = s.load_data(str(folder.root))
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1] and len(data.test) == 2
    assert "5 images of 2 classes, 0 of them resized to 32x32, 2 other files left out" in data.note
    assert data.note.endswith("2 images of 2 classes, 0 of them resized to 32x32")


def test_a_pipe_among_the_images_is_left_out_and_does_not_block(folder):
    os.mkfifo(folder.root / "train/a/2.png")
    reader = threading.Thread(target=s.load_data, args=[str(folder.root)], daemon=True)
    reader.start()
    reader.join(timeout=60)
    blocked = reader.is_alive()
    if blocked:  # let it go on
        os.close(os.open(folder.root / "train/a/2.png", os.O_WRONLY))
    assert not blocked


def test_images_are_turned_as_exif_says(folder):
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:16] = 200  # bright at the top
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: bright on the right
    folder("train/a/1.png", Image.fromarray(picture), exif=exif)
    image = s.load_data(str(folder.root)).train[0]
    assert (image[:, :, 16:] == 200).all() and (image[:, :, :16] == 0).all()


def test_the_note_counts_the_images_that_were_resized(folder):
    folder("train/a/2.png", Image.new("L", (40, 32), 7))
    folder("train/b/2.png", Image.new("RGB", (2, 3)))
    assert "train: 4 images of 2 classes, 2 of them resized to 32x32" in s.load_data(str(folder.root)).note


def test_a_picture_too_large_for_pillows_peace_is_read_without_a_word(folder, monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32 * 32 - 1)  # it warns beyond, and refuses beyond twice that
    assert len(s.load_data(str(folder.root)).train) == 2 and not recwarn.list
    folder("train/a/2.png", Image.new("L", (64, 64)))
    with pytest.raises(s.BadInput, match="a/2.png.*exceeds limit"):
        s.load_data(str(folder.root))


@pytest.mark.parametrize("mode", ["I;16", "I", "F", "RGBA", "LA", "P"])
def test_images_that_eight_bits_of_colour_cannot_hold_are_refused(folder, mode):
    if mode == "P":
        folder("train/a/2.png", Image.new("P", (32, 32)), transparency=0)
    else:
        folder("train/a/2.tiff", Image.new(mode, (32, 32)))
    with pytest.raises(s.BadInput, match=f"a/2.*mode {mode}: only 8 bits a channel, no transparency"):
        s.load_data(str(folder.root))


def test_of_sixteen_bits_a_channel_the_upper_eight_are_read(folder):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    values = np.linspace(0, 65535, 32 * 32 * 3).astype(np.uint16).reshape(32, 96)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (folder.root / "train/a/1.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    image = s.load_data(str(folder.root)).train[0].permute(1, 2, 0).numpy()
    assert np.array_equal(image, (values >> 8).reshape(32, 32, 3))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_images_that_eight_bits_of_colour_hold_are_read(folder, mode):
    folder("train/a/1.png" if mode != "CMYK" else "train/a/1.jpg", Image.new("L", (32, 32), 255).convert(mode))
    assert (s.load_data(str(folder.root)).train[0] == 255).all()


def test_what_is_wrong_with_a_folder_is_said_with_its_place(folder, tmp_path):
    (folder.root / "train/a/2.png").write_bytes(b"no image")
    with pytest.raises(s.BadInput, match="train/a/2.png.*mend or remove it"):
        s.load_data(str(folder.root))
    (folder.root / "train/a/2.png").unlink()
    (folder.root / "train/b").rename(folder.root / "train/c")
    with pytest.raises(s.BadInput, match="images of the same two or more classes: only one of them has b, c"):
        s.load_data(str(folder.root))
    with pytest.raises(s.BadInput, match="no folder .*images/train/train .beside it: a, c.*train/<class>"):
        s.load_data(str(folder.root / "train"))
    with pytest.raises(s.BadInput, match="no folder .*train .beside it: images"):
        s.load_data(str(tmp_path))
    with pytest.raises(s.BadInput, match="beside it: no folder"):
        s.load_data(str(tmp_path / "nowhere"))


# ------------------------------------------------------------------------------------------------- CIFAR-10's download


def cifar_archive(rng):
    """(archive bytes, {file: md5}) in CIFAR-10's own format, 20 images a batch."""
    files = {f"data_batch_{i}": i for i in range(1, 6)} | {"test_batch": 6}
    sums, buffer = {}, io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name in files:
            content = {"data": rng.integers(0, 256, (20, 3072), dtype=np.uint8), "labels": list(range(10)) * 2}
            add(tar, sums, name, pickle.dumps(content))
        add(tar, sums, "batches.meta", pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    return buffer.getvalue(), sums


def add(tar, sums, name, content):
    info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
    sums[name] = hashlib.md5(content).hexdigest()


@pytest.fixture
def server(monkeypatch):
    """A web server that serves the archive as `how` asks; torchvision is told its address and checksums."""
    archive, sums = cifar_archive(np.random.default_rng(0))
    served = {"good": archive, "truncated": archive[: len(archive) // 2], "changed": archive[:-20] + bytes(20)}
    state = {"how": "good", "requests": 0}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state["requests"] += 1
            body = served.get(state["how"])
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{httpd.server_port}/cifar-10-python.tar.gz")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive).hexdigest())
    monkeypatch.setattr(CIFAR10, "train_list", [[f"data_batch_{i}", sums[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": sums["batches.meta"]})
    yield state
    httpd.shutdown()
    httpd.server_close()


def test_cifar10_is_downloaded_once_then_read_from_the_disk(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = s.load_data("cifar10")
    assert data.train.shape == (100, 3, 32, 32) and data.test.shape == (20, 3, 32, 32)
    first = np.random.default_rng(0).integers(0, 256, (20, 3072), dtype=np.uint8)
    assert torch.equal(data.train[:20].flatten(1), torch.from_numpy(first))
    asked = server["requests"]
    assert asked > 0 and torch.equal(s.load_data("cifar10").train, data.train)
    monkeypatch.chdir("/")
    there = s.load_data(str(tmp_path / "data"))  # the folder by its name: the same data, and the same chain
    assert all(torch.equal(a, b) for a, b in zip(there[:4], data[:4], strict=True)) and there.source == data.source
    assert server["requests"] == asked


@pytest.mark.parametrize("how", ["truncated", "changed", "absent"])
def test_a_bad_download_is_one_line_that_names_the_other_choices(server, tmp_path, capfd, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    server["how"] = how
    out = tmp_path / "run"
    assert s.main(["--data", "cifar10", "--out", str(out)]) == 2
    message = capfd.readouterr().err.strip().splitlines()[-1]
    assert "CIFAR-10" in message and "--data gratings" in message and "--data FOLDER" in message
    assert not out.exists()
    server["how"] = "good"  # and the next try succeeds in the same folder
    assert len(s.load_data("cifar10").train) == 100


def test_without_a_network_the_message_is_the_same(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.chdir(tmp_path)
    assert s.main(["--out", "run"]) == 2
    message = capfd.readouterr().err
    assert all(words in message for words in ("CIFAR-10", "--data gratings", "--data FOLDER"))
