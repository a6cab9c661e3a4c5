"""Where a run's numbers go while it runs: to MLflow, and to the console.

MLflow's local store (the file `mlflow.db` and the folder `mlruns/` in the current folder) needs no
server; `mlflow ui` shows it. Another `uri` names a server, and "none" turns tracking off.

MLflow's pages have one view for language models and one for training. A browser that has not chosen
yet opens the view for language models; the address that `track` prints opens the one for training.

A run that was killed and resumed logs the updates after its last whole epoch a second time, so
MLflow has two equal points there; `steps.jsonl` has one.

Copy this file alone; it needs mlflow when called.

>>> with track("none", "demo", Path("a run"), About()) as log:
...     log({"loss": 0.5}, step=1)
>>> print(console_row({"epoch": 1, "train_loss": 0.6931, "seconds": 12.0}))
epoch 1 | train_loss 0.6931 | seconds 12
"""

import logging
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

# A file in the run folder with the id of its MLflow run, so that a resumed run goes on there, too.
RUN_ID = "mlflow_run_id"
GIVE_UP_AFTER = 3  # failures; each costs seconds

# Tags that MLflow's pages read. The first one is the experiment's: MLflow 3.5 chooses the view by
# it, and 3.17 does not read it, but has a switch at the top left.
KIND = "mlflow.experimentKind"
TRAINING = "custom_model_development"
DESCRIPTION = "mlflow.note.content"  # Markdown

Log = Callable[[dict, int], None]  # (numbers by name, step)


@dataclass
class About:
    """What MLflow is told of a run before it has numbers.

    params: what the run was told; None values are left out.
    tags: short words to search and group the runs by.
    data: the fields of `mlflow.entities.Dataset`, which describes a data set and does not hold it;
        None for no data set.
    """

    params: dict = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    data: dict[str, str] | None = None


@contextmanager
def track(
    uri: str | None, experiment: str, folder: Path, about: About, resumed: bool = False
) -> Iterator[Log]:
    """Open an MLflow run and give a function `log(numbers, step)`.

    uri: None for MLflow's own default (its environment variable, else the local store), an
        address, or "none" for no tracking.
    folder: its files and figures are uploaded when the block ends; the model is not. The first call
        of `log` writes the MLflow run's id there.
    about: what is known of the run at its start; a run that goes on has it already.
    resumed: go on with the MLflow run whose id the folder holds.
    Raises ValueError if the store cannot be reached.
    """
    if uri == "none":
        yield log_nothing
        return
    careful = Careful(folder)
    try:
        run_id = open_run(uri, experiment, about, resumed, careful)
    except Exception as error:  # a store raises what its backend raises
        reason = (
            f"cannot reach the tracking store {store_name(uri)!r} ({repr(error)[:200]}); "
            "--tracking-uri none does without one"
        )
        if not resumed:
            raise ValueError(reason) from error
        print(f"warning: {reason}")  # a run that has begun goes on
        yield log_nothing
        return

    status = "FAILED"
    try:
        yield lambda numbers, step: careful.log(numbers, step, run_id)
        careful.upload()
        status = "FINISHED"
    finally:
        careful.end(status)


def log_nothing(numbers: dict, step: int) -> None:
    """Stands in for `log` where nothing is tracked."""


def store_name(uri: str | None) -> str:
    """The address of MLflow's store."""
    import mlflow

    return uri or mlflow.get_tracking_uri()


def open_run(
    uri: str | None, experiment: str, about: About, resumed: bool, careful: "Careful"
) -> str:
    """Start an MLflow run, or go on with the one that a resumed run's folder names; its id."""
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # A server that does not answer then costs seconds, not minutes for each row of numbers.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    kept = careful.folder / RUN_ID
    known = kept.read_text("utf-8") if resumed and kept.exists() else None
    mlflow.set_tracking_uri(uri)
    tags_of_experiment = mlflow.set_experiment(experiment).tags
    if KIND not in tags_of_experiment:  # a kind that a user chose stays
        careful.attempt(mlflow.set_experiment_tag, KIND, TRAINING)
    run = mlflow.start_run(known, run_name=careful.folder.name)
    if not known:
        given = {name: value for name, value in about.params.items() if value is not None}
        mlflow.log_params(given)
        mlflow.set_tags(about.tags)
        if about.data is not None:
            careful.attempt(log_data, about.data, run.info.run_id)
    print_page(run.info.experiment_id, run.info.run_id)
    return run.info.run_id


