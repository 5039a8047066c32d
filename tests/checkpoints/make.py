"""Write the checkpoints of this folder, each by the framework itself. Run once, not by the tests.

    TMPDIR=/train python tests/checkpoints/make.py FOLDER

Frameworks write down where they trained, hence TMPDIR. It needs pytorch-lightning, timm and
mmengine (with what that imports: addict, yapf, termcolor, opencv-python-headless). The network is
trained for some steps; its weights, or the averaged ones where the framework keeps such, are in
FOLDER/expected.pth as a plain state dict for each file. Those beside this script were written by
pytorch-lightning 2.6.6, timm 1.0.31 and mmengine 0.10.7, with PyTorch 2.14.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def net() -> nn.Sequential:
    """What the checkpoints are of; the tests build it too."""
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(
        conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4), pool=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(), head=nn.Linear(4, 2)))


def batches() -> list[Tensor]:
    """Return two batches of frames."""
    return [torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(n)) for n in (1, 2)]


def copy(state: State, prefix: str = "") -> State:
    """Return the state below a prefix, copied, in the order that it has."""
    return {n[len(prefix):]: t.detach().cpu().clone() for n, t in state.items()
            if n.startswith(prefix)}


def lightning(path: Path, averages: bool) -> State:
    """Train by Lightning's own loop; ``averages`` adds its EMA callback."""
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint

    class Module(pl.LightningModule):
        def __init__(self, lr: float, folder: Path) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net, self.loss = net(), nn.CrossEntropyLoss(torch.ones(2))

        def training_step(self, batch: Tensor, number: int) -> Tensor:
            loss = self.loss(self.net(batch), torch.tensor([0, 1]))
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), self.hparams.lr)

    module = Module(0.1, path.parent)
    with tempfile.TemporaryDirectory() as folder:
        keep = ModelCheckpoint(folder, save_last=True, monitor="loss")
        callbacks = [keep, EMAWeightAveraging(decay=0.5)] if averages else [keep]
        trainer = pl.Trainer(max_epochs=2, accelerator="cpu", callbacks=callbacks, logger=False,
                             enable_progress_bar=False, default_root_dir=folder)
        trainer.fit(module, torch.utils.data.DataLoader(torch.cat(batches()), 2))
        shutil.copy(Path(folder) / "last.ckpt", path)
    return copy(module.state_dict(), "net.")  # with the callback, the averages are put back


def timm(path: Path) -> State:
    """Train as timm's script does, with its optimizer, averages and saver."""
    from timm.optim import create_optimizer_v2
    from timm.utils import CheckpointSaver, ModelEmaV3

    model = net()
    averages = ModelEmaV3(model, decay=0.5)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.1)
    for batch in batches():
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch), torch.tensor([0, 1])).backward()
        optimizer.step()
        averages.update(model)
    with tempfile.TemporaryDirectory() as folder:
        saver = CheckpointSaver(model, optimizer, args=argparse.Namespace(model="net", lr=0.1),
                                model_ema=averages, checkpoint_dir=folder, recovery_dir=folder)
        saver.save_checkpoint(1, metric=50.0)
        shutil.copy(Path(folder) / "last.pth.tar", path)
    return copy(averages.module.state_dict())


def mmengine(path: Path) -> State:
    """Train by mmengine's runner, with its EMA hook, which saves the averages as the model."""
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = net()

        def forward(self, inputs: Tensor, mode: str = "loss") -> dict[str, Tensor]:
            labels = torch.arange(len(inputs)) % 2
            return {"loss": nn.functional.cross_entropy(self.backbone(inputs), labels)}

    model = Model()
    frames = [{"inputs": frame} for frame in torch.cat(batches())]
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(
            model, folder, {"batch_size": 2, "num_workers": 0, "dataset": frames,
                            "sampler": {"type": "DefaultSampler", "shuffle": False},
                            "collate_fn": {"type": "default_collate"}},
            train_cfg={"by_epoch": True, "max_epochs": 2},
            optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.1, "momentum": 0.9}},
            custom_hooks=[{"type": "EMAHook", "momentum": 0.5}])
        runner.train()
        shutil.copy(Path(folder) / "epoch_2.pth", path)
    (hook,) = (h for h in runner.hooks if type(h).__name__ == "EMAHook")
    return copy(hook.ema_model.module.state_dict(), "backbone.")


def main(folder: Path) -> None:
    """Write all of them."""
    folder.mkdir(exist_ok=True)
    torch.save({
        "lightning.ckpt": lightning(folder / "lightning.ckpt", averages=False),
        "lightning-averaged.ckpt": lightning(folder / "lightning-averaged.ckpt", averages=True),
        "timm.pth.tar": timm(folder / "timm.pth.tar"),
        "mmengine.pth": mmengine(folder / "mmengine.pth"),
    }, folder / "expected.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
