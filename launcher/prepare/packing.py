"""Packing a data set: its index, the shards, their verification, and the card."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from launcher.formatting import count, in_bytes
from launcher.prepare.locks import locked
from launcher.prepare.pack_shards import Part, Sample, write_shards
from launcher.prepare.progress import Progress
from launcher.prepare.smaller_images import smaller_jpeg
from resnet_dist.data.headers.image import header_of
from resnet_dist.data.index.build import build_index, check_whole, refreshed
from resnet_dist.data.index.shared import index_file, saved_index
from resnet_dist.data.index.table import Index, Kind
from resnet_dist.data.names import some
from resnet_dist.data.order import Stream
from resnet_dist.data.sources.by_name import LISTINGS, identity
from resnet_dist.data.sources.classes import select
from resnet_dist.data.sources.known_bad import known_names, with_known_bad
from resnet_dist.data.sources.listing import SPLITS, Split
from resnet_dist.data.sources.packed import CARD, FORMAT, index_path, read_card
from resnet_dist.data.sources.parquet import row_group_warnings
from resnet_dist.data.storage.files import Files, files_of
from resnet_dist.data.storage.local import Storage, storage_of
from resnet_dist.errors import DataError, RecipeError
from resnet_dist.object_stores import is_address
from resnet_dist.recipe.schema import DataRecipe

_WORK = ".pack"  # folder in the output: what belongs to a packing that is not finished
_PLAN = "plan.json"
_LOCK = ".pack-lock"  # not in that folder: NFS does not delete a folder with an open file
_CLASSES = "classes.txt"
_PIECE = 2**20  # bytes that are hashed at once


@dataclass(frozen=True)
class Options:
    """How shards are written."""

    shard_mb: int = 256
    shorter_side: int | None = None  # pixels; None: images are copied
    quality: int | None = None  # of images that are made smaller
    skip_broken: bool = False
    threads: int | None = None
    shuffle: bool = False  # write training images in random order; their numbers stay those of the source


def pack(data: DataRecipe, output: Path, options: Options) -> Iterator[str]:
    """Write the packed shards of `data`; yield what was done, line by line. Images in `data.known_bad` are left out.

    Continues after an interruption. Raises DataError for broken images, unless they are left out; for an output that
    holds something else, or another packing; for a disk that is full or read-only; and if a shard's bytes on the disk
    are not what was written.
    """
    if data.source not in LISTINGS:
        raise RecipeError("data.source", f"{data.source} cannot be packed", ", ".join(LISTINGS))
    if data.subset is not None:
        problem = "all images are packed, and the subset is chosen when a run starts"
        raise RecipeError("data.subset", problem, "leave the key out here, and keep it in the config of the run")
    with _writing(output):
        _check_output(output)
        (output / _WORK / "shards").mkdir(parents=True, exist_ok=True)
        with locked(output / _LOCK, output):
            yield from _pack(data, output, options)


def verify(root: str) -> Iterator[str]:
    """Compare each shard with the hash in the card; yield the result. `root` is a folder or an address.

    Raises DataError for all that differ, and StoreUnavailable.
    """
    storage = storage_of(root)
    shards = [shard for split in read_card(storage)["splits"].values() for shard in split["shards"]]
    _compare(storage, shards)
    yield f"{root}: {count(len(shards), 'shard')} of {in_bytes(sum(shard['bytes'] for shard in shards))} are intact"


def _pack(data: DataRecipe, output: Path, options: Options) -> Iterator[str]:
    known_bad = known_names(data)
    selected = select(data, *(_index(data, split, output) for split in SPLITS))
    if not options.skip_broken:
        check_whole(*selected, known_bad=known_bad)
    indices = dict(zip(SPLITS, with_known_bad(selected, known_bad, warn=True), strict=True))
    if options.shuffle and any(row_group_warnings(DataRecipe(), indices["train"])):
        problem = "is parquet, which cannot be read in random order. Allowed: pack it without --shuffle, then pack the"
        raise DataError(data.root, f"{problem} result with --source webdataset --shuffle")
    plan = _plan(indices, options)
    if (output / CARD).exists():
        if read_card(storage_of(str(output)))["plan"] != plan:
            raise DataError(str(output), "holds a packing of other images or with other options. Choose another folder")
        shutil.rmtree(output / _WORK)
        yield f"{output}: is complete; `launcher prepare pack --verify {output}` compares the hashes of all shards"
        return
    _check_space(output, indices, options)
    _begin(output, plan)
    card: dict[str, Any] = {}
    for split, index in indices.items():
        parts = _write(index, split, output, options)
        card[split] = _described(index, parts)
        kept = _packed_index(index, parts)
        kept.save(output / index_path(split))
        left_out = f", {card[split]['left_out']:,} left out" if card[split]["left_out"] else ""
        yield f"{split}: {count(len(kept), 'image')} in {count(len(parts), 'shard')}{left_out}"
    _compare(storage_of(str(output)), [shard for split in card.values() for shard in split["shards"]])
    _write_text(output / _CLASSES, "".join(f"{name}\n" for name in indices["train"].classes))
    _write_text(output / CARD, json.dumps(_card(data, options, plan, card), indent=2) + "\n")
    shutil.rmtree(output / _WORK)
    yield f"{output}: is complete and verified. Train with data.source=packed data.root={output}"


def _index(data: DataRecipe, split: Split, output: Path) -> Index:
    """The index of the source; an interrupted packing has saved it, or a part of it."""
    work = output / _WORK
    if (saved := saved_index(data, split, work)) is not None:
        return refreshed(saved, data=data)
    listing = LISTINGS[data.source](data, split)
    progress = Progress(f"reading the headers of {split}", len(listing.paths), "images")
    index = build_index(
        listing,
        data.root,
        identity(data),
        report=lambda done, _: progress.update(done),
        parts=work / f"index-{split}",
        data=data,
    )
    progress.end()
    index.save(index_file(work, split))
    return index


def _write(index: Index, split: str, output: Path, options: Options) -> list[Part]:
    """Write the shards of a split."""
    whole = np.flatnonzero(index.kinds != Kind.BROKEN)
    if options.shuffle and split == "train" and len(whole):
        whole = whole[Stream(len(whole), seed=0).sample_ids(np.arange(len(whole)))]
    rows = whole.tolist()
    files, progress = files_of(index), Progress(f"packing {split}", len(rows), "images")

    def make(number: int) -> Sample | None:
        row = rows[number]
        try:
            return _sample(index, files, row, options)
        except DataError as error:
            if not options.skip_broken:
                raise
            print(f"left out: {error}", flush=True)
            return None

    parts: list[Part] = []
    threads = options.threads or os.cpu_count() or 1
    folder = output / _WORK / "shards"
    shards = write_shards(output, folder, split, len(rows), make, shard_bytes=options.shard_mb * 10**6, threads=threads)
    progress.before(0)
    for part in shards:
        parts.append(part)
        (progress.before if part.was_finished else progress.update)(part.end)
    progress.end()
    if not parts:
        raise DataError(index.root, f"has no whole images in the split {split}")
    return parts


def _sample(index: Index, files: Files, row: int, options: Options) -> Sample:
    """The sample to write. Raises DataError, with its name, if the image is broken."""
    content, name = files.read(row), files.name(row)
    smaller: bytes | None = None
    if options.shorter_side is not None and options.quality is not None:
        orientation = int(index.orientations[row])
        try:
            smaller = smaller_jpeg(content, options.shorter_side, options.quality, orientation)
        except Exception as error:  # Pillow's, for broken files: which ones depends on the format
            raise DataError(name, f"cannot be decoded: {error}", row) from error
    kept = content if smaller is None else smaller
    header = header_of(name, len(kept), lambda num, offset: kept[offset : offset + num])
    suffix = "jpg" if smaller is not None else _suffix(index.paths[row], content)
    return Sample(row, int(index.labels[row]), suffix, kept, header, smaller is not None)


def _suffix(name: str, content: bytes) -> str:
    """The suffix of an image in a tar, in the form that readers of WebDataset expect."""
    suffix = Path(name).suffix.lower().removeprefix(".")
    if not suffix:
        suffix = "png" if content.startswith(b"\x89PNG") else "webp" if content[8:12] == b"WEBP" else "jpg"
    return "jpg" if suffix == "jpeg" else suffix


def _packed_index(index: Index, parts: list[Part]) -> Index:
    """The index of the shards: names and labels are those of `index`."""
    joined: dict[str, Any] = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    written = joined.pop("rows")
    in_turn = np.argsort(written)
    joined = {name: column[in_turn] for name, column in joined.items()}
    numbers = np.repeat(np.arange(len(parts), dtype=np.int32), [part.num_samples for part in parts])[in_turn]
    kept = index if len(written) == len(index) else index.take(written[in_turn])
    shards = tuple(part.name for part in parts)
    return Index(
        root="",
        classes=kept.classes,
        paths=kept.paths,
        labels=kept.labels,
        source="packed",
        shards=shards,
        shard_numbers=numbers,
        **joined,
    )


def _described(index: Index, parts: list[Part]) -> dict[str, Any]:
    return {
        "images": sum(part.num_samples for part in parts),
        "made_smaller": sum(part.num_resized for part in parts),
        "left_out": len(index) - sum(part.num_samples for part in parts),
        "shards": [
            {"name": part.name, "images": part.num_samples, "bytes": part.num_bytes, "sha256": part.sha256}
            for part in parts
        ],
    }


def _plan(indices: dict[Split, Index], options: Options) -> str:
    """A hash of all that decides about the bytes of the shards."""
    digest = hashlib.sha256()
    for index in indices.values():
        digest.update(f"{index.fingerprint()} {index.contents()} {index.classes}".encode())
        digest.update(np.flatnonzero(index.kinds == Kind.BROKEN).tobytes())  # they are left out
    kept = dataclasses.asdict(options) | {"threads": None}
    digest.update(json.dumps([FORMAT, kept, PIL.__version__ if options.shorter_side else None]).encode())
    return digest.hexdigest()


def _card(data: DataRecipe, options: Options, plan: str, splits: dict[str, Any]) -> dict[str, Any]:
    resized = None
    if options.shorter_side is not None:
        resized = {
            "shorter_side": options.shorter_side,
            "of": "images with a larger one; the others are as they were, byte for byte",
            "filter": "Pillow, bicubic, antialiased",
            "format": "JPEG",
            "quality": options.quality,
        }
    return {
        "format": FORMAT,
        "source": {"root": data.root, "source": identity(data), "classes": data.classes},
        "resized": resized,
        "shuffled": options.shuffle,
        "splits": splits,
        "versions": {"resnet-launcher": metadata.version("resnet-launcher"), "pillow": PIL.__version__},
        "plan": plan,
    }


def _compare(storage: Storage, shards: list[dict[str, Any]]) -> None:
    """Raise one DataError for all shards whose bytes are not those of the card."""
    progress = Progress("comparing the hashes", sum(shard["bytes"] for shard in shards) // 10**6, "MB")
    done, wrong, piece = 0, [], memoryview(bytearray(_PIECE))
    for shard in shards:
        digest, before = hashlib.sha256(), done
        try:
            with storage.open(shard["name"]) as stream:
                while num_bytes := stream.readinto(piece):  # type: ignore[attr-defined]  # BinaryIO lacks it
                    digest.update(piece[:num_bytes])
                    done += num_bytes
                    progress.update(done // 10**6)
            if done - before != shard["bytes"]:
                wrong.append(f"{shard['name']}: {done - before:,} bytes, and {CARD} says {shard['bytes']:,}")
            elif digest.hexdigest() != shard["sha256"]:
                wrong.append(f"{shard['name']}: other bytes")
        except DataError as error:
            wrong.append(f"{shard['name']}: {error.problem}")
    progress.end()
    if wrong:
        found = f"{len(wrong):,} of {len(shards):,} shards are not what was packed: {some(wrong)}"
        again = f"Delete these and {CARD}, and pack again; check the disk"
        advice = "Copy these there again" if is_address(storage.root) else again
        raise DataError(storage.root, f"{found}. {advice}")


def _check_output(output: Path) -> None:
    """Raise DataError if the folder holds something else."""
    if not output.exists():
        return
    names = sorted(entry.name for entry in output.iterdir())
    if names and CARD not in names and _WORK not in names:
        raise DataError(str(output), f"is not empty and holds no packed shards: {some(names)}. Choose another")


def _begin(output: Path, plan: str) -> None:
    """Note the plan; raise DataError if the folder has finished shards of another one."""
    file = output / _WORK / _PLAN
    if file.exists() and file.read_text() != plan and any(output.glob("*.tar")):
        problem = "holds an unfinished packing of other images or with other options"
        raise DataError(str(output), f"{problem}. Delete the folder, choose another, or use the same options")
    _write_text(file, plan)


def _check_space(output: Path, indices: dict[Split, Index], options: Options) -> None:
    """Raise DataError if copies of the images do not fit onto the disk."""
    if options.shorter_side is not None:
        return
    needed = sum(int(index.num_bytes.sum()) + 1536 * len(index) for index in indices.values())
    needed -= sum(file.stat().st_size for file in output.glob("*.tar"))
    free = shutil.disk_usage(output).free
    if needed > free:
        raise DataError(str(output), f"the disk has {in_bytes(free)} free, and the shards need {in_bytes(needed)} more")


def _write_text(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}")
    with temporary.open("w", encoding="utf-8", errors="surrogateescape") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Errors of the disk as DataError, with what to do."""
    try:
        yield
    except OSError as error:
        problem = f"cannot be written: {error.strerror or error}"
        raise DataError(
            str(output), f"{problem}. Finished shards are kept: the same command goes on after them"
        ) from error
