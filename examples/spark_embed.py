"""Embed a table of images on a Spark cluster: `crlf.load(RUN)` inside `mapInPandas`.

    python examples/spark_embed.py RUN IMAGES.parquet OUT.parquet

IMAGES has the columns id and image (the bytes of a file); RUN lies where every worker can read it, and crlf is
installed there. OUT has the columns id and embedding.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import pandas as pd
from PIL import Image
from pyspark.sql import DataFrame, SparkSession


def embedded(images: DataFrame, run: str) -> DataFrame:
    """The columns id and embedding of a table with id and image."""

    def of_batches(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        import crlf

        encoder = crlf.load(run, device="auto")  # once a task
        for batch in batches:
            pictures = [Image.open(io.BytesIO(data)) for data in batch["image"]]
            yield pd.DataFrame({"id": batch["id"], "embedding": list(encoder.encode(pictures))})

    return images.mapInPandas(of_batches, "id string, embedding array<float>")


def main(run: str, images: str, out: str) -> None:
    spark = SparkSession.builder.appName("crlf").getOrCreate()
    embedded(spark.read.parquet(images), run).write.parquet(out)
    spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
