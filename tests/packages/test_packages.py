"""Wheel and sdist: complete, the same each time, and of use where there is no checkout."""

import os
import re
import shutil
import sys
import sysconfig
import tarfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.docs.documents import INSTALL
from tests.packages.conftest import INSTALL_S, Built, build, make_venv, run
from tests.support.etcd_process import EtcdProcess
from tests.support.mounts import REPOSITORY, why_no_mounts

VERSION = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
NOT_IN_SDIST = (".ci/", ".gitignore")
MAN_PAGES = ("man1/dnpipefs.1", "man5/dnpipefs.5", "man8/mount.dnpipefs.8")

needs_mounts = pytest.mark.skipif(why_no_mounts() is not None, reason=why_no_mounts() or "")


def work_with(program: Path, directory: Path, options: Sequence[str]) -> None:
    """Mount, push, pull and unmount, in an empty directory."""

    def dnpipefs(name: str, *arguments: str) -> str:
        return run([program, name, *arguments], directory, environment={"HOME": str(directory)})

    mountpoint = directory / "dnp"
    mountpoint.mkdir()
    log = str(directory / "log")
    assert dnpipefs("mount", *options, "--log-file", log, "--no-allow-other", str(mountpoint)) == ""
    with (mountpoint / "builds").open("a") as topic:
        topic.write("build 7 is done\n")
    assert dnpipefs("push", *options, "builds", "build 8 is done") == ""
    assert (mountpoint / "builds").read_text() == "build 7 is done\nbuild 8 is done\n"
    assert dnpipefs("pull", *options, "builds") == "build 7 is done\nbuild 8 is done\n"
    assert dnpipefs("umount", str(mountpoint)) == ""
    assert list(mountpoint.iterdir()) == []
    mountpoint.rmdir()


def documented(label: str, **places: Path | str) -> str:
    """Return the commands of docs/install.md below a comment, with other paths in place of theirs."""
    text = INSTALL.labelled(label)
    for path, place in places.items():
        written = {"wheel": f"dist/dnpipefs-{VERSION}-py3-none-any.whl", "home": "~"}.get(
            path, "/" + path.replace("_", "/")
        )
        assert written in text, f"{label}: no {written}"
        text = text.replace(written, str(place))
    return f"set -e\n{text}"


def test_there_is_one_version(built: Built) -> None:
    assert built.wheel.name == f"dnpipefs-{VERSION}-py3-none-any.whl"
    assert built.sdist.name == f"dnpipefs-{VERSION}.tar.gz"
    assert f"## [{VERSION}]" in (REPOSITORY / "CHANGELOG.md").read_text()


def test_the_sdist_holds_all_that_is_tracked(built: Built) -> None:
    listed = run(["git", "ls-files", "-z"], REPOSITORY).split("\0")
    tracked = {name for name in listed if name and not name.startswith(NOT_IN_SDIST)}
    with tarfile.open(built.sdist) as sdist:
        held = {member.name.partition("/")[2] for member in sdist if member.isfile()}
    assert tracked - held == set(), "MANIFEST.in says what is in"
    generated = {name for name in held - tracked if not name.startswith("dnpipefs.egg-info/")}
    assert generated == {"PKG-INFO", "setup.cfg"}


