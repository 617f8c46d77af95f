"""Training from an S3 server (moto's, on this machine's loopback), through the library that production uses."""

from __future__ import annotations

import http.server
import io
import logging
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from moto.server import ThreadedMotoServer

from launcher import cli
from launcher.train import main
from resnet_dist import object_stores
from resnet_dist.data.index.made import index_file, saved_index
from resnet_dist.data.sources.by_name import LISTINGS, index_of
from resnet_dist.data.sources.listing import SPLITS
from resnet_dist.data.storage import remote
from resnet_dist.data.storage.files import files_of
from resnet_dist.data.storage.local import storage_of
from resnet_dist.errors import StoreUnavailable
from resnet_dist.recipe.schema import CacheRecipe, DataRecipe
from resnet_dist.telemetry.metrics_file import read_metrics
from tests.distributed.conftest import CONFIG, GONE

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "NO_PROXY": "127.0.0.1,localhost",
}


class Log(logging.Handler):
    """The requests of content that the server has answered, such as `GET /bucket/train/cat/0.jpg`."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def gets(self) -> list[str]:
        return [line for line in self.lines if "GET /bucket/" in line]


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Log]]:
    logger, log = logging.getLogger("werkzeug"), Log()
    logger.setLevel(logging.INFO)
    logger.addHandler(log)
    logger.propagate = False
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}", log
    server.stop()
    logger.removeHandler(log)
    logger.propagate = True


@pytest.fixture
def bucket(server: tuple[str, Log], monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty bucket, where the client looks for it as in production: by the environment."""
    import s3fs

    for variable, value in {"AWS_ENDPOINT_URL": server[0], **ENVIRONMENT}.items():
        monkeypatch.setenv(variable, value)
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    if files.exists("bucket"):
        files.rm("bucket", recursive=True)
    files.mkdir("bucket")
    return files


class Faulty:
    """A server that answers as S3 does when something is wrong: requests get what `answers` has, then `for_ever`.

    An answer is a status with a code, `hang` or `reset`; without one, the content `content`.
    """

    ERROR = '<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.for_ever: str | None = None
        self.over = threading.Event()
        faulty = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = faulty.answers.pop(0) if faulty.answers else faulty.for_ever
                if answer == "hang":
                    faulty.over.wait(20)
                if answer in ("hang", "reset"):
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                status, _, code = (answer or "206 ").partition(" ")
                body = Faulty.ERROR.format(code=code).encode() if code else b"content"
                self.send_response(int(status))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    """Waits for it, and for it to answer, are short."""
    import s3fs

    faulty = Faulty()
    for variable, value in {"AWS_ENDPOINT_URL": faulty.url, **ENVIRONMENT}.items():
        monkeypatch.setenv(variable, value)
    for name, seconds in (("PATIENCE_S", 1.0), ("FIRST_PATIENCE_S", 1.0), ("_PAUSES_S", (0.05, 0.2))):
        monkeypatch.setattr(remote, name, seconds)
    monkeypatch.setattr(object_stores, "_READ_TIMEOUT_S", 0.2)
    s3fs.S3FileSystem.clear_instance_cache()
    thread = threading.Thread(target=faulty.server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield faulty
    faulty.over.set()
    faulty.server.shutdown()
    thread.join()
    faulty.server.server_close()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def images(write_images: Callable[[Path], Path], tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


@pytest.fixture
def losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[float]]:
    """The losses of three steps, and of evaluation, of a run with these keys of `data`."""
    for variable in GONE:
        monkeypatch.delenv(variable, raising=False)

    def trained(name: str, **data: Any) -> list[float]:
        keys = {
            "name": name,
            "storage": str(tmp_path / "runs"),
            "duration": "3 steps",
            "model": {"name": "resnet20", "num_classes": 2},
            "batch": {"size": 6},
            "data": {**CONFIG["data"], **data},
            "schedule": {"peak_lr": 0.1},
            "faults": {"max_failures": 0},  # train in this process
        }
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump({**CONFIG, **keys}))
        assert main([str(file)]) == 0
        return [
            record["loss"] for record in read_metrics(tmp_path / "runs" / name / "metrics.jsonl") if "loss" in record
        ]

    return trained


