"""The tree's own rules, those that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import modality_forcing

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "modality_forcing"
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES = 350

# Modules without a twin test, with the reason. An entry that is no longer needed fails.
NO_TWIN: dict[str, str] = {}

# Top-level import name -> distribution, where the two differ by more than - and _.
DISTRIBUTION = {
    "PIL": "pillow",
    "absl": "absl-py",
    "google": "protobuf",
    "orbax": "orbax-checkpoint",
    "tensorboardX": "tensorboardx",
}

# Ways to run what a file says when it is read. `np.load` is safe by its default.
UNSAFE = re.compile(
    r"allow_pickle\s*=\s*True|torch\.load\(|yaml\.(unsafe_|full_)?load\(|read_pickle\(|\b(eval|exec)\(|shell\s*=\s*True"
)
UNSAFE_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
}

# Modules that act on files of disks without paths.py, with the reason. Theirs are never in buckets.
MAY_TOUCH_FILES: dict[str, str] = {
    "paths": "the door itself",
    "app/": "temporary files of this machine",
    "mirror": "local folders in place of addresses",
    "locks": "flock; leases are for buckets",
    "leases": "/proc of this machine",
    "distributed": "/dev and /sys of this machine",
    "train/throughput": "/proc of this machine",
    "compilation_cache": "caches of disks; jax itself writes those of buckets",
    "config_file": "configs of the package",
    "sweeps/workdir": "code of the package",
    "data/shared_memory": "/dev/shm",
    "datasets/": "unpacked data sets, see paths.require_disk",
    "evaluation/benchmarks/": "the same",
    "evaluation/estimators": "the same, and modules of users",
    "encoders/": "weights, which mirror.on_disk brings to a disk",
    "storage/shards": "the temporary file of a mirror",
    "safetensors_io": "the files of a mirror, tensor by tensor",
    "export/job": "the rename of a folder of a disk",
    "export/run": "runs without this package",
}
TOUCHES = {
    *("exists", "is_file", "is_dir", "iterdir", "glob", "rglob", "unlink", "mkdir", "rmdir"),
    *("rename", "touch", "stat", "read_text", "read_bytes", "write_text", "write_bytes"),
}
OS_TOUCHES = re.compile(
    r"shutil\.|os\.(remove|unlink|rename|replace|listdir|scandir|makedirs|mkdir|rmdir|stat|walk)$"
    r"|os\.path\.(exists|isfile|isdir|getsize|getmtime|realpath|islink)$"
)

# Places that mean something on one machine only. The brackets keep this line from matching.
ELSEWHERE = re.compile(
    r"[/]work/|\b[s]hared/|[/]root\b|[p]ypi\.org|[p]ythonhosted|[f]ind-links|[e]xtra-index"
)
MAY_NAME_ELSEWHERE = {".ci/run"}  # looks for real samples beside the clone


def tracked() -> list[Path]:
    """The files of the repository: tracked, or new and not ignored; all without git."""
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        files = [ROOT / name for name in done.stdout.split("\0") if name]
    else:
        files = [
            path
            for path in ROOT.rglob("*")
            if not re.search(r"/(\.venv|\.git|__pycache__|[^/]*_cache|runs)/", str(path))
        ]
    return [path for path in files if path.is_file()]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def declared(extras: tuple[str, ...]) -> set[str]:
    """Distributions that pyproject.toml names as dependencies, with those of the given extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = list(project["dependencies"])
    for extra in extras:
        requirements += project["optional-dependencies"][extra]
    return {normal(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}  # pyright: ignore[reportOptionalSubscript]


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_modules_are_short(path: Path):
    lines = path.read_text().count("\n")
    assert lines <= MOST_LINES, f"{lines} lines: is it two modules?"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_no_reader_can_execute_a_file(path: Path):
    text = path.read_text()
    assert not UNSAFE.findall(text)
    # The latter runs without this package.
    reads_numpy = (PACKAGE / "numpy_io.py", PACKAGE / "export/run.py")
    if path.is_relative_to(PACKAGE) and path not in reads_numpy:
        assert not re.search(r"\bnp\.load\(|\bzipfile\.ZipFile\(", text), "numpy_io reads these"
    assert not imported(path) & UNSAFE_MODULES


def file_actions(path: Path) -> list[str]:
    """Calls that act on files, but for those of paths.py: "line: call"."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        call = ast.unparse(node.func)
        owner, _, name = call.rpartition(".")
        direct = name in TOUCHES and owner and owner not in ("paths", "buckets", "self")
        if direct or call == "open" or OS_TOUCHES.match(call):
            found.append(f"{node.lineno}: {call}")
    return found


def test_files_are_touched_through_one_door():
    found = {}
    for path in MODULES:
        name = path.relative_to(PACKAGE).with_suffix("").as_posix()
        if actions := file_actions(path):
            found[name] = actions
    excused = {name for name in found if any(fits(name, one) for one in MAY_TOUCH_FILES)}
    wrong = {name: found[name] for name in found.keys() - excused}
    assert wrong == {}, "go through paths.py, or name the module in MAY_TOUCH_FILES with the reason"
    unused = [one for one in MAY_TOUCH_FILES if not any(fits(name, one) for name in found)]
    assert unused == []


def fits(module: str, entry: str) -> bool:
    return module == entry or (entry.endswith("/") and module.startswith(entry))


@pytest.mark.parametrize("path", [path for path in tracked() if path.suffix == ".py"], ids=relative)
def test_files_have_a_module_docstring(path: Path):
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, "no module docstring"
    assert docstring.splitlines()[0].rstrip().endswith((".", ":", ")")), (
        "the first line is a whole sentence"
    )


def test_no_file_names_a_path_of_one_machine():
    found = []
    for path in tracked():
        if relative(path) in MAY_NAME_ELSEWHERE:
            continue
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue  # an image
        found += [
            f"{relative(path)}:{number}: {line.strip()}"
            for number, line in enumerate(lines, 1)
            if ELSEWHERE.search(line)
        ]
    assert found == []


def test_each_module_has_its_twin_test():
    missing = set()
    for path in MODULES:
        below = path.relative_to(PACKAGE)
        twin = ROOT / "tests/unit" / below.with_name(f"test_{path.name}")
        if path.stem != "__init__" and not twin.exists():
            missing.add(relative(path))
    assert missing == set(NO_TWIN), "write a test, or name the module in NO_TWIN with the reason"


def test_package_imports_only_declared_dependencies():
    allowed = declared(
        extras=(
            *("tfds", "datasets", "encoders", "exr", "completion", "wandb", "beam", "stablehlo"),
            *("app", "heif", "fid"),
        )
    )
    for path in MODULES:
        others = imported(path) - sys.stdlib_module_names - {"modality_forcing"}
        assert {normal(DISTRIBUTION.get(name, name)) for name in others} <= allowed, relative(path)


def test_each_dependency_is_used():
    used = {normal(DISTRIBUTION.get(name, name)) for path in MODULES for name in imported(path)}
    assert declared(extras=()) <= used


def test_citation_has_the_current_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {modality_forcing.__version__}\n" in citation


def test_changelog_has_an_unreleased_section():
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text()
