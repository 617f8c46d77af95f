"""metrics.jsonl: valid whatever happens, and read as one uninterrupted run would have written it."""

from __future__ import annotations

import json
import logging
import resource
from pathlib import Path
from typing import Any

import pytest

from resnet_dist.errors import StorageError
from resnet_dist.telemetry.json_lines import Follower
from resnet_dist.telemetry.metrics_file import MetricsFile, NoSink, metrics_record, read_metrics, unwritten

Record = dict[str, Any]


def train(step: int, loss: float = 1.0) -> Record:
    return {"kind": "train", "step": step, "epoch": step / 10, "loss": loss}


def evaluation(step: int, top1: float = 0.5) -> Record:
    return {"kind": "eval", "step": step, "top1": top1, "num_samples": 100}


def event(step: int, name: str, **detail: Any) -> Record:
    return {"kind": "event", "step": step, "event": name, "detail": detail}


def written(path: Path, *records: Record) -> Path:
    sink = MetricsFile(path)
    for record in records:
        sink.write(record)
    sink.close()
    return path


def test_records_come_back_in_order(tmp_path: Path) -> None:
    records = [event(0, "started"), train(1), evaluation(1), train(2), event(2, "finished", seconds=1.5)]
    assert read_metrics(written(tmp_path / "new" / "metrics.jsonl", *records)) == records


def test_a_record_is_in_the_file_as_soon_as_it_was_written(tmp_path: Path) -> None:
    sink = MetricsFile(tmp_path / "m")
    sink.write(train(1))
    assert read_metrics(tmp_path / "m") == [train(1)]
    sink.close()


def test_the_bottleneck_event_of_version_0_1_has_its_present_name(tmp_path: Path) -> None:
    records = read_metrics(written(tmp_path / "m", event(3, "verdict", text="bound by input")))
    assert records == [event(3, "bottleneck", text="bound by input")]


def test_a_later_attempt_appends(tmp_path: Path) -> None:
    written(tmp_path / "m", train(1))
    written(tmp_path / "m", train(2))
    assert read_metrics(tmp_path / "m") == [train(1), train(2)]


def test_a_number_that_is_not_finite_becomes_null(tmp_path: Path) -> None:
    record = {**train(1, float("nan")), "more": {"low": -float("inf"), "list": [float("inf"), 2.5]}}
    written(tmp_path / "m", record)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    line = json.loads((tmp_path / "m").read_text(), parse_constant=refuse)
    assert line == {"kind": "train", "step": 1, "epoch": 0.1, "loss": None, "more": {"low": None, "list": [None, 2.5]}}


@pytest.mark.parametrize("size", range(1, len(json.dumps(train(2)))))
def test_a_torn_last_line_spoils_neither_reading_nor_the_next_attempt(tmp_path: Path, size: int) -> None:
    written(tmp_path / "m", train(1))
    with (tmp_path / "m").open("ab") as file:
        file.write(json.dumps(train(2)).encode()[:size])
    assert read_metrics(tmp_path / "m") == [train(1)]
    written(tmp_path / "m", event(1, "started"), train(2))
    assert read_metrics(tmp_path / "m") == [train(1), event(1, "started"), train(2)]


def test_a_whole_last_line_without_its_newline_counts(tmp_path: Path) -> None:
    (tmp_path / "m").write_text(json.dumps(train(1)))
    written(tmp_path / "m", train(2))
    assert read_metrics(tmp_path / "m") == [train(1), train(2)]


def test_lines_that_are_no_records_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = [b"\0\0\0\0", b"\xff\xfe", b"[1]", b'{"kind": "train"}', b'{"kind": "other", "step": 1}']
    (tmp_path / "m").write_bytes(b"\n".join(broken) + b"\n" + json.dumps(train(3)).encode() + b"\n")
    with caplog.at_level(logging.WARNING):
        assert read_metrics(tmp_path / "m") == [train(3)]
        assert read_metrics(tmp_path / "m") == [train(3)]
    first = r"line 1 begins with '\x00\x00\x00\x00\n'"
    assert caplog.messages == [f"{tmp_path / 'm'}: ignored 5 lines that cannot be read; {first}"]


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1}, {"step": 2.0}, {"step": None}, {"loss": "low"}, {"loss": [1]}, {"epoch": {}}, {"sample_ids": 1.5},
        {"images_per_s": True}, {"kind": "event"}, {"event": "started"}, {"detail": {"total_steps": "8"}},
        {"detail": 3},
    ],
)  # fmt: skip
def test_a_record_with_a_value_of_another_type_is_dropped(tmp_path: Path, change: Record) -> None:
    lines = [json.dumps(record) for record in ({**train(1), **change}, train(2))]
    (tmp_path / "m").write_text("\n".join(lines) + "\n")
    assert read_metrics(tmp_path / "m") == [train(2)]


def test_a_line_of_any_length_and_the_lines_around_it_are_read(tmp_path: Path) -> None:
    with (tmp_path / "m").open("wb") as file:
        for record in (train(1), {**train(2), "long": "x" * 3_000_000}, train(3)):
            file.write(json.dumps(record).encode() + b"\r\n")
    assert read_metrics(tmp_path / "m") == [train(1), train(3)]


