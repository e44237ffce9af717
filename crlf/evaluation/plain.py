"""What the encoder is worth read plainly: its last maps, averaged over the whole image, of the image alone.

Most papers read an encoder so. CRLF's own reading (`EmbeddingSettings`, and the stages of the light CNN) is worth
several points more, and numbers of the two must not be held against each other.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from crlf.embedding.embed import load_encoder
from crlf.encoders import CNN, EmbeddingSettings
from crlf.evaluation.embedded import Embedded, Found
from crlf.runtime.devices import pick_device

PLAIN = EmbeddingSettings(regions=1, mirror=False)


def plain(embedded: Embedded) -> Found:
    """The linear probe and kNN of the plain reading."""
    assert embedded.run is not None
    images, recipe = embedded.images, replace(embedded.recipe, embedding=PLAIN)
    network = last_stage(load_encoder(embedded.run, recipe, images[0].shape[1:])).to(pick_device(embedded.device))
    train = embedded.embed(images[0], network)
    test = train if embedded.folds is not None else embedded.embed(images[1], network)
    other = replace(embedded, train=train, test=test)
    scores = {
        "plain_linear_accuracy": other.accuracy(other.predicted),
        "plain_knn_accuracy": other.accuracy(other.voted),
    }
    how = "the linear probe and kNN (k = 10) on the encoder's last maps, averaged over the whole image, no mirror image"
    return Found(scores, f"{how}; {train.shape[1]} numbers an image")


def last_stage(network: nn.Module) -> nn.Module:
    """The same, but that a light CNN gives its last stage alone."""
    for module in network.modules():
        if isinstance(module, CNN):
            module.read = 1
    return network
