"""Finding raw files: in the folder the user names, in data/raw/NAME, or by download."""

from __future__ import annotations

import http.client
import os
import shutil
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from ..errors import InputError
from ..files import given, replacing, scratch
from .raw import allowance, open_regular, read_whole, too_much
from .registry import Dataset, RawFile

__all__ = ["Progress", "raw_files", "sha256_of"]

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done and how much there is (0: unknown)."""

_CHUNK = 1 << 20
_TIMEOUT = 30.0  # seconds without an answer
_RECORD = ".downloaded.sha256"


def raw_files(
    entry: Dataset, raw: str | os.PathLike[str] | None, verify: bool = True, progress: Progress | None = None
) -> dict[str, Path]:
    """Paths of a data set's raw files, by published name, checked against their checksums.

    Parameters
    ----------
    entry : Dataset
    raw : str or Path, optional
        The folder that holds them; nothing is downloaded then. By default `data/raw/NAME` of the
        current folder, filled by download.
    verify : bool
        False lets files with other checksums through.
    progress : Progress, optional

    Raises
    ------
    InputError
        For files that are missing and cannot be downloaded, and for other checksums.
    """
    root = Path(raw) if raw is not None else Path("data", "raw", entry.name)
    if raw is not None and not root.is_dir():
        raise InputError(f"{root}: no such folder; --raw names the folder that holds the raw files")
    folders = [root, root / entry.name, *(root / f for f in entry.folders)]
    found = _present(entry, folders)
    if found is None:
        if raw is not None:
            raise InputError(
                f"{root}: lacks {', '.join(_missing(entry, folders))}; put the files of {entry.name} there "
                "or leave out --raw to download them"
            )
        _download(entry, root, verify, progress)
        found = _present(entry, [root])
        if found is None:
            raise InputError(f"{root}: still lacks {', '.join(_missing(entry, [root]))} after the download")
    folder, files = found
    if verify:
        recorded = _recorded(folder) if raw is None else {}
        for file in files:
            _verify(folder / file.name, (*file.sha256, *recorded.get(file.name, ())))
    return {file.name: folder / file.name for file in files}


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    try:
        return given.sha256_of(path)
    except OSError as exc:
        raise InputError(f"{path}: cannot be read ({exc.strerror})") from None


def _present(entry: Dataset, folders: list[Path]) -> tuple[Path, tuple[RawFile, ...]] | None:
    for files in entry.file_sets:
        for folder in folders:
            if all((folder / file.name).is_file() for file in files):
                return folder, files
    return None


def _missing(entry: Dataset, folders: list[Path]) -> list[str]:
    """What the fullest folder lacks of the first file set."""
    lacking = [[f.name for f in entry.file_sets[0] if not (folder / f.name).is_file()] for folder in folders]
    return min(lacking, key=len)


def _verify(path: Path, accepted: tuple[str, ...], called: str = "") -> None:
    """Compare a file, which messages call otherwise where its name is a temporary one."""
    if not accepted:
        return
    found = sha256_of(path)
    if found not in accepted:
        raise InputError(
            f"{called or path}: checksum differs: expected sha256 {accepted[0]}, found {found}; "
            "fetch the file again, or use --no-verify if it is meant to differ"
        )


def _recorded(folder: Path) -> dict[str, tuple[str, ...]]:
    """Checksums of earlier downloads whose publisher's checksum is not in the registry."""
    try:
        lines = read_whole(folder / _RECORD).decode("utf-8", "replace").splitlines()
    except InputError:
        return {}
    pairs = (line.split("  ", 1) for line in lines if "  " in line)
    return {name: (digest,) for digest, name in pairs}


def _download(entry: Dataset, folder: Path, verify: bool, progress: Progress | None) -> None:
    names = ", ".join(f.name for f in entry.file_sets[0])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if entry.archive is not None:
            _download_archive(entry, folder, verify, progress)
            return
        for file in entry.file_sets[0]:
            target = folder / file.name
            if target.is_file():
                continue
            for path in (target, folder / _RECORD):
                if os.path.lexists(path) and not path.is_file():
                    raise InputError(f"{path}: is no regular file; remove it, or name a folder with --raw")
            with replacing(target) as partial:
                _stream(file.url, partial, target.name, progress)
                if verify and file.url_known:
                    _verify(partial, file.sha256, file.url)
                else:
                    with (folder / _RECORD).open("a", encoding="utf-8") as record:
                        record.write(f"{sha256_of(partial)}  {file.name}\n")
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as exc:
        reason = getattr(exc, "reason", None) or exc
        raise InputError(
            f"{entry.name}: cannot be downloaded ({reason}); put {names} in {folder}, or name "
            "their folder with --raw"
        ) from None
    except OSError as exc:
        raise InputError(
            f"{folder}: cannot be written ({exc.strerror or exc}); name a folder with the files with --raw"
        ) from None


def _download_archive(entry: Dataset, folder: Path, verify: bool, progress: Progress | None) -> None:
    assert entry.archive is not None
    name = Path(entry.archive.url).name
    try:
        with scratch(folder / name) as partial:
            _stream(entry.archive.url, partial, name, progress)
            if verify:
                _verify(partial, entry.archive.sha256, entry.archive.url)
            with open_regular(partial) as packed, zipfile.ZipFile(packed) as archive:
                names = [f"{entry.archive.prefix}/{file.name}" for file in entry.file_sets[0]]
                if sum(archive.getinfo(n).file_size for n in names) > allowance(packed):
                    raise too_much(Path(name), f"put the files in {folder} by hand")
                for file in entry.file_sets[0]:  # only these names, so no member can land elsewhere
                    target = folder / file.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    member = archive.open(f"{entry.archive.prefix}/{file.name}")
                    with member as source, replacing(target) as unpacked, unpacked.open("wb") as stream:
                        shutil.copyfileobj(source, stream, _CHUNK)
    except (zipfile.BadZipFile, zlib.error, KeyError, RuntimeError, EOFError):
        raise InputError(
            f"{entry.archive.url}: not the expected archive; put the files in {folder} by hand"
        ) from None


def _stream(url: str, into: Path, name: str, progress: Progress | None) -> None:
    """Download a file, which progress is told of by its name."""
    request = urllib.request.Request(url, headers={"User-Agent": "pdadmm"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as source, into.open("wb") as stream:
        total, done = int(source.headers.get("Content-Length") or 0), 0
        while chunk := source.read(_CHUNK):
            stream.write(chunk)
            done += len(chunk)
            if progress is not None:
                progress(f"download {name}", done, total)
    if total and done != total:
        raise ConnectionError(f"{url} ended after {done} of {total} bytes")