def test_a_follower_yields_the_records_of_complete_lines_and_leaves_out_what_is_none(tmp_path: Path) -> None:
    file = tmp_path / "m"
    written(file, train(1))
    follower = Follower(file, metrics_record)
    with file.open("ab") as more:
        more.write(b'{"kind": "train", "st\n' + json.dumps(train(2)).encode() + b'\n{"kind": null}\n[]\n{"kind": ')
    assert list(follower.new_records()) == [train(2)]
    with file.open("ab") as more:
        more.write(b'"train", "step": 3}\n')
    assert list(follower.new_records()) == [{"kind": "train", "step": 3}]


def test_steps_that_a_resumed_attempt_does_again_count_once(tmp_path: Path) -> None:
    first = [event(0, "started"), train(1), train(2), evaluation(2), train(3), train(4), evaluation(4)]
    second = [event(2, "started"), train(3, loss=0.5), train(4, loss=0.25)]
    assert read_metrics(written(tmp_path / "m", *first, *second)) == [*first[:4], *second]


def test_steps_that_the_resumed_attempt_has_not_reached_yet_are_gone(tmp_path: Path) -> None:
    records = [event(0, "started"), train(1), train(50), event(50, "saved"), event(1, "started")]
    assert read_metrics(written(tmp_path / "m", *records)) == [*records[:2], event(1, "started")]


def test_an_attempt_that_starts_over_leaves_nothing_of_the_one_before(tmp_path: Path) -> None:
    records = [train(1), evaluation(2), event(0, "started"), train(1, loss=9.0)]
    assert read_metrics(written(tmp_path / "m", *records)) == records[2:]


def test_of_the_same_kind_and_step_the_last_counts_but_events_all_stay(tmp_path: Path) -> None:
    records = [train(1), evaluation(1, 0.1), event(1, "saved"), event(1, "slow"), train(1, 2.0), evaluation(1, 0.2)]
    assert read_metrics(written(tmp_path / "m", *records)) == records[2:]


def test_an_evaluation_beside_training_is_where_one_in_turn_would_be(tmp_path: Path) -> None:
    late = {**evaluation(2, 0.2), "beside": True}
    records = [event(0, "started"), train(1), train(2), train(3), event(3, "started"), train(4), late]
    assert read_metrics(written(tmp_path / "m", *records)) == [*records[:3], late, *records[3:6]]
    again = [event(1, "started"), train(2)]  # the run goes back before that step: it will be evaluated again
    assert read_metrics(written(tmp_path / "m", *again)) == [*records[:2], *again]


@pytest.mark.parametrize("record", [{"step": 1}, {"kind": "train"}, {"kind": "other", "step": 1}])
def test_a_record_without_kind_or_step_is_refused(tmp_path: Path, record: Record) -> None:
    sink = MetricsFile(tmp_path / "m")
    with pytest.raises(ValueError, match="a record needs a step and a kind"):
        sink.write(record)
    sink.close()
    assert (tmp_path / "m").read_bytes() == b""


def test_on_a_full_disk_lines_wait_and_what_never_fits_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = MetricsFile(tmp_path / "m")
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))  # no file of this process can grow
    try:
        sink.write(train(1))
        sink.write(train(2))
        assert [record.message for record in caplog.records] == [
            f"{tmp_path / 'm'}: File too large; lines are kept in memory until they can be written"
        ]
        sink.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
    assert "2 lines could not be written" in caplog.text


def test_lines_that_waited_are_written_when_there_is_space_again(tmp_path: Path) -> None:
    sink = MetricsFile(tmp_path / "m")
    sink.write(train(1))
    size, (before, most) = (tmp_path / "m").stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, most))  # there is space for the beginning of a line
    try:
        sink.write(train(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
    assert (tmp_path / "m").stat().st_size == size + 5
    sink.write(train(3))
    sink.close()
    assert read_metrics(tmp_path / "m") == [train(1), train(2), train(3)]


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        MetricsFile(tmp_path / "file" / "metrics.jsonl")


def test_closing_twice_is_fine(tmp_path: Path) -> None:
    sink = MetricsFile(tmp_path / "m")
    sink.write(train(1))
    sink.close()
    sink.close()


def test_the_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sink = NoSink()
    sink.write(train(1))
    sink.close()
    assert list(tmp_path.iterdir()) == []


# --- records that a killed worker had not written


def test_records_that_the_file_has_are_not_unwritten(tmp_path: Path) -> None:
    path = written(tmp_path / "m", event(0, "started"), train(1), train(2), evaluation(2))
    late = [{**train(2), "step_time_s": 0.5}, evaluation(2), train(3)]
    assert unwritten(path, late) == [train(3)]
    assert unwritten(path, []) == []


def test_records_of_an_attempt_that_went_further_and_was_left_do_not_count(tmp_path: Path) -> None:
    path = written(tmp_path / "m", event(0, "started"), train(1), train(2), train(3), event(1, "started"), train(2))
    assert unwritten(path, [train(2), train(3)]) == [train(3)]


def test_events_are_told_apart_by_their_image_epoch_and_rank(tmp_path: Path) -> None:
    path = written(tmp_path / "m", event(3, "bad_image", path="a"), event(3, "epoch_complete", epoch=1))
    other = [event(3, "bad_image", path="b"), event(3, "epoch_complete", epoch=2), event(3, "straggler", rank=1)]
    assert unwritten(path, [event(3, "bad_image", path="a"), event(3, "epoch_complete", epoch=1), *other]) == other


def test_without_a_file_all_records_are_unwritten(tmp_path: Path) -> None:
    assert unwritten(None, [train(1)]) == unwritten(tmp_path / "missing", [train(1)]) == [train(1)]
