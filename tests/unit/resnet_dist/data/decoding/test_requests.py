"""What requests of one index share."""

from __future__ import annotations

from unittest.mock import Mock

import numpy as np
import pytest

from resnet_dist.data import Index, Stream
from resnet_dist.data.decoding.cpu import CpuDecoder
from resnet_dist.data.headers.jpeg_data import is_complete_jpeg
from resnet_dist.data.loader import evaluation_batches, training_batches
from resnet_dist.data.storage.files import files_of, header_in
from resnet_dist.recipe.batch_layout import BatchLayout
from resnet_dist.recipe.schema import DataRecipe


def test_training_and_evaluations_of_an_index_look_for_damage_once_per_image(
    train_index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_complete, header = Mock(wraps=is_complete_jpeg), Mock(wraps=header_in)
    monkeypatch.setattr("resnet_dist.data.decoding.requests.is_complete_jpeg", is_complete)
    monkeypatch.setattr("resnet_dist.data.decoding.requests.header_in", header)
    of_user = Index(
        train_index.root,
        train_index.classes,
        train_index.paths,
        train_index.labels,
        train_index.heights,
        train_index.widths,
    )
    for index, num_headers in ((train_index.take(np.arange(len(train_index))), 0), (of_user, len(of_user))):
        is_complete.reset_mock()
        header.reset_mock()
        layout, recipe, decoder = BatchLayout(size=2 * len(index)), DataRecipe(resolution=8), CpuDecoder(1, 1)
        stream = Stream(len(index), 0)
        list(training_batches(index, files_of(index), stream, layout, 0, recipe, 0, decoder, range(2)))
        for _ in range(2):
            list(evaluation_batches(index, files_of(index), 1, 0, 5, recipe, decoder))
        assert (is_complete.call_count, header.call_count) == (len(index), num_headers)
