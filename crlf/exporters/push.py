"""Push: an export of a run or a classifier, uploaded to the Hugging Face hub."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from crlf.errors import InputError, first_line, require
from crlf.exporters.export import export, opened
from crlf.runs.run import Run


def push(
    run: Run | str | Path,
    name: str,
    *,
    format: str = "onnx",
    license: str = "other",
    public: bool = False,
    data_dir: str | Path | None = None,
) -> str:
    """Export the frozen encoder of a run, or a classifier, and upload it to the Hugging Face hub.

    The token is that of `hf auth login`, or HF_TOKEN; HF_ENDPOINT names another hub.

    Args:
        run: the run folder; or that of a classifier, which `crlf finetune` makes.
        name: of the repository, such as someone/encoder; it is made if need be. What it holds else, stays.
        format: timm, onnx or torch, see `crlf export`.
        license: of the weights, for the model card, such as cc-by-4.0.
        public: let everybody see a repository that is made; without it, it is private.
        data_dir: where a data set known by name lies; by default the cache.

    Returns:
        The address of the repository.

    Raises:
        InputError: what `export` raises, a wrong name, no token, no network, or a hub that refuses; then nothing
            was uploaded.
    """
    run = opened(run)
    require("crlf push", "hub", "huggingface_hub")
    token = checked(name)
    with tempfile.TemporaryDirectory() as place:
        folder = export(run, format=format, out=Path(place, "export"), license=license, data_dir=data_dir)
        url = upload(folder, name, token, public)
    print(f"pushed to {url}")
    return url


def checked(name: str) -> str:
    """The token for the hub.

    Raises:
        InputError: there is none, or a repository cannot have this name.
    """
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"name {name!r} is not one of a repository: {first_line(error)}") from error
    token = get_token()
    if token is None:
        raise InputError("crlf push needs a token of the Hugging Face hub: `hf auth login`, or the variable HF_TOKEN")
    return token


def upload(folder: Path, name: str, token: str, public: bool) -> str:
    """Upload a folder's files to the repository of this name, made if need be; its address."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token, library_name="crlf")
    try:
        repository = api.create_repo(name, private=not public, exist_ok=True)
        files = [CommitOperationAdd(path.name, str(path)) for path in sorted(folder.iterdir())]
        # One commit: all of it arrives or nothing.
        api.create_commit(repository.repo_id, files, commit_message="Export of CRLF")
    except Exception as error:  # the client raises its own kinds, and those of its HTTP library, which has changed
        raise InputError(f"{name!r} was not pushed: {reason(error, api.endpoint)}") from error
    return str(repository)


def reason(error: Exception, endpoint: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{endpoint} refuses the token for it ({status}): `hf auth login` with one that may write"
    if status is None and ("Connect" in type(error).__name__ or "Timeout" in type(error).__name__):
        return f"{endpoint} cannot be reached"
    return first_line(error)
