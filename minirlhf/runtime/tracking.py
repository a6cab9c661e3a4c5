"""Where a run's numbers go while it runs: MLflow, and the console.

MLflow's local store (the file `mlflow.db` and the folder `mlruns/` in the current folder) needs no
server; `mlflow ui` shows it. Another `uri` names a server, and "none" turns tracking off.

Copy this file alone; it needs mlflow and tqdm when called.

>>> with track("none", "demo", Path("a run"), {}) as log:
...     log({"loss": 0.5}, step=1)
>>> print(console_row({"epoch": 1, "train_loss": 0.6931, "seconds": 12.0}))
epoch 1 | train_loss 0.6931 | seconds 12
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def track(
    uri: str | None, experiment: str, folder: Path, args: dict, again: bool = False
) -> Iterator[Callable[..., None]]:
    """Open an MLflow run and give a function `log(row, step)` that takes a row's numbers.

    uri: None for MLflow's own default (its environment variable, else the local store), an
        address, or "none" for no tracking.
    folder: its files and figures are uploaded when the block ends; the model is not. The first log
        writes the run's id there, so that with `again` the same run goes on.
    Opened inside another one, the run is a child of that.
    Raises ValueError if the store cannot be reached.
    """
    if uri == "none":
        yield lambda row, step: None
        return
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # A server that does not answer costs seconds, not minutes for each row.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    kept = folder / "mlflow_run_id"
    known = kept.read_text("utf-8") if again and kept.exists() else None
    try:
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment(experiment)
        run = mlflow.start_run(known, run_name=folder.name, nested=True)
        if not known:
            mlflow.log_params({k: v for k, v in args.items() if v is not None})
    except Exception as error:  # a store raises what its backend raises
        reason = f"{uri or mlflow.get_tracking_uri()!r} ({repr(error)[:200]})"
        said = f"cannot reach the tracking store {reason}; --tracking-uri none does without one"
        if not (again or mlflow.active_run()):
            raise ValueError(said) from error
        print(f"warning: {said}")  # what has begun goes on
        yield lambda row, step: None
        return

    failed = []

    def attempt(function: Callable, *values, **kwargs) -> None:
        try:
            if len(failed) < 3 or function is mlflow.end_run:  # each costs seconds
                function(*values, **kwargs)
        except Exception as error:  # hours of training are worth more than a curve
            failed.append(error)
            last = ", and is not asked again" * (len(failed) == 3)
            print(f"warning: MLflow did not take it ({str(error)[:200]}){last}; it is in {folder}")

    def log(row: dict, step: int) -> None:
        numbers = {k: float(v) for k, v in row.items() if isinstance(v, (int, float))}
        attempt(mlflow.log_metrics, numbers, step=step)
        if not kept.exists():
            attempt(kept.write_text, run.info.run_id, "utf-8")

    status = "FAILED"
    try:
        yield log
        for file in [*folder.glob("*.*"), *folder.glob("figures")]:
            attempt(mlflow.log_artifact, str(file))
        status = "FINISHED"
    finally:
        attempt(mlflow.end_run, status)


def console_row(row: dict) -> str:
    """One evaluation as a line of text, numbers with four digits."""
    shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()}
    return " | ".join(f"{key} {value}" for key, value in shown.items())


def progress_bar(iterable, description: str):
    """A tqdm bar that disappears when done and stays silent where nobody watches (no terminal)."""
    from tqdm import tqdm

    return tqdm(iterable, desc=description, leave=False, disable=None)