@needs_mounts
def test_the_wheel_works_outside_the_checkout(
    built: Built, elsewhere: Path, tmp_path: Path, shared_server: EtcdProcess
) -> None:
    """With the dependencies of this checkout; `make test-packages` installs them anew."""
    python = make_venv(tmp_path / "venv", "--without-pip")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--quiet", "--disable-pip-version-check"]
    run([*pip, "install", "--no-deps", "--no-index", built.wheel], elsewhere)
    paths = sysconfig.get_paths(vars={"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")})
    (Path(paths["purelib"]) / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    imported = run([python, "-c", "import dnpipefs; print(dnpipefs.__file__)"], elsewhere)
    assert imported.startswith(str(tmp_path / "venv"))
    program = python.with_name("dnpipefs")
    assert run([program, "--version"], elsewhere) == f"dnpipefs, version {VERSION}\n"
    for page in MAN_PAGES:
        assert (tmp_path / "venv" / "share" / "man" / page).exists(), page
    work_with(program, elsewhere, ["--data-dir", str(elsewhere / "data")])
    work_with(program, elsewhere, ["--endpoints", shared_server.endpoint, "--prefix", "/packages/"])
    with_it = {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    commands = documented("a user's mount", home=elsewhere)
    commands = commands.replace("dnpipefs mount", f"dnpipefs mount --data-dir {elsewhere}/data")
    assert run(["bash", "-c", commands], elsewhere, environment=with_it) == "hello\n"
    for directory in ("bash-completion/completions", "zsh/vendor-completions", "fish/vendor_completions.d"):
        (elsewhere / directory).mkdir(parents=True)
    run(["bash", "-c", documented("completion for all", usr_share=elsewhere)], elsewhere, environment=with_it)
    assert {path.name for path in elsewhere.glob("*/*/*")} >= {"dnpipefs", "_dnpipefs", "dnpipefs.fish"}


@pytest.mark.thorough
def test_the_same_files_give_the_same_bytes(built: Built, tmp_path: Path) -> None:
    again = build(tmp_path / "again")
    assert again.wheel.read_bytes() == built.wheel.read_bytes()
    assert again.sdist.read_bytes() == built.sdist.read_bytes()


@pytest.mark.thorough
@needs_mounts
def test_a_host_gets_it_as_documented(built: Built, elsewhere: Path, tmp_path: Path) -> None:
    """With all dependencies, compiled here where there is no wheel."""
    (tmp_path / "local" / "bin").mkdir(parents=True)
    commands = documented(
        "venv", wheel=built.wheel, opt_dnpipefs=tmp_path / "dnpipefs", usr_local=tmp_path / "local"
    )
    run(["bash", "-c", commands], elsewhere, within_s=INSTALL_S)
    work_with(tmp_path / "local/bin/dnpipefs", elsewhere, ["--data-dir", str(elsewhere / "data")])
    for page in MAN_PAGES:
        assert (tmp_path / "local/share/man" / page).exists(), page


@pytest.mark.thorough
@needs_mounts
def test_pip_installs_the_sdist(built: Built, elsewhere: Path, tmp_path: Path) -> None:
    python = make_venv(tmp_path / "venv")
    run([python, "-m", "pip", "install", "--quiet", built.sdist], elsewhere, within_s=INSTALL_S)
    work_with(python.with_name("dnpipefs"), elsewhere, ["--data-dir", str(elsewhere / "data")])


@pytest.mark.thorough
def test_the_packages_of_the_distribution_exist(elsewhere: Path) -> None:
    if shutil.which("apt-get") is None:
        pytest.skip("no apt-get: their names are those of Debian")
    run(["apt-get", "--simulate", *INSTALL.labelled("packages").split()[1:]], elsewhere)


@pytest.mark.thorough
@needs_mounts
def test_the_oldest_dependencies_will_do(built: Built, elsewhere: Path, tmp_path: Path) -> None:
    """Those that pyproject.toml names as lower bounds, as far as they go with this Python."""
    python = make_venv(tmp_path / "venv")
    requirements = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    oldest = tmp_path / "oldest"
    oldest.write_text("".join(re.sub(">=", "==", line) + "\n" for line in requirements))
    run(
        [python, "-m", "pip", "install", "--quiet", "--constraint", oldest, built.wheel],
        elsewhere,
        within_s=INSTALL_S,
    )
    work_with(python.with_name("dnpipefs"), elsewhere, ["--data-dir", str(elsewhere / "data")])


@pytest.mark.thorough
@needs_mounts
@pytest.mark.parametrize("source", ["Debian", "PyPI"])
def test_pipx_installs_it(built: Built, source: str, elsewhere: Path, tmp_path: Path) -> None:
    pipx: Path | str | None = shutil.which("pipx", path="/usr/bin")
    if source == "PyPI":
        python = make_venv(tmp_path / "pipx")
        run([python, "-m", "pip", "install", "--quiet", "pipx"], elsewhere, within_s=INSTALL_S)
        pipx = python.with_name("pipx")
    if pipx is None:
        pytest.skip("no pipx: apt-get install pipx")
    home = tmp_path / "home"
    home.mkdir()
    places = {
        "HOME": str(home),
        "PIPX_HOME": str(home / "pipx"),
        "PIPX_BIN_DIR": str(home / "bin"),
        "PIPX_MAN_DIR": str(home / "man"),
    }
    command = documented("pipx", wheel=built.wheel).replace("pipx", str(pipx))
    # The Python that the tests have found to be one with headers.
    places["PIPX_DEFAULT_PYTHON"] = sys.executable
    run(["bash", "-c", command], elsewhere, within_s=INSTALL_S, environment=places)
    program = home / "bin" / "dnpipefs"
    assert run([program, "--version"], elsewhere) == f"dnpipefs, version {VERSION}\n"
    work_with(program, elsewhere, ["--data-dir", str(elsewhere / "data")])
    if source == "PyPI":
        assert sorted(path.name for path in (home / "man").rglob("*.[158]")) == [
            Path(page).name for page in MAN_PAGES
        ]
    run([pipx, "uninstall", "dnpipefs"], elsewhere, environment=places)
    assert not program.exists()
