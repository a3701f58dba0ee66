"""Train on other images in place of those that cannot be read."""

from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from backbones.atomic_write import write_atomically
from backbones.errors import InputError

from .ranks import all_gather_object
from .seeded_data import SeededDataset


@HOOKS.register_module()
class SkipBadImagesHook(Hook):
    """Replace an image that cannot be read by another; count and list the replaced ones.

    The list is `unreadable_images.txt` in the work dir, written at every checkpoint and at the end.
    """

    priority = "VERY_HIGH"

    def __init__(self):
        self.found: set[str] = set()

    def before_train(self, runner) -> None:
        dataset = runner.train_dataloader.dataset
        if not isinstance(dataset, SeededDataset) or dataset.unreadable is None:
            raise InputError(
                "--skip-bad-images: train_dataloader is not built by the runner's own training "
                "loop; give its config, and a loop of mmengine's",
                code="unsupported",
                where="train_dataloader",
            )
        self._queue = dataset.unreadable

    def before_train_iter(self, runner, batch_idx: int, data_batch: object = None) -> None:
        self._drain()

    def after_train(self, runner) -> None:
        self.write(runner)
        path = Path(runner.work_dir) / "unreadable_images.txt"
        where = f", listed in {path}" if self.found else ""
        runner.logger.info(f"unreadable images replaced by others: {len(self.found)}{where}")

    def write(self, runner) -> None:
        """Write the list of all ranks; all of them call it at the same point."""
        self._drain()
        self.found = set().union(*all_gather_object(self.found))
        if self.found and is_main_process():
            lines = "\n".join(sorted(self.found))
            write_atomically(Path(runner.work_dir) / "unreadable_images.txt", f"{lines}\n")

    def _drain(self) -> None:
        while not self._queue.empty():
            self.found.add(self._queue.get())
