"""Download a file over HTTPS with a bar, and check it."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from crlf.errors import InputError

CHUNK = 2**18


def download(url: str, path: Path, md5: str, timeout: float = 30) -> None:
    """Write what the address holds to `path`. Certificates are checked, as urllib does by default.

    Raises:
        InputError: the server cannot be reached or answers with an error, or the MD5 of the file is another.
    """
    digest = hashlib.md5(usedforsecurity=False)  # guards against damage; the decoded pixels have their SHA-256
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer, path.open("wb") as file:
            total = int(answer.headers.get("Content-Length") or 0) or None
            with tqdm(total=total, unit="B", unit_scale=True, desc=path.name, leave=False) as bar:
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise InputError(f"no answer: {getattr(error, 'reason', None) or error or type(error).__name__}") from error
    if digest.hexdigest() != md5:
        raise InputError(f"its MD5 is {digest.hexdigest()}, not {md5}: damaged or cut short on the way")
