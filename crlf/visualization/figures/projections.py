"""Maps: embeddings in a plane (PCA, t-SNE, UMAP), with each image's neighbours and cluster; kept in maps.npz.

A map of n of N embeddings (N, D) is a dict of arrays:

    rows        int64 (n,)       the rows of the embeddings that it shows, in random order
    pca         float32 (n, 2)
    tsne        float32 (n, 2)   unless they are fewer than 3 or all point the same way
    umap        float32 (n, 2)   where umap-learn is installed and n is at least 500
    near        int32 (n, k)     the places (0..n) of the k nearest others by cosine, the nearest first
    cosine      float32 (n, k)   their cosines
    cluster     int16 (n,)       which of K clusters of k-means, the largest first
    checksum    uint32 ()        of the embeddings that it is of
"""

from __future__ import annotations

import importlib.util
import io
import warnings
import zipfile
import zlib

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from crlf.data import thumbnails
from crlf.data.files.arrays import require_room
from crlf.errors import InputError, first_line
from crlf.metrics.cosine import top_k, unit
from crlf.runs.files import write_bytes
from crlf.runs.run import MAPS, Run
from crlf.visualization.figures.run_arrays import NotDrawn, embedded

SHOWN = 5000  # points in a map
NEAR = 8  # neighbours of an image
CLUSTERS = 10  # at most, where there are no labels; otherwise one a class
UMAP_FROM = 500  # images; its first use takes 10 s whatever their number


def sample(N: int) -> np.ndarray:
    """The rows that a map shows, in random order, so that no class covers the others. Each has a thumbnail."""
    return thumbnails.sample(N, SHOWN)


def maps(run: Run) -> dict[str, np.ndarray]:
    """The maps of a run's embeddings: the kept ones if they still fit, otherwise new ones, which are kept.

    Raises:
        NotDrawn: there are no embeddings, or fewer than two.
        InputError: they are damaged.
    """
    _, embeddings, _, names = embedded(run, least=2)
    made = kept(run, embeddings)
    if made is None:
        made = chart(embeddings, len(names) or clusters_for(len(embeddings)))
        buffer = io.BytesIO()
        np.savez(buffer, **made)  # type: ignore[arg-type]
        write_bytes(run.file(MAPS), buffer.getvalue())
    return made


def kept(run: Run, embeddings: np.ndarray) -> dict[str, np.ndarray] | None:
    """The contents of maps.npz; None if it is missing or belongs to other embeddings."""
    path = run.file(MAPS)
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as held:
            require_room(held.zip, held.files)
            found = dict(held)
        return found if int(found["checksum"]) == zlib.crc32(np.ascontiguousarray(embeddings).data) else None
    except (ValueError, OSError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{str(path)!r} cannot be read as maps: {first_line(error)}") from error


def chart(embeddings: np.ndarray, clusters: int) -> dict[str, np.ndarray]:
    """Every map of finite embeddings, float (N, D), N at least 2."""
    rows = sample(len(embeddings))
    shown = unit(embeddings[rows]).numpy()
    near, cosine = neighbours(shown, min(NEAR, len(rows) - 1))
    made = {"rows": rows, "pca": principal(embeddings, 2)[1][rows].astype(np.float32)}
    if len(rows) >= 3 and np.ptp(shown, axis=0).any():
        made["tsne"] = tsne(embeddings[rows])[0]
    if len(rows) >= UMAP_FROM and importlib.util.find_spec("umap"):
        made["umap"] = umap(shown)
    checksum = np.array(zlib.crc32(np.ascontiguousarray(embeddings).data), dtype=np.uint32)
    return made | {"near": near, "cosine": cosine, "cluster": cluster(shown, clusters), "checksum": checksum}


def neighbours(shown: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest other rows of each row of length 1, float (n, D), by cosine: int32 (n, k) and float32 (n, k)."""
    rows = torch.from_numpy(shown).float()
    found = top_k(rows, [rows], k + 1)
    own = found.rows == torch.arange(len(rows))[:, None]  # with copies, it may not be the first or not be included
    kept = own.int().argsort(dim=1, stable=True)[:, :k]
    return found.rows.gather(1, kept).int().numpy(), found.cosines.gather(1, kept).numpy()


def cluster(shown: np.ndarray, k: int) -> np.ndarray:
    """k-means of rows of length 1 after PCA to 50 dimensions: int16 (n,), 0 the largest. One thread, as t-SNE."""
    _, reduced = principal(shown, 50)
    k = min(k, len(np.unique(reduced, axis=0)))
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # warns that rows which differ only by rounding are equal
        found = KMeans(k, n_init=2, random_state=0).fit_predict(reduced)
    rank = np.argsort(np.argsort(-np.bincount(found, minlength=k), kind="stable"))
    return rank[found].astype(np.int16)


def clusters_for(n: int) -> int:
    """How many clusters n images are put into where there are no labels, so that one holds more than a few."""
    return max(2, min(CLUSTERS, round((n / 2) ** 0.5)))


def tsne(embeddings: np.ndarray) -> tuple[np.ndarray, float]:
    """t-SNE (van der Maaten and Hinton 2008) of rows of length 1, after PCA to at most 50 dimensions.

    Length 1 makes near rows those of a great cosine, which is what SimCLR trains and kNN counts: kNN in the plane is
    52.8 % right, 51.2 % without. 5,000 rows take 20 s at angle 0.8; 0.5 takes 30 s for a plane as good, and so does
    openTSNE. One thread: its sums have one order, so the bits are the same each time; two threads on a busy machine
    took 57 s.

    Args:
        embeddings: float (n, D), n at least 3.

    Returns:
        float32 (n, 2), and the perplexity.
    """
    _, reduced = principal(unit(embeddings).numpy(), 50)
    if not np.ptp(reduced, axis=0).any():
        raise NotDrawn(f"all {len(reduced)} embeddings point the same way: they have no neighbours to keep")
    perplexity = perplexity_of(len(reduced))
    with threadpool_limits(1):
        model = TSNE(init="pca", perplexity=perplexity, angle=0.8, random_state=0)
        return model.fit_transform(reduced), perplexity


def perplexity_of(n: int) -> float:
    """The perplexity of t-SNE for n rows: the usual 30, less for few rows."""
    return min(30.0, (n - 1) / 3)


def umap(shown: np.ndarray) -> np.ndarray:
    """UMAP (McInnes, Healy and Melville 2018) of rows of length 1 after PCA to 50 dimensions: float32 (n, 2)."""
    from umap import UMAP  # the import takes seconds, since it compiles

    _, reduced = principal(shown, 50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warns that a seed means one thread
        return UMAP(random_state=0).fit_transform(reduced).astype(np.float32)


def principal(embeddings: np.ndarray, k: int) -> tuple[PCA, np.ndarray]:
    """The first k principal components, at least two columns: float (n, k or fewer)."""
    with np.errstate(invalid="ignore"):  # without any variance
        pca = PCA(min(k, *embeddings.shape), random_state=0)
        points = pca.fit_transform(embeddings)
    return pca, np.pad(points, ((0, 0), (0, max(0, 2 - points.shape[1]))))