def upload(bucket: Any, folder: Path, name: str) -> None:
    for file in folder.rglob("*.*"):
        bucket.pipe_file(f"bucket/{name}/{file.relative_to(folder)}", file.read_bytes())


def write_tars(images: Path, folder: Path) -> Path:
    """The images in the order of their index, in two shards of each split."""
    for split in ("train", "val"):
        for number, name in enumerate(("cat", "dog")):
            folder.mkdir(exist_ok=True)
            with tarfile.open(folder / f"{split}-{number}.tar", "w") as archive:
                for file in sorted((images / split / name).iterdir()):
                    for suffix, content in (("jpg", file.read_bytes()), ("cls", b"%d" % number)):
                        member = tarfile.TarInfo(f"{name}/{file.stem}.{suffix}")
                        member.size = len(content)
                        archive.addfile(member, io.BytesIO(content))
    return folder


def test_images_on_a_store_train_as_those_on_a_disk(
    images: Path, tmp_path: Path, bucket: Any, losses: Callable[..., list[float]]
) -> None:
    upload(bucket, images, "folder")
    upload(bucket, write_tars(images, tmp_path / "tars"), "tars")
    cache = {"folder": str(tmp_path / "cache")}
    on_disk = losses("disk", root=str(images))
    assert len(on_disk) == 4
    assert losses("folder", root="s3://bucket/folder", cache=cache) == on_disk
    assert losses("tars", source="webdataset", root="s3://bucket/tars", cache=cache) == on_disk


def test_packed_shards_on_a_store_train_in_the_order_of_shards(
    images: Path, tmp_path: Path, bucket: Any, server: tuple[str, Log], losses: Callable[..., list[float]]
) -> None:
    assert cli.main(["prepare", "pack", str(images), str(tmp_path / "packed")]) == 0
    upload(bucket, tmp_path / "packed", "packed")
    keys = {"source": "packed", "order": "shards", "shuffle_window": 4}
    on_disk = losses("disk", root=str(tmp_path / "packed"), **keys)
    server[1].lines.clear()
    found = losses("packed", root="s3://bucket/packed", cache={"folder": str(tmp_path / "cache")}, **keys)
    assert found == on_disk
    of_shards = [line for line in server[1].gets() if ".tar" in line]
    assert len(of_shards) == 2  # a block holds all images of a split


@pytest.mark.parametrize("source", ["imagefolder", "webdataset"])
def test_a_second_start_asks_for_no_content(
    source: str, images: Path, tmp_path: Path, bucket: Any, server: tuple[str, Log]
) -> None:
    folder = images if source == "imagefolder" else write_tars(images, tmp_path / "tars")
    upload(bucket, folder, "data")
    data = DataRecipe(root="s3://bucket/data", source=source, cache=CacheRecipe(folder=str(tmp_path / "cache")))
    log, contents = server[1], []
    for _ in range(2):
        log.lines.clear()
        index = index_of(data, "train")
        files = files_of(index, data)
        contents.append([files.read(sample) for sample in range(len(index))])
        contents.append([(images / f"{path}").read_bytes() for path in index_of(on_disk(images), "train").paths])
        gets = len(log.gets())
    assert contents[0] == contents[1] == contents[2]
    assert gets == (
        len(index) if source == "imagefolder" else 0
    )  # the headers of files are read again, with one request
    log.lines.clear()
    index.save(index_file(tmp_path / "index", "train"))
    assert saved_index(data, "train", tmp_path / "index") is not None
    assert log.gets() == []
    changed = "data/train/cat/0.jpg" if source == "imagefolder" else "data/train-0.tar"
    bucket.pipe_file(f"bucket/{changed}", bucket.cat_file(f"bucket/{changed}") + b"0")
    assert saved_index(data, "train", tmp_path / "index") is None


