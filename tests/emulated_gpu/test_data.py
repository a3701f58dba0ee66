"""Check that batches reach the GPU from pinned memory, without making the host wait."""

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

import backbones.openmmlab.segmentation  # noqa: F401  registers its data preprocessor and heads
from backbones.openmmlab.mmengine_internals import copy_without_waiting
from backbones.openmmlab.training.runner import Runner

pytestmark = pytest.mark.slow  # the process with the GPU takes 10 seconds to start


class Crops(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict:
        labels = PixelData(data=torch.full((1, 16, 16), index))
        sample = SegDataSample(gt_sem_seg=labels, metainfo=dict(img_shape=(16, 16)))
        return dict(inputs=torch.full((3, 16, 16), index, dtype=torch.uint8), data_samples=sample)


def batches(pin_memory: bool) -> list[dict]:
    loader = dict(
        dataset=Crops(),
        sampler=dict(type="DefaultSampler", shuffle=False),
        collate_fn=pseudo_collate,
        batch_size=2,
        num_workers=1,
        pin_memory=pin_memory,
    )
    return list(Runner.build_dataloader(loader, seed=0))


def test_whole_batches_are_pinned():
    for pin_memory in (True, False):
        found = batches(pin_memory)
        assert len(found) == 2
        for number, batch in enumerate(found):
            samples = batch["data_samples"]
            tensors = [*batch["inputs"], *(sample.gt_sem_seg.data for sample in samples)]
            assert [int(x.flatten()[0]) for x in tensors] == [2 * number, 2 * number + 1] * 2
            assert all(x.is_pinned() == pin_memory for x in tensors)
            assert all(sample.img_shape == (16, 16) for sample in samples)


def test_copies_to_the_gpu_do_not_wait(gpu):
    config = dict(type="SegDataPreProcessor", size=(16, 16), mean=[1.0] * 3, std=[2.0] * 3)
    with DefaultScope.overwrite_default_scope("mmseg"):
        preprocessor = MODELS.build(config).cuda()
    batch, *_ = batches(True)
    copies = []
    for prepare in (lambda module: None, copy_without_waiting):
        prepare(preprocessor)
        gpu.reset()
        data = preprocessor(batch, training=True)
        copies.append(sum(gpu.syncs.values()))
        labels = torch.stack([sample.gt_sem_seg.data for sample in data["data_samples"]])
        assert labels.is_cuda and labels.flatten(1)[:, 0].tolist() == [0, 1]
        assert (
            data["inputs"][1, 0, 0, 0].item() == 0.0 and data["inputs"][0, 0, 0, 0].item() == -0.5
        )
    assert copies == [4, 0]
