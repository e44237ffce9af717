"""The examples run, and are short."""

from __future__ import annotations

import io
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_images import encoded, pixels

import crlf
from crlf.methods import METHODS

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_it_is_short_and_says_how_it_is_called(path: Path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60 and f"python examples/{path.name}" in text


def test_a_folder_becomes_a_scikit_learn_model(tmp_path: Path, narrow: None):
    for seed in range(40):
        place = tmp_path / "photos" / ("cat", "dog")[seed % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{seed}.png").write_bytes(encoded(pixels(seed), "PNG"))
    example = runpy.run_path(str(EXAMPLES / "folder_to_sklearn.py"))
    found = example["main"](str(tmp_path / "photos"), 0.02, str(tmp_path / "run"))
    assert 0 <= found["accuracy"] <= 1 and -1 <= found["rand_index"] <= 1


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # of pyspark and of the sockets that it leaves open
def test_a_table_is_embedded_by_spark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two tasks on two workers of this machine: the embeddings of `crlf.load(RUN)` here."""
    pytest.importorskip("pyspark")
    if shutil.which("java") is None:
        pytest.skip("Spark needs a JRE: apt install default-jre-headless")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES.parent))
    files = {f"{seed:02}": encoded(pixels(seed), "PNG") for seed in range(40)}
    pq.write_table(pa.table({"id": list(files), "image": list(files.values())}), tmp_path / "images.parquet")
    recipe = crlf.Recipe(data="shapes", subset=64, batch_size=32, epochs=1)
    run = crlf.pretrain(recipe, out=tmp_path / "run", device="cpu")
    run.update_scores(image_shape=[3, 32, 32])
    example = runpy.run_path(str(EXAMPLES / "spark_embed.py"))
    spark = example["SparkSession"].builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    images = spark.read.parquet(str(tmp_path / "images.parquet")).repartition(2)
    rows = {row["id"]: row["embedding"] for row in example["embedded"](images, str(run.path)).collect()}
    spark.stop()
    asked = [Image.open(io.BytesIO(files[name])) for name in sorted(rows)]
    here = crlf.load(run, device="cpu").encode(asked)
    assert sorted(rows) == sorted(files)
    assert np.allclose(here, np.array([rows[name] for name in sorted(rows)]), atol=1e-4)


@pytest.mark.long
def test_a_method_of_ones_own_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, narrow: None, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(METHODS, "triplet", None)  # taken away again afterwards
    runpy.run_path(str(EXAMPLES / "new_method.py"), run_name="__main__")
    kNN = float(capsys.readouterr().out.splitlines()[-1].split()[1])
    assert kNN > 25  # of eight classes


@pytest.mark.long
def test_the_notebook_runs_and_keeps_its_pictures(tmp_path: Path):
    """With fewer images and epochs. `jupyter execute --inplace examples/search.ipynb` remakes the kept one."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    path = EXAMPLES / "search.ipynb"
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    pictures = ["image/png" in output.get("data", {}) for cell in code for output in cell.outputs]
    assert sum(pictures) == 3 and path.stat().st_size < 2**20
    assert sum(len(cell.source.splitlines()) for cell in code) < 60
    small = code[0].source.replace("epochs=4", "epochs=1, subset=200")
    assert small != code[0].source
    code[0].source = small
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "show the same shape" in str(code[-2].outputs)
    assert sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs) == 3
