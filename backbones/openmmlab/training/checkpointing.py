"""Choose which checkpoints a run keeps, and which one it resumes from."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.registry import HOOKS

from backbones.atomic_write import write_atomically
from backbones.errors import InputError
from backbones.weights import read_checkpoint

INTERRUPTED = "interrupted.pth"


@HOOKS.register_module()
class VerifiedCheckpointHook(CheckpointHook):
    """Save checkpoints like mmengine's CheckpointHook; delete old ones after verifying the new one.

    `Runner` uses it if a config names CheckpointHook.

    Args:
        step_interval: iterations between checkpoints within an epoch, with `by_epoch`, of which the
            newest is kept until the next of either kind; 0 for none.
        kwargs: as in mmengine.

    Raises:
        InputError: the folder is not a local one.
    """

    def __init__(self, *args, step_interval: int = 0, **kwargs):
        super().__init__(*args, **kwargs)
        self.step_interval = step_interval
        check_local(self.out_dir, self.backend_args, self.file_client_args)

    def before_train(self, runner) -> None:
        super().before_train(runner)
        last = runner.message_hub.get_info("last_ckpt")
        if last:  # resumed: a validation that is due adds the best score to this one
            self.last_ckpt = str(Path(self.out_dir) / Path(last).name)
        self._delete(runner.message_hub.get_info("outdated_ckpts", []))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        super().after_train_iter(runner, batch_idx, data_batch, outputs)
        done = runner.iter + 1
        if not (self.by_epoch and self.step_interval and done % self.step_interval == 0):
            return
        if self.is_last_train_iter(runner):
            return
        outdated = self._within_epoch(runner)
        name = f"iter_{done}.pth"
        runner.message_hub.update_info("within_epoch_ckpt", name)
        self._save(runner, name, dict(epoch=runner.epoch, iter=done), outdated)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        """Save, then delete: mmengine's order leaves a moment without any complete checkpoint."""
        outdated = self._within_epoch(runner)
        if self.max_keep_ckpts > 0 and step not in list(self.keep_ckpt_ids)[-1:]:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated.append(self.filename_tmpl.format(self.keep_ckpt_ids.popleft()))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = str(Path(self.out_dir) / name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        self._save(runner, name, meta, outdated)

    def _save(self, runner, name: str, meta: dict, outdated: list[str]) -> None:
        # In the checkpoint, so that a run killed before it deletes them does so when resumed.
        runner.message_hub.update_info("outdated_ckpts", outdated)
        runner.save_checkpoint(
            self.out_dir,
            name,
            self.file_client_args,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            point_to(Path(self.out_dir) / name, runner.work_dir)
            self._delete([*outdated, Path(runner.work_dir) / INTERRUPTED])

    def _within_epoch(self, runner) -> list[str]:
        name = runner.message_hub.get_info("within_epoch_ckpt")
        runner.message_hub.update_info("within_epoch_ckpt", None)
        return [name] if name else []

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        """Save a new best checkpoint before the previous one is deleted.

        mmengine finds no former one to delete, saves the new one, and the former goes after.
        """
        if not self.save_best:
            return
        single = len(self.key_indicators) == 1
        before = {"": self.best_ckpt_path} if single else dict(self.best_ckpt_path_dict)
        if single:
            self.best_ckpt_path = None
        else:
            self.best_ckpt_path_dict = dict.fromkeys(before)
        super()._save_best_checkpoint(runner, metrics)
        after = {"": self.best_ckpt_path} if single else self.best_ckpt_path_dict
        for key, path in before.items():
            if after.get(key) is None:
                after[key] = path
            elif path and path != after[key]:
                self._delete([path])
        if single:
            self.best_ckpt_path = after[""]

    def _publish_model(self, runner, ckpt_path: str) -> None:
        """Save what `published_keys` names, atomically like every other file."""
        if not is_main_process():
            return
        published = self.published_keys or ()
        kept = {k: v for k, v in read_checkpoint(ckpt_path).items() if k in published}
        content = io.BytesIO()
        torch.save(kept, content)
        digits = hashlib.sha256(content.getvalue()).hexdigest()[:8]
        path = Path(ckpt_path)
        write_atomically(path.with_name(f"{path.stem}-{digits}.pth"), content.getvalue())

    def _delete(self, names: list[str | Path]) -> None:
        if is_main_process():
            for name in names:
                (Path(self.out_dir) / name).unlink(missing_ok=True)


def check_local(folder: object, *backends: Mapping | None) -> None:
    """Raise an error unless checkpoints are written to a local folder.

    A remote one cannot be read back from the disk, nor renamed once it is whole.

    Args:
        folder: folder of the checkpoints; None for the work dir.
        backends: mmengine's `backend_args` and `file_client_args`.

    Raises:
        InputError: the folder has the prefix of a remote one, or a backend is not the local disk's.
    """
    remote = [args.get("backend", "") for args in backends if args]
    remote = [name for name in remote if name not in ("local", "disk")]
    if folder is not None and "://" in str(folder):
        remote.append(str(folder).partition("://")[0])
    if remote:
        raise InputError(
            f"checkpoint folder {folder or 'in the work dir'} with backend "
            f"{remote[-1] or 'unnamed'}: checkpoints are only saved to local folders; remove "
            "out_dir, backend_args and file_client_args and copy the checkpoints from the work dir",
            code="unsupported",
            where=folder or "backend_args",
        )


def point_to(checkpoint: Path, work_dir: str) -> None:
    """Make it the checkpoint that `--resume` continues from."""
    write_atomically(Path(work_dir) / "last_checkpoint", str(checkpoint))


def last_whole_checkpoint(work_dir: str | Path) -> tuple[Path, Mapping] | None:
    """Return the newest complete checkpoint of a run, and its content.

    A damaged one is logged in one line, and the one before it taken. None if there is none at all.

    Raises:
        InputError: there are checkpoints, and all are damaged.
    """
    work_dir = Path(work_dir)
    named = _named(work_dir)
    rest = [
        p for pattern in ("epoch_*.pth", "iter_*.pth", INTERRUPTED) for p in work_dir.glob(pattern)
    ]
    rest.sort(key=lambda p: (p.stat().st_mtime_ns, p.name), reverse=True)
    if named and named.is_file():
        before = named.stat().st_mtime_ns
        rest = [p for p in rest if p != named and p.stat().st_mtime_ns <= before]
        rest.insert(0, named)
    elif named:
        print_log(f"{named}, the last checkpoint, is missing: looking for another", "current")
    for path in rest:
        try:
            return path, read_checkpoint(path)
        except InputError as error:
            print_log(f"{error}; using the checkpoint before it", "current", level=30)
    if rest:
        raise InputError(
            f"{work_dir}: none of its {len(rest)} checkpoints can be read",
            code="broken-file",
            where=work_dir,
        )
    return None


def _named(work_dir: Path) -> Path | None:
    """Return the file that `last_checkpoint` names, or one beside it if the folder has moved."""
    try:
        name = (work_dir / "last_checkpoint").read_text().strip()
    except FileNotFoundError:
        return None
    if not name:
        return None
    path = Path(name)
    return path if path.is_file() else work_dir / path.name
