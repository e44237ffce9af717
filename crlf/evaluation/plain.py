"""The plain readout of the encoder: its last feature maps, averaged over the whole image, without the mirror image.

Most papers use this readout. CRLF's default (`EmbeddingSettings`, and the stages of the light CNN) gives several points
more, so numbers from the two cannot be compared.
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
    """The linear probe and kNN on the plain readout."""
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
    """The same network; a light CNN then reads only its last stage."""
    for module in network.modules():
        if isinstance(module, CNN):
            module.read = 1
    return network
