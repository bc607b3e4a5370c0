"""Build contexts: what is sent, what is refused."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from manyoyo_mcp.config import Settings
from manyoyo_mcp.errors import ContextRefused, InvalidArgument
from manyoyo_mcp.sessions.context import NO_ROOTS, _open_inside, prepare


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    (root / "src").mkdir(parents=True)
    (root / "Dockerfile").write_text("FROM scratch\n")
    (root / "src" / "a.py").write_text("print(1)\n")
    (root / "secret.env").write_text("x")
    (root / "src" / "b.log").write_text("x")
    return root


def settings(*roots: Path) -> Settings:
    return Settings(roots=list(roots))


def names(root: Path, **changes: object) -> dict[str, tarfile.TarInfo]:
    context = prepare(settings(root), str(root), {}, "Dockerfile")
    with tarfile.open(fileobj=io.BytesIO(b"".join(context.stream()))) as archive:
        return {member.name: member for member in archive.getmembers()}


def test_all_of_a_directory_is_sent(project: Path) -> None:
    assert set(names(project)) == {"Dockerfile", "secret.env", "src", "src/a.py", "src/b.log"}


def test_dockerignore(project: Path) -> None:
    (project / ".dockerignore").write_text("# comment\n*.env\n**/*.log\nDockerfile\n!src/keep.log\n")
    (project / "src" / "keep.log").write_text("x")
    assert set(names(project)) == {".dockerignore", "Dockerfile", "src", "src/a.py", "src/keep.log"}


def test_dockerignore_of_one_dockerfile(project: Path) -> None:
    (project / ".dockerignore").write_text("src\n")
    (project / "Dockerfile.dockerignore").write_text("secret.env\n")
    assert "src/a.py" in names(project) and "secret.env" not in names(project)


@pytest.mark.parametrize("length", [250, 300])
def test_a_dockerfile_by_a_name_that_no_file_can_have(project: Path, length: int) -> None:
    with pytest.raises(InvalidArgument, match="There is no"):
        prepare(settings(project), str(project), {}, "a" * length)


def test_a_dockerignore_has_an_end(project: Path) -> None:
    with (project / ".dockerignore").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InvalidArgument, match="larger than"):
        names(project)


def test_a_file_that_becomes_a_pipe_holds_nothing_up(project: Path) -> None:
    os.mkfifo(project / "pipe")
    with pytest.raises(ContextRefused, match="no file any more"):
        _open_inside(project, "pipe")


def test_dockerignore_among_the_files(project: Path) -> None:
    files = {".dockerignore": b"*.log\nsecret.*\nDockerfile\n", "new.log": b"x", "kept.txt": b"x"}
    context = prepare(settings(project), str(project), files, "Dockerfile")
    with tarfile.open(fileobj=io.BytesIO(b"".join(context.stream()))) as archive:
        found = set(archive.getnames())
    assert found == {".dockerignore", "Dockerfile", "kept.txt", "src", "src/a.py", "src/b.log"}


def test_files_are_laid_over_the_directory(project: Path) -> None:
    context = prepare(settings(project), str(project), {"src/a.py": b"new", "Dockerfile": b"FROM x\n"}, "Dockerfile")
    with tarfile.open(fileobj=io.BytesIO(b"".join(context.stream()))) as archive:
        members = [member.name for member in archive.getmembers()]
        file = archive.extractfile("src/a.py")
        assert file is not None and file.read() == b"new"
    assert members.count("src/a.py") == 1
    assert context.dockerfile_text == "FROM x\n"


def test_a_file_that_goes_while_it_is_sent(project: Path) -> None:
    context = prepare(settings(project), str(project), {}, "Dockerfile")
    (project / "src" / "a.py").unlink()
    with pytest.raises(ContextRefused) as caught:
        list(context.stream())
    assert "src/a.py can't be read" in caught.value.message and ".dockerignore" in caught.value.hint


def test_links_inside_are_sent_as_links(project: Path) -> None:
    (project / "link").symlink_to("src/a.py")
    assert names(project)["link"].linkname == "src/a.py"


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "src/../../outside"])
def test_links_that_lead_out_are_refused(project: Path, target: str) -> None:
    (project / "link").symlink_to(target)
    with pytest.raises(ContextRefused) as caught:
        prepare(settings(project), str(project), {}, "Dockerfile")
    assert "link" in caught.value.message and ".dockerignore" in caught.value.hint


def test_a_dockerfile_that_is_a_link_out_is_refused(project: Path) -> None:
    (project / "Evil").symlink_to("/etc/passwd")
    (project / ".dockerignore").write_text("Evil\n")
    with pytest.raises((ContextRefused, InvalidArgument)):
        prepare(settings(project), str(project), {}, "Evil")


def test_a_dockerignore_that_is_a_link_out_is_refused(project: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("*.py\n")
    (project / ".dockerignore").symlink_to(tmp_path / "outside")
    with pytest.raises(ContextRefused, match=r"\.dockerignore is a link that leads out"):
        names(project)


@pytest.mark.parametrize("swapped", ["src/a.py", "src"])
def test_a_link_made_while_it_is_sent_is_not_followed(project: Path, tmp_path: Path, swapped: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.py").write_text("print(2)\n")
    context = prepare(settings(project), str(project), {}, "Dockerfile")
    (project / swapped).rename(tmp_path / "away")
    (project / swapped).symlink_to(outside / "a.py" if swapped.endswith(".py") else outside)
    sent = b""
    with pytest.raises(ContextRefused, match="leads out"):
        for piece in context.stream():
            sent += piece
    assert b"secret.env" in sent and b"print(2)" not in sent


@pytest.mark.parametrize("at", ["Dockerfile", "src/Dockerfile"])
def test_the_dockerfile_that_was_judged_is_the_one_that_is_sent(project: Path, at: str) -> None:
    """And last, so that it is what the builder reads by that name; nothing lies below a link, wherever that leads."""
    (project / at).write_text("FROM judged\n")
    context = prepare(settings(project), str(project), {"other": b"x"}, at)
    (project / at).write_bytes(b"FROM containers\xffstorage:x\n")
    if at != "Dockerfile":
        (project / "src").rename(project / "moved")
        (project / "src").symlink_to("moved")
        for name in ("a.py", "b.log"):
            (project / "moved" / name).write_text("x")
    if at != "Dockerfile":
        with pytest.raises(ContextRefused, match="below a link"):
            b"".join(context.stream())
        return
    with tarfile.open(fileobj=io.BytesIO(b"".join(context.stream()))) as archive:
        last = archive.getmembers()[-1]
        file = archive.extractfile(last)
        assert last.name == at and file is not None and file.read() == b"FROM judged\n"
        assert [member.name for member in archive.getmembers()].count(at) == 1


def test_hard_links_are_sent_whole(project: Path) -> None:
    os.link(project / "src" / "a.py", project / "hard")
    assert names(project)["hard"].isfile() and names(project)["hard"].size == 9


def test_outside_the_roots(project: Path, tmp_path: Path) -> None:
    with pytest.raises(ContextRefused) as caught:
        prepare(settings(project), str(tmp_path), {}, "Dockerfile")
    assert str(project) in caught.value.message
    (project / "out").symlink_to(tmp_path)
    with pytest.raises(ContextRefused):
        prepare(settings(project), str(project / "out"), {}, "Dockerfile")


@pytest.mark.parametrize("directory", ["/", "~"])
def test_never_all_of_a_machine_or_a_home(directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ContextRefused):
        prepare(settings(Path("/")), directory, {}, "Dockerfile")
    monkeypatch.chdir(Path(directory).expanduser())
    with pytest.raises(ContextRefused):
        prepare(Settings(roots=[]), ".", {}, "Dockerfile")


def test_ten_gigabytes_are_refused_at_once(project: Path) -> None:
    with (project / "big").open("wb") as file:
        file.truncate(10 << 30)
    with pytest.raises(ContextRefused) as caught:
        prepare(settings(project), str(project), {}, "Dockerfile")
    assert "big" in caught.value.message and "2 GiB" in caught.value.message


def test_a_large_file_is_streamed_in_pieces(project: Path) -> None:
    with (project / "big").open("wb") as file:
        file.truncate(64 << 20)
    context = prepare(settings(project), str(project), {}, "Dockerfile")
    assert max(map(len, context.stream())) <= 1 << 20


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no instruction"),
        (b"# only a comment\n", "no instruction"),
        (b"\x89PNG\0\xff", "not text"),
        (b"FROM x\n" * 150_000, "larger"),
    ],
)
def test_dockerfiles_that_are_none(project: Path, content: bytes, words: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        prepare(settings(project), None, {"Dockerfile": content}, "Dockerfile")
    assert words in caught.value.message


def test_a_missing_dockerfile_is_named(project: Path) -> None:
    with pytest.raises(InvalidArgument) as caught:
        prepare(settings(project), str(project), {}, "build/Dockerfile")
    assert "build/Dockerfile" in caught.value.message


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "a\0b", ""])
def test_paths_that_lead_out(project: Path, path: str) -> None:
    with pytest.raises(InvalidArgument):
        prepare(settings(project), None, {path: b"x", "Dockerfile": b"FROM x"}, "Dockerfile")
    with pytest.raises(InvalidArgument):
        prepare(settings(project), str(project), {}, path)


def test_where_no_directory_may_be_read_files_are_asked_for(project: Path) -> None:
    for directory in (".", str(project), "/dev/null"):
        with pytest.raises(ContextRefused) as refused:
            prepare(settings(*NO_ROOTS), directory, {}, "Dockerfile")
        assert "files=" in refused.value.hint and "/dev/null" not in str(refused.value)
    assert prepare(settings(*NO_ROOTS), None, {"Dockerfile": b"FROM scratch\n"}, "Dockerfile").count == 1