def print_page(experiment_id: str, run_id: str) -> None:
    """Print where a browser finds an MLflow run, if it is on a server or in a local store."""
    import mlflow

    page = f"#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"
    store = mlflow.get_tracking_uri()
    if store.startswith(("http:", "https:")):
        print(f"mlflow    {store.rstrip('/')}/{page}")
    elif store.startswith(("sqlite:", "file:")):
        print(f"mlflow    mlflow ui --backend-store-uri {shlex.quote(store)}")
        print(f"          http://127.0.0.1:5000/{page}")


def log_data(data: dict[str, str], run_id: str) -> None:
    """Name a data set as the input of an MLflow run. See `About.data`."""
    import mlflow
    from mlflow.entities import Dataset, DatasetInput, InputTag

    context = InputTag("mlflow.data.context", "training")
    described = DatasetInput(Dataset(**data), [context])
    mlflow.MlflowClient().log_inputs(run_id, [described])


class Careful:
    """Calls of MLflow whose failure must not stop the training."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.failures = 0

    def log(self, numbers: dict, step: int, run_id: str) -> None:
        """Send the values that are numbers to MLflow, and write the run's id to the run folder.

        `epoch` and `step` are left out, because they are the x axis. The id is written once. It
        cannot be written earlier, because the run folder is made after the MLflow run was opened.
        """
        import mlflow

        metrics = {}
        for name, value in numbers.items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if is_number and name not in ("epoch", "step"):
                metrics[name] = float(value)
        self.attempt(mlflow.log_metrics, metrics, step=step)
        kept = self.folder / RUN_ID
        if not kept.exists():
            self.attempt(kept.write_text, run_id, "utf-8")

    def upload(self) -> None:
        """Hand the run folder's files and figures to MLflow."""
        import mlflow

        for path in [*self.folder.glob("*.*"), *self.folder.glob("figures")]:
            self.attempt(mlflow.log_artifact, str(path))

    def end(self, status: str) -> None:
        """End the MLflow run."""
        import mlflow

        self.failures = min(self.failures, GIVE_UP_AFTER - 1)  # this one is tried in any case
        self.attempt(mlflow.end_run, status)

    def attempt(self, function: Callable, *values, **named) -> None:
        """Call the function; a failure is a warning, and after three nothing is tried again."""
        if self.failures >= GIVE_UP_AFTER:
            return
        try:
            function(*values, **named)
        except Exception as error:
            self.failures += 1
            last = ", and is not asked again" if self.failures == GIVE_UP_AFTER else ""
            reason = str(error)[:200]
            files = f"the run's own files are in {self.folder}"
            print(f"warning: MLflow did not take it ({reason}){last}; {files}")


def set_description(uri: str | None, folder: Path, text: str) -> None:
    """Make a text in Markdown the description of a run folder's MLflow run."""
    if uri == "none" or not (folder / RUN_ID).exists():
        return
    import mlflow

    run_id = (folder / RUN_ID).read_text("utf-8")
    client = mlflow.MlflowClient(uri)
    Careful(folder).attempt(client.set_tag, run_id, DESCRIPTION, text)


def make_child(uri: str | None, child: Path, parent: Path) -> None:
    """Show the MLflow run of one run folder below that of another one."""
    if uri == "none" or not (child / RUN_ID).exists() or not (parent / RUN_ID).exists():
        return
    import mlflow

    child_id = (child / RUN_ID).read_text("utf-8")
    parent_id = (parent / RUN_ID).read_text("utf-8")
    client = mlflow.MlflowClient(uri)
    Careful(child).attempt(client.set_tag, child_id, "mlflow.parentRunId", parent_id)


def console_row(numbers: dict) -> str:
    """One epoch as a line of text, numbers with four digits."""
    parts = []
    for name, value in numbers.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        parts.append(f"{name} {shown}")
    return " | ".join(parts)
