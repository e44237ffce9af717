"""What a step of SimCLR takes on many GPUs, on paper: `python -m bench readme` writes its tables into docs/scaling.md.

Nothing here is measured by CRLF. The network's share of the peak is NVIDIA's own figure for this network, the links are
what their makers state; the formulas are those of what CRLF does (crlf.training.gradients, crlf.training.engines,
crlf.runtime.batch_norm, NT-Xent).

Shapes: B images in a batch of all GPUs, V views, P projection, n GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """GPUs, and what connects them. Rates a second, in units of 1e9 bytes or 1e12 operations."""

    name: str
    gpus: int
    peak: float
    """bf16 products without sparsity."""
    share: float
    """Of the peak that the network reaches."""
    float32: float
    """float32 products of the vector units, at half of their peak: the loss does not round to TF32."""
    memory: float
    """Of a GPU, 1e9 bytes."""
    link: float
    """To the other GPUs, each way, of each GPU; the slowest on the way."""
    latency: float = 30e-6
    """Seconds of a collective that carries next to nothing."""
    disk: float = 7.0
    """Of one machine of eight GPUs: one NVMe drive."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run: ResNet-50 at 224 pixels. Counts are torch's, of CRLF's SimCLR with a projector of 2048 and 128."""

    name: str
    images: float
    epochs: float
    batch: int
    views: int = 2
    flops: float = 24.55e9
    """Operations that a view costs in training."""
    weights: float = 27.97e6
    activations: float = 71.9e6
    """Bytes that a view leaves for the backward pass, in bf16."""
    norms: int = 54
    """Batch norms, each of which asks the other GPUs once forward and once backward."""
    image_bytes: float = 3 * 224 * 224
    projection: int = 128


# A100: 2,470 images a second of ResNet-50 in mixed precision on one (NVIDIA, DeepLearningExamples): 0.19 of 312e12.
# H100: the same share of 989e12 is an assumption.
CLUSTERS = (
    Cluster(name="8 A100", gpus=8, peak=312, share=0.19, float32=9.7, memory=80, link=300),
    Cluster(name="8 H100", gpus=8, peak=989, share=0.19, float32=33, memory=80, link=450),
    Cluster(name="64 H100", gpus=64, peak=989, share=0.19, float32=33, memory=80, link=50),
)
IMAGENET = Job(name="ImageNet, 1.28 M images, 100 epochs", images=1.281e6, epochs=100, batch=4096)
WEB = Job(name="100 M images, 10 epochs", images=100e6, epochs=10, batch=32_768)
PLANS = ((IMAGENET, CLUSTERS[0]), (IMAGENET, CLUSTERS[1]), (WEB, CLUSTERS[2]))


@dataclass(frozen=True)
class Step:
    """Seconds of each part of a step. The disk is read meanwhile, gradients are sent during the backward pass, and the
    rest is done one after another."""

    network: float
    loss: float
    norms: float
    projections: float
    gradients: float
    disk: float

    @property
    def seconds(self) -> float:
        """All of it; the backward pass, which hides the gradients, is two thirds of the network."""
        seen = max(0.0, self.gradients - self.network * 2 / 3)
        return max(self.disk, self.network + self.loss + self.norms + self.projections + seen)


def step(job: Job, cluster: Cluster, whole_loss: bool = False) -> Step:
    """A step of CRLF; with `whole_loss` as if each GPU computed the loss of all images, not of its own."""
    n, rows = cluster.gpus, job.views * job.batch
    # Logits once forward and once backward, and a product with them for the gradient.
    logits = 3 * 2 * rows**2 * job.projection / (1 if whole_loss else n)
    around = (n - 1) / n / (cluster.link * 1e9)  # seconds for a byte, in a ring
    return Step(
        network=rows / n * job.flops / (cluster.peak * cluster.share * 1e12),
        loss=logits / (cluster.float32 * 1e12),
        norms=2 * job.norms * cluster.latency,
        projections=4 * rows * job.projection * around + cluster.latency,
        gradients=2 * 4 * job.weights * around + cluster.latency,
        disk=job.batch * job.image_bytes / (cluster.gpus / 8 * cluster.disk * 1e9),
    )


def gigabytes(job: Job, cluster: Cluster) -> float:
    """Of one GPU's memory: activations, weights with gradients and momentum, all projections and a block of logits."""
    rows = job.views * job.batch
    held = rows / cluster.gpus * job.activations + 3 * 4 * job.weights + 3 * 4 * rows * job.projection + 2 * 2**26
    return held / 1e9


def plan(job: Job, cluster: Cluster) -> dict[str, Any]:
    """A row of the first table."""
    parts, steps = step(job, cluster), job.epochs * job.images / job.batch
    sent = (8 * job.weights + 4 * job.views * job.batch * job.projection) * (cluster.gpus - 1) / cluster.gpus
    return {
        "run": f"{job.name}, {cluster.name}",
        "batch": job.batch,
        "memory of a GPU, GB": gigabytes(job, cluster),
        "sent by a GPU in a step, MB": sent / 1e6,
        "ms a step": 1000 * parts.seconds,
        "hours": steps * parts.seconds / 3600,
        "decoded images, TB": job.images * job.image_bytes / 1e12,
    }


def parts(job: Job, cluster: Cluster) -> dict[str, Any]:
    """A row of the second table: milliseconds."""
    found = step(job, cluster)
    names = ("network", "loss", "norms", "projections", "gradients", "disk")
    return {
        "ms a step": f"{job.name}, {cluster.name}",
        **{name: 1000 * getattr(found, name) for name in names},
        "loss, if each had all": 1000 * step(job, cluster, whole_loss=True).loss,
    }


def tables() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return [plan(*p) for p in PLANS], [parts(*p) for p in PLANS]
