"""The bytes and the text of a file of rows, unpacked, and never whole in memory."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from trueup.errors import DataError
from trueup.files import require_file

PACKINGS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
"""By the first bytes of a file."""
_ARCHIVES = {b"PK\x03\x04": "zip", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "rar"}
_MARKS = {b"\xff\xfe\x00\x00": "utf-32", b"\x00\x00\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked if they are packed, whatever its name says."""
    try:
        require_file(path)
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    with file:
        start = file.read(8)
        file.seek(0)
        packing = next((name for mark, name in PACKINGS.items() if start.startswith(mark)), None)
        if archive := next((name for mark, name in _ARCHIVES.items() if start.startswith(mark)), None):
            raise DataError(f"{path}: is a {archive} archive; unpack it, and name the file or folder that was in it")
        try:
            yield _unpacked(file, packing)
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if packing is None or getattr(error, "errno", None):
                raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
            raise DataError(f"{path}: its {packing} is cut off or damaged ({error}); fetch or write it again") from None


def _unpacked(file: IO[bytes], packing: str | None) -> IO[bytes]:
    match packing:
        case "gzip":
            return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
        case "bzip2":
            return bz2.BZ2File(file)
        case "xz":
            return lzma.LZMAFile(file)
        case "zstd":
            return _zstd(file)
    return file


def _zstd(file: IO[bytes]) -> IO[bytes]:
    import pyarrow

    stream: Any = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), "zstd")
    return stream


class _Counted(io.BufferedIOBase):
    """A stream that knows how many bytes of it were read."""

    name = "rows"

    def __init__(self, stream: IO[bytes]):
        self._stream = stream
        self._start = stream.read(4)
        self.count = 0
        self.encoding = next((name for mark, name in _MARKS.items() if self._start.startswith(mark)), "utf-8-sig")

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        return b"".join(iter(self.read1, b""))  # only the whole is asked for

    def read1(self, size: int = -1, /) -> bytes:
        data, self._start = self._start or self._stream.read(max(size, 2**16)), b""
        self.count += len(data)
        return data


@contextmanager
def text_of(path: Path, newline: str) -> Iterator[io.TextIOWrapper]:
    """The text of a file: UTF-8, or UTF-16 and UTF-32 where the byte order mark says so.

    newline  as for `open`: where lines end
    """
    with opened(path) as stream:
        counted = _Counted(stream)
        try:
            yield io.TextIOWrapper(counted, encoding=counted.encoding, newline=newline)
        except UnicodeDecodeError as error:
            name = "UTF-8" if counted.encoding == "utf-8-sig" else counted.encoding.upper()
            place = counted.count - len(error.object) + error.start
            raise DataError(f"{path}: not {name} ({error.reason} at byte {place}); save it as UTF-8") from None
