"""Uploads an export of a run or a classifier to the Hugging Face Hub."""

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
    """Export the frozen encoder of a run, or a classifier, and upload it to the Hugging Face Hub.

    The token comes from `hf auth login` or HF_TOKEN; HF_ENDPOINT names another hub.

    Args:
        run: the run folder, or the folder of a classifier made by `crlf finetune`.
        name: the repository, such as someone/encoder; it is created if needed. Its other files stay.
        format: the kind of export: timm, onnx or torch; see `crlf export`.
        license: the licence of the weights for the model card, such as cc-by-4.0.
        public: make a new repository public; by default it is private.
        data_dir: the folder of the named data sets; by default the cache, ~/.cache/crlf.

    Returns:
        The address of the repository.

    Raises:
        InputError: an error of `export`, a wrong name, no token, no network, or no access. Nothing was uploaded.
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
        InputError: there is no token, or the name is not valid for a repository.
    """
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"name {name!r} is not valid for a repository: {first_line(error)}") from error
    token = get_token()
    if token is None:
        raise InputError("crlf push needs a token for the Hugging Face Hub: run `hf auth login` or set HF_TOKEN")
    return token


def upload(folder: Path, name: str, token: str, public: bool) -> str:
    """Upload a folder's files to a repository, which is created if needed; returns its address."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token, library_name="crlf")
    try:
        repository = api.create_repo(name, private=not public, exist_ok=True)
        files = [CommitOperationAdd(path.name, str(path)) for path in sorted(folder.iterdir())]
        # One commit, so that all files arrive or none.
        api.create_commit(repository.repo_id, files, commit_message="Export of CRLF")
    except Exception as error:  # the client raises errors of several libraries
        raise InputError(f"{name!r} was not pushed: {reason(error, api.endpoint)}") from error
    return str(repository)


def reason(error: Exception, endpoint: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{endpoint} denies access ({status}): run `hf auth login` with a token that may write"
    if status is None and ("Connect" in type(error).__name__ or "Timeout" in type(error).__name__):
        return f"{endpoint} cannot be reached"
    return first_line(error)
