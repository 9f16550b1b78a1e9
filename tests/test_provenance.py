"""The commit that records name is that of the code which trained, or none."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from nb_lib.lab import provenance

COMMIT = provenance.commit.__wrapped__  # asked anew each time
SHORT = re.compile("[0-9a-f]{12}")


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", folder, *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=variables).stdout.strip()


def head(folder):
    return git(folder, "rev-parse", "--short=12", "HEAD")


def repository(folder, message):
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "-q")
    (folder / "their.py").write_text(message)
    git(folder, "add", "their.py")
    git(folder, "commit", "-q", "-m", message)


@pytest.fixture
def installed(monkeypatch):
    """Put a package in a folder and have provenance believe that it is the one that is loaded."""
    monkeypatch.delenv("NB_LIB_COMMIT", raising=False)

    def install(folder):
        for name in ("__init__.py", "lab/__init__.py", "lab/provenance.py"):
            file = folder / "nb_lib" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        monkeypatch.setattr(provenance, "__file__", str(folder / "nb_lib/lab/provenance.py"))
        return folder / "nb_lib"

    return install


@pytest.fixture
def tracked(installed, tmp_path):
    """A package that its repository has, and nothing changed."""
    package = installed(tmp_path / "ours")
    repository(tmp_path / "ours", "ours")
    git(package, "add", ".")
    git(package, "commit", "-q", "-m", "the package")
    return package


def ignored(folder):
    (folder / ".gitignore").write_text("site-packages\n")


def same_names(folder):
    """Their project has files of the package's names elsewhere."""
    for name in ("provenance.py", "__init__.py", "lab/provenance.py"):
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
        git(folder, "add", name)
    git(folder, "commit", "-q", "-m", "alike")


def staged(folder):
    git(folder, "add", "site-packages")


def without_commits(folder):
    shutil.rmtree(folder / ".git")
    git(folder, "init", "-q")
    staged(folder)


def broken(folder):
    (folder / ".git/HEAD").write_text("nonsense")


@pytest.mark.parametrize("case", [lambda folder: None, ignored, same_names, staged, without_commits, broken])
def test_within_another_projects_repository_the_commit_is_unknown(case, installed, tmp_path, monkeypatch):
    repository(tmp_path, "theirs")
    installed(tmp_path / "site-packages")
    case(tmp_path)
    assert COMMIT() == "unknown"
    for given, expected in (("abc", "abc"), ("", "unknown")):
        monkeypatch.setenv("NB_LIB_COMMIT", given)
        assert COMMIT() == expected


@pytest.mark.parametrize(
    "variables",
    [("GIT_DIR",), ("GIT_DIR", "GIT_WORK_TREE"), ("GIT_DIR", "GIT_INDEX_FILE")],
    ids=" ".join,
)
def test_in_a_hook_of_another_repository_the_commit_is_that_of_the_package(variables, tracked, tmp_path, monkeypatch):
    """Git tells its hooks by variables which repository they are of."""
    theirs = tmp_path / "theirs"
    repository(theirs, "theirs")
    values = {"GIT_DIR": theirs / ".git", "GIT_WORK_TREE": theirs, "GIT_INDEX_FILE": theirs / ".git/index"}
    for name in variables:
        monkeypatch.setenv(name, str(values[name]))
    assert COMMIT() == head(tracked)


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (lambda package: (package / "__init__.py").write_text("changed"), True),
        (lambda package: (package / "lab/provenance.py").unlink(), True),
        (lambda package: (package / "lab/new.py").write_text("of no commit"), True),
        (lambda package: (package.parent / "their.py").write_text("beside the package"), False),
        (lambda package: (package / "lab/notes~").write_text("no code"), False),
    ],
    ids=["changed", "removed", "untracked", "elsewhere", "no code"],
)
def test_a_tree_with_other_code_than_its_commits_says_so(change, counts, tracked):
    assert COMMIT() == head(tracked)
    change(tracked)
    assert COMMIT() == head(tracked) + ("+changes" if counts else "")


def test_in_a_worktree_the_commit_is_its_own(tracked, tmp_path, monkeypatch):
    other = tmp_path / "another tree"
    git(tracked, "worktree", "add", "-q", "-b", "other", other)
    (other / "nb_lib/__init__.py").write_text("other")
    git(other, "commit", "-q", "-a", "-m", "other")
    monkeypatch.setattr(provenance, "__file__", str(other / "nb_lib/lab/provenance.py"))
    assert SHORT.fullmatch(COMMIT())
    assert COMMIT() == head(other) != head(tracked)


def test_through_a_link_the_commit_is_that_of_the_files(tracked, tmp_path, monkeypatch):
    """As in an environment that links to the source, in a repository of others."""
    repository(tmp_path / "theirs", "theirs")
    (tmp_path / "theirs/nb_lib").symlink_to(tracked)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "theirs/nb_lib/lab/provenance.py"))
    assert COMMIT() == head(tracked)


def no_git(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")


def another_owner(monkeypatch):
    """Which git refuses to read, unless safe.directory names the folder."""
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)


@pytest.mark.parametrize("case", [no_git, another_owner])
def test_where_git_does_not_answer_the_commit_is_unknown_or_what_is_given(case, tracked, monkeypatch):
    case(monkeypatch)
    assert COMMIT() == "unknown"
    monkeypatch.setenv("NB_LIB_COMMIT", "given")
    assert COMMIT() == "given"


def test_an_archive_of_the_package_has_no_commit(monkeypatch, tmp_path):
    monkeypatch.delenv("NB_LIB_COMMIT", raising=False)
    monkeypatch.setattr(provenance, "__file__", str(Path(tmp_path, "nb_lib.zip/nb_lib/lab/provenance.py")))
    assert COMMIT() == "unknown"
