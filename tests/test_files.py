import errno
import hashlib
import json
import os
import shutil
import signal
import stat
import sys
import threading
from pathlib import Path

import pytest

from adtr import files
from adtr.errors import AdtrError
from adtr.files import (
    append_line,
    check_disposable,
    check_writable,
    file_sha256,
    open_lines,
    parse_json,
    read_bounded,
    replace_file,
    replace_folder,
)
from adtr.locks import hold_file, hold_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def one_line(error: pytest.ExceptionInfo[AdtrError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "a.txt"
    replace_file(path, "grün")
    assert path.read_bytes() == "grün".encode()
    replace_file(path, b"\x00\r\n")
    assert path.read_bytes() == b"\x00\r\n"
    assert names(path.parent) == ["a.txt"]


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    full_disk(monkeypatch)
    with pytest.raises(AdtrError) as error:
        replace_file(path, "new")
    assert one_line(error) == f"cannot write {path}: {os.strerror(errno.ENOSPC)}; choose another output or make room"
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("cut", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: type[BaseException]
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def replace(_self: Path, _target: Path) -> None:
        raise cut

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(cut):
        replace_file(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_target_under_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(AdtrError) as error:
        replace_file(tmp_path / "file" / "a.txt", "new")
    assert one_line(error).startswith("cannot write ")
    with pytest.raises(AdtrError) as error, replace_folder(tmp_path / "file" / "model"):
        pytest.fail("there is no place for the draft")
    assert one_line(error).startswith("cannot write ")
    assert (tmp_path / "file").read_text() == "here"
    assert names(tmp_path) == ["file"]


def test_a_folder_in_the_files_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(AdtrError) as error:
        replace_file(tmp_path / "a.txt", "new")
    assert one_line(error).startswith("cannot write ")
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_a_plain_open(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        replace_file(tmp_path / "a.txt", "x")
        with replace_folder(tmp_path / "folder") as draft:
            replace_file(draft / "b.txt", "x")
        assert mode(tmp_path / "a.txt") == mode(tmp_path / "folder" / "b.txt") == 0o666 & ~umask
        assert mode(tmp_path / "folder") == 0o777 & ~umask
        assert os.umask(umask) == umask  # as it was
    finally:
        os.umask(before)


def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model"
    with replace_folder(path) as draft:
        (draft / "a").write_text("1")
        assert not path.exists()
        assert draft.parent == path.parent  # on the same disk, so that a rename suffices
    assert (path / "a").read_text() == "1"
    assert names(path.parent) == ["model"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").write_text("old")
    with replace_folder(path) as draft:
        (draft / "new").write_text("new")
        assert names(path) == ["old"]
    assert names(path) == ["new"]
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("cut", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("existing", [True, False])
def test_an_exception_inside_leaves_the_old_folder_and_no_litter(
    tmp_path: Path, cut: type[BaseException], existing: bool
) -> None:
    path = tmp_path / "model"
    if existing:
        path.mkdir()
        (path / "old").write_text("old")

    def half() -> None:
        with replace_folder(path) as draft:
            (draft / "new").write_text("new")
            raise cut

    with pytest.raises(cut):
        half()
    assert names(tmp_path) == (["model"] if existing else [])
    assert not existing or names(path) == ["old"]


def test_a_folder_on_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").write_text("old")
    full_disk(monkeypatch)
    with pytest.raises(AdtrError) as error, replace_folder(path) as draft:
        replace_file(draft / "new", "new")
    assert os.strerror(errno.ENOSPC) in one_line(error)
    assert names(tmp_path) == ["model"]
    assert names(path) == ["old"]


def test_a_failing_rename_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").write_text("old")
    rename = Path.rename
    monkeypatch.setattr(files, "_exchange", lambda _a, _b: False)  # as on a system that cannot

    def fails_for_drafts(self: Path, target: Path) -> Path:
        if target == path and not self.name.endswith(".old"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails_for_drafts)
    with pytest.raises(AdtrError, match="Input/output error"), replace_folder(path) as draft:
        (draft / "new").write_text("new")
    assert names(tmp_path) == ["model"]
    assert names(path) == ["old"]


def test_a_link_keeps_pointing_to_the_folder_that_was_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "models" / "v1", tmp_path / "current"
    target.mkdir(parents=True)
    (target / "old").write_text("old")
    link.symlink_to(target)
    with replace_folder(link) as draft:
        (draft / "new").write_text("new")
    assert link.is_symlink()
    assert names(link) == names(target) == ["new"]
    assert names(tmp_path) == ["current", "models"]
    assert names(tmp_path / "models") == ["v1"]


def test_the_current_folder_can_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    with replace_folder(Path()) as draft:
        (draft / "new").write_text("new")
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["new"]


def test_writability_is_known_before_the_work(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert names(tmp_path / "a" / "b") == []
    (tmp_path / "file").write_text("here")
    with pytest.raises(AdtrError, match="is a file, not a folder") as error:
        check_writable(tmp_path / "file")
    one_line(error)
    with pytest.raises(AdtrError, match=r"^cannot write ") as error:
        check_writable(tmp_path / "file" / "below")
    one_line(error)


def refusal(path: Path) -> str:
    """Why a folder of `a`, and perhaps `b`, may not take this place; empty if it may."""
    try:
        check_disposable(path, "a box", needs={"a"}, may_hold={"b"})
    except AdtrError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ([], ""),
        (["a"], ""),
        (["a", "b"], ""),
        (["b"], "exists and is not a box; choose another output"),
        (["c"], "exists and is not a box; choose another output"),
        (["a", "c"], "holds c, which is no part of a box; choose another output"),
    ],
)
def test_only_what_adtr_has_written_is_disposable(tmp_path: Path, held: list[str], says: str) -> None:
    path = tmp_path / "box"
    assert refusal(path) == ""
    path.mkdir()
    for name in held:
        (path / name).write_text("")
    assert refusal(path) == (f"{path} {says}" if says else "")


def test_what_cannot_be_replaced_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    assert refusal(tmp_path / "file") == f"{tmp_path / 'file'} is a file; choose another output"
    assert "a mount point" in refusal(Path("/"))
    monkeypatch.chdir(tmp_path)
    assert "the current folder" in refusal(Path())


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, (1 << 20) + 5])
def test_sha256_of_a_file(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()


# What a killed process leaves.


def test_the_draft_of_a_killed_process_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.draft").write_text("half of someth" * 1000)
    replace_file(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_a_draft_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / ".a.txt.draft").symlink_to(tmp_path / "precious")
    with pytest.raises(AdtrError, match="cannot write"):
        replace_file(tmp_path / "a.txt", "new")
    assert (tmp_path / "precious").read_text() == "precious"


def test_the_draft_folder_of_a_killed_process_is_emptied_first(tmp_path: Path) -> None:
    (tmp_path / ".model.draft/deep").mkdir(parents=True)
    (tmp_path / ".model.draft/deep/stale").write_text("stale")
    (tmp_path / ".model.draft/link").symlink_to(tmp_path)
    with replace_folder(tmp_path / "model") as draft:
        (draft / "new").write_text("new")
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["new"]


def test_where_folders_cannot_be_exchanged_the_old_one_is_put_back_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".model.old").mkdir()  # killed between the two renames
    (tmp_path / ".model.old/old").write_text("old")
    monkeypatch.setattr(files, "_exchange", lambda _a, _b: False)
    with replace_folder(tmp_path / "model") as draft:
        assert names(tmp_path / "model") == ["old"]
        (draft / "newer").write_text("newer")
    assert names(tmp_path / "model") == ["newer"]
    assert names(tmp_path) == ["model"]
    with replace_folder(tmp_path / "model") as draft:
        (draft / "new").write_text("new")
    assert names(tmp_path / "model") == ["new"]
    assert names(tmp_path) == ["model"]


@pytest.mark.skipif(sys.platform != "linux", reason="exchanges folders on Linux only")
def test_a_folder_is_never_absent_while_it_is_replaced(tmp_path: Path) -> None:
    path, done = tmp_path / "model", threading.Event()
    with replace_folder(path) as draft:
        (draft / "whole").write_text("whole")
    absent = 0

    def look() -> None:
        nonlocal absent
        while not done.is_set():
            absent += not (path / "whole").exists()

    watcher = threading.Thread(target=look)
    watcher.start()
    for _ in range(200):
        with replace_folder(path) as draft:
            (draft / "whole").write_text("whole")
    done.set()
    watcher.join()
    assert absent == 0
    assert names(tmp_path) == ["model"]


def test_one_folder_is_filled_by_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with replace_folder(path) as draft:
        (draft / "first").write_text("1")
        with pytest.raises(AdtrError) as error, replace_folder(path):
            pytest.fail("the draft is ours")
        assert one_line(error) == (
            f"another process is writing {path}; wait until it has ended, or choose another output"
        )
        with replace_folder(tmp_path / "other"):
            pass
    assert names(path) == ["first"]


def test_many_writers_of_one_file_leave_one_whole_content(tmp_path: Path) -> None:
    contents = [bytes([i]) * 100_000 for i in range(8)]
    threads = [threading.Thread(target=replace_file, args=(tmp_path / "a", content)) for content in contents * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_bytes() in contents
    assert names(tmp_path) == ["a"]


def test_a_lock_ends_with_its_block_and_its_process(tmp_path: Path) -> None:
    with hold_folder(tmp_path / "folder"), pytest.raises(AdtrError), hold_folder(tmp_path / "folder"):
        pytest.fail("held twice")
    child = os.fork()
    if not child:
        with hold_folder(tmp_path / "folder"), hold_file(tmp_path / "file"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with hold_folder(tmp_path / "folder"), hold_file(tmp_path / "file"):
        pass
    assert names(tmp_path / "folder") == []


# Lines.


def test_lines_are_added_whole_and_a_part_of_one_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert open_lines(path) == []
    append_line(path, '{"a": "grün"}')
    with path.open("ab") as file:
        file.write(b'{"half": ')
    append_line(path, '{"b": 2}')  # by another process, which goes on
    with path.open("ab") as file:
        file.write(b'{"whole, but for its end": 1}')
    assert open_lines(path) == ['{"a": "grün"}'.encode(), b'{"b": 2}']
    assert path.read_bytes().endswith(b'{"b": 2}\n')


def test_a_file_of_something_else_is_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text("my notes")
    with pytest.raises(AdtrError, match="something else than lines of JSON"):
        open_lines(path)
    assert path.read_text() == "my notes"


def test_a_line_for_a_full_disk_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    open_lines(path)
    append_line(path, "1")
    full_disk(monkeypatch)
    with pytest.raises(AdtrError, match="No space left on device; choose another output or make room"):
        append_line(path, "2")
    assert path.read_bytes() == b"1\n"


def test_lines_do_not_make_the_file_anew_that_has_vanished(tmp_path: Path) -> None:
    path = tmp_path / "folder/a.jsonl"
    path.parent.mkdir()
    open_lines(path)
    shutil.rmtree(path.parent)
    with pytest.raises(AdtrError, match="No such file or directory; choose another output"):
        append_line(path, "1")
    assert names(tmp_path) == []


def test_lines_of_many_writers_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    open_lines(path)

    def add(writer: int) -> None:
        for i in range(30):
            append_line(path, f'{{"writer": {writer}, "i": {i}, "long": "{"x" * 5000}"}}')

    threads = [threading.Thread(target=add, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert sorted((row["writer"], row["i"]) for row in found) == [(w, i) for w in range(4) for i in range(30)]


def test_what_may_never_end_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "file").write_bytes(b"12345")
    for path, words in (("pipe", "no regular file"), ("link", "no regular file"), ("file", "more than 4 bytes")):
        with pytest.raises(OSError, match=words):
            read_bounded(tmp_path / path, 4)
    assert read_bounded(tmp_path / "file", 5) == b"12345"


def test_deep_json_is_no_json() -> None:
    assert parse_json(b'{"a": [1]}') == {"a": [1]}
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000 + "]" * 100_000)
