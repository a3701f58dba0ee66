"""Read pairs of images and label maps that a file lists, wherever they are."""

import json
import os.path as osp

from mmengine.registry import DATASETS
from mmseg.datasets import BaseSegDataset


@DATASETS.register_module()
class ImageLabelPairs(BaseSegDataset):
    """Read pairs from a list; mmseg's BaseSegDataset knows one suffix for all files of a kind.

    Args:
        pairs: text file; a line has an image and its label map, both absolute or below `data_root`,
            as a JSON list or with a tab between them.
        kwargs: as in BaseSegDataset.
    """

    def __init__(self, pairs: str, **kwargs):
        self.pairs = pairs
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        """Return the dict of each pair that the pipeline starts from."""
        with open(self.pairs, encoding="utf-8") as file:
            pairs = [_pair(line.rstrip("\n")) for line in file]
        return [
            dict(
                img_path=osp.join(self.data_root or "", image),
                seg_map_path=osp.join(self.data_root or "", label),
                label_map=self.label_map,
                reduce_zero_label=self.reduce_zero_label,
                seg_fields=[],
            )
            for image, label in pairs
        ]


def _pair(line: str) -> list[str]:
    return json.loads(line) if line.startswith('["') else line.split("\t")
