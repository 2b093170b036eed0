"""Fit and test a small forecaster in several processes: `python several_processes.py FOLDER PROCESSES [CHECKPOINT]`.

FOLDER holds waves.npz. There, result.json gets what the test found and whether all processes ended with the same
weights and features, end.ckpt the last checkpoint.
"""

import json
import sys
from pathlib import Path

import pytorch_lightning as pl
import torch

from favorcast.forecasting import DataModule, SimulationTimeSeries, SpatioTemporalPerformer_Forecaster
from favorcast.forecasting.evaluation.baseline_comparison import BaselineComparison

CONTEXT_LEN, TARGET_LEN, BATCH = 12, 4, 5


def series_of(folder: Path) -> DataModule:
    """Return the windows: numbers of them that processes and batches do not divide."""
    columns = {"target_columns": ["u_*"], "exogenous_columns": ["v_0"]}
    series = SimulationTimeSeries(str(folder / "waves.npz"), **columns)
    return DataModule(series, CONTEXT_LEN, TARGET_LEN, batch_size=BATCH)


def scores(comparison: BaselineComparison) -> dict[str, list[float]]:
    """Return the number of test windows, and squared and absolute error of each forecaster."""
    report = comparison.report
    assert report is not None
    found = {name: [float(x.overall["mse"]), float(x.overall["mae"])] for name, x in report.scores.items()}
    return {"windows": [report.windows], **found}


def main(folder: Path, processes: int, checkpoint: str | None) -> None:
    """Fit for an epoch, or go on with the next one from a checkpoint, and test."""
    pl.seed_everything(0)
    data = series_of(folder)
    model = SpatioTemporalPerformer_Forecaster(
        d_x=data.d_x,
        d_y_context=data.d_y_context,
        d_y_target=data.d_y_target,
        d_model=8,
        n_heads=2,
        n_encoder_layers=1,
        n_decoder_layers=1,
        max_seq_len=16,
        redraw_interval=3,
        linear_model="shared",
        linear_window=6,
        linear_fit="ridge",
    )
    comparison = BaselineComparison()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy="ddp" if processes > 1 else "auto",
        devices=processes,
        max_epochs=1 if checkpoint is None else 2,
        callbacks=[comparison],
        enable_checkpointing=False,
        **quiet,  # pyright: ignore[reportArgumentType]
    )
    trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    state = torch.cat([x.double().flatten() for x in model.state_dict().values() if x.is_floating_point()])
    of_processes = trainer.strategy.all_gather(state).reshape(-1, len(state))
    trainer.save_checkpoint(folder / "end.ckpt")
    steps = trainer.global_step
    trainer.test(model, data, verbose=False)
    if trainer.is_global_zero:
        is_same = bool((of_processes == of_processes[0]).all())
        found = {"processes": len(of_processes), "same weights": is_same, "steps": steps, "scores": scores(comparison)}
        (folder / "result.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