def on_disk(images: Path) -> DataRecipe:
    return DataRecipe(root=str(images))


def test_an_image_folder_on_a_store_is_listed_as_on_a_disk(images: Path, bucket: Any) -> None:
    (images / "train" / "cat" / "more").mkdir()
    (images / "train" / "cat" / "0.jpg").rename(images / "train" / "cat" / "more" / "0.jpg")
    (images / "train" / "cat" / "notes.txt").write_text("no image")
    (images / "val" / "cat").rename(images / "cats")
    upload(bucket, images, "data")
    for split in SPLITS:
        remote, local = (
            LISTINGS["imagefolder"](DataRecipe(root=root), split) for root in ("s3://bucket/data", str(images))
        )
        assert (remote.classes, tuple(remote.paths), list(remote.labels)) == (
            local.classes, tuple(local.paths), list(local.labels),
        )  # fmt: skip
        notes = [note.replace("s3://bucket/data", str(images)) for note in remote.notes]
        assert notes == list(local.notes)


@pytest.mark.parametrize(
    ("root", "problem"),
    [
        ("s3://bucket/nothing", "s3://bucket/nothing: there is no such object or bucket"),
        ("s3://no-such-bucket/data", "s3://no-such-bucket/data: there is no such object or bucket"),
        ("s3://bucket/data/train", "s3://bucket/data/train/train: no such folder"),
        ("s3://bucket/flat", "s3://bucket/flat/train: has no class folder"),
    ],
)
def test_a_place_without_images_ends_the_run_with_65(
    root: str, problem: str, images: Path, tmp_path: Path, bucket: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    upload(bucket, images, "data")
    bucket.pipe_file("bucket/flat/train/1.jpg", b"")
    file = tmp_path / "x.yaml"
    file.write_text(
        yaml.safe_dump({**CONFIG, "storage": str(tmp_path), "data": {"root": root}, "faults": {"max_failures": 0}})
    )
    assert main([str(file)]) == 65
    assert problem in capfd.readouterr().err


@pytest.mark.parametrize("answer", ["503 SlowDown", "503 ServiceUnavailable", "500 InternalError", "hang", "reset"])
def test_a_store_that_fails_for_a_while_is_asked_again(
    answer: str, faulty: Faulty, caplog: pytest.LogCaptureFixture
) -> None:
    faulty.answers = [answer, answer]
    with caplog.at_level(logging.WARNING):
        assert storage_of("s3://bucket/data").read("one") == b"content"
    assert not faulty.answers
    assert len([record for record in caplog.records if "tried again for up to" in record.message]) == 1


@pytest.mark.parametrize("answer", ["503 SlowDown", "hang"])
def test_a_store_that_is_away_is_named(answer: str, faulty: Faulty) -> None:
    faulty.for_ever = answer
    with pytest.raises(StoreUnavailable, match=r"^s3://bucket/data/one: does not answer .*AWS_ENDPOINT_URL"):
        storage_of("s3://bucket/data").read("one")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ("403 AccessDenied", "s3://bucket/data: access is refused (PermissionError: AccessDenied)"),
        ("403 InvalidAccessKeyId", "s3://bucket/data: access is refused (PermissionError: InvalidAccessKeyId)"),
        ("503 SlowDown", "s3://bucket/data: does not answer (OSError: [Errno 16] SlowDown)"),
    ],
)
def test_a_store_that_refuses_or_is_away_ends_the_run_with_69(
    answer: str, problem: str, faulty: Faulty, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    faulty.for_ever = answer
    file = tmp_path / "x.yaml"
    keys = {"storage": str(tmp_path), "data": {"root": "s3://bucket/data"}, "faults": {"max_failures": 0}}
    file.write_text(yaml.safe_dump({**CONFIG, **keys}))
    assert main([str(file)]) == 69
    assert problem in capfd.readouterr().err
