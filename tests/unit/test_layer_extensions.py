"""Which files of a layer are extensions, and what they are started with."""

from __future__ import annotations

from pathlib import Path

import pytest

from rootfs import environ
from rootfs.extensions import DISABLED, MOST_LISTED, ExtensionProblem, external
from rootfs.runtimes import Runtime


def layer(tmp_path: Path, *names: str) -> Path:
    folder = tmp_path / "extensions"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return tmp_path


def test_every_file_directly_in_the_folder_in_the_order_of_names(tmp_path: Path) -> None:
    opt = layer(tmp_path, "b", "a", ".hidden", "not-executable", "Z", "with space")
    (opt / "extensions" / "folder").mkdir()
    (opt / "extensions" / "folder" / "inner").touch()
    (opt / "extensions" / "link").symlink_to("nowhere")
    (opt / "extensions" / "to-folder").symlink_to("folder")
    names = (".hidden", "Z", "a", "b", "link", "not-executable", "to-folder", "with space")
    assert external(opt) == names


def test_where_there_is_none(tmp_path: Path) -> None:
    assert external(None) == ()
    assert external(tmp_path) == ()
    (tmp_path / "extensions").touch()
    assert external(tmp_path) == ()


def test_the_marker(tmp_path: Path) -> None:
    opt = layer(tmp_path, "a")
    (opt / DISABLED).touch()
    assert external(opt) == ()


def test_however_many_there_are_it_is_enough_to_say_too_many(tmp_path: Path) -> None:
    opt = layer(tmp_path, *(f"{number:03}" for number in range(100)))
    assert external(opt) == tuple(f"{number:03}" for number in range(MOST_LISTED))


@pytest.mark.parametrize("name", ["a\nb", "\udcff", "\x1b[2J"])
def test_a_name_that_no_header_can_say(tmp_path: Path, name: str) -> None:
    with pytest.raises(ExtensionProblem, match="rename it"):
        external(layer(tmp_path, name))


def test_an_extension_is_told_what_a_runtime_is_but_for_what_is_the_runtimes() -> None:
    runtime = Runtime("python3.11", "python", "/usr/bin/python3.11", "/usr")
    whole = environ.function_environment(
        runtime, name="f", handler="a.b", memory_mb=128, user={"MINE": "1"}
    )
    told = environ.extension_environment(whole)
    assert {key: whole[key] for key in told} == told
    assert set(whole) - set(told) == {
        "_HANDLER",
        "_LAMBDA_TELEMETRY_LOG_FD",
        "AWS_EXECUTION_ENV",
        "AWS_LAMBDA_LOG_GROUP_NAME",
        "AWS_LAMBDA_LOG_STREAM_NAME",
        "LAMBDA_RUNTIME_DIR",
        "LAMBDA_TASK_ROOT",
    }


@pytest.mark.parametrize(
    ("region", "zone"),
    [
        ("us-east-1", "use1-az1"),
        ("us-west-2", "usw2-az1"),
        ("eu-central-1", "euc1-az1"),
        ("ap-southeast-2", "apse2-az1"),
        ("ap-northeast-1", "apne1-az1"),
        ("ap-south-1", "aps1-az1"),
        ("sa-east-1", "sae1-az1"),
        ("us-gov-west-1", "usgw1-az1"),
        ("cn-northwest-1", "cnnw1-az1"),
    ],
)
def test_a_zone_is_named_after_its_region(region: str, zone: str) -> None:
    assert environ.zone_id(region) == zone
