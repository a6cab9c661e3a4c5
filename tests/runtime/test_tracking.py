"""What MLflow's store holds of a run. A store that fails costs a warning, and never a run."""

import json

import pytest

from minirlhf.runtime import tracking

DATA = {
    "name": "pairs.jsonl",
    "digest": "01234567",
    "source_type": "local",
    "source": json.dumps({"uri": "/data/pairs.jsonl"}),
    "schema": json.dumps({"mlflow_colspec": [{"name": "prompt", "type": "string"}]}),
    "profile": json.dumps({"pairs": 200}),
}


@pytest.fixture
def client(tmp_path):
    """Reads a store that is still empty."""
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")


def track_run(client, folder, about=None, resumed=False, **numbers):
    """Track a run in the store, and read it back."""
    folder.mkdir(exist_ok=True)
    about = about or tracking.About()
    with tracking.track(client.tracking_uri, "test", folder, about, resumed) as log:
        log(numbers, step=1)
    return client.get_run((folder / tracking.RUN_ID).read_text())


def kind_of(client) -> str | None:
    return client.get_experiment_by_name("test").tags.get("mlflow.experimentKind")


def test_the_experiment_says_that_models_are_trained_in_it(client, tmp_path):
    track_run(client, tmp_path / "run")
    assert kind_of(client) == "custom_model_development"


def test_an_experiment_of_an_earlier_version_goes_on_and_gets_its_kind(client, tmp_path):
    experiment = client.create_experiment("test")
    client.create_run(experiment)
    assert kind_of(client) is None
    run = track_run(client, tmp_path / "run")
    assert run.info.experiment_id == experiment
    assert len(client.search_runs([experiment])) == 2
    assert kind_of(client) == "custom_model_development"


def test_a_kind_that_the_user_chose_is_kept(client, tmp_path):
    client.create_experiment("test", tags={"mlflow.experimentKind": "genai_development"})
    track_run(client, tmp_path / "run")
    assert kind_of(client) == "genai_development"


def test_the_store_holds_parameters_tags_data_and_description(client, tmp_path, capsys):
    import mlflow

    about = tracking.About({"lr": 0.1, "depth": None}, {"approach": "bt-frozen"}, DATA)
    run = track_run(client, tmp_path / "run", about)
    assert run.data.params == {"lr": "0.1"}
    assert run.data.tags["approach"] == "bt-frozen"
    (data,) = run.inputs.dataset_inputs
    assert dict(data.dataset) == DATA
    assert {tag.key: tag.value for tag in data.tags} == {"mlflow.data.context": "training"}
    assert mlflow.data.get_source(data.dataset).uri == "/data/pairs.jsonl"

    tracking.set_description(client.tracking_uri, tmp_path / "run", "a *good* model")
    run = client.get_run(run.info.run_id)
    assert run.data.tags["mlflow.note.content"] == "a *good* model"
    said = capsys.readouterr().out
    assert f"mlflow ui --backend-store-uri {client.tracking_uri}\n" in said
    page = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    assert f"{page}?workflowType=machine_learning\n" in said
    assert "warning" not in said


def test_a_run_that_goes_on_is_the_same_one(client, tmp_path):
    about = tracking.About({"lr": 0.1}, {"approach": "bt-frozen"}, DATA)
    first = track_run(client, tmp_path / "run", about, loss=0.5)
    second = track_run(client, tmp_path / "run", about, resumed=True, loss=0.4)
    assert first.info.run_id == second.info.run_id
    assert second.data.metrics == {"loss": 0.4}
    assert len(second.inputs.dataset_inputs) == 1


def test_only_what_can_be_drawn_is_logged(client, tmp_path):
    """An epoch's own number is where the others are drawn, and best is yes or no."""
    run = track_run(client, tmp_path / "run", epoch=1, best=True, loss=0.5, pairs=8, note="x")
    assert run.data.metrics == {"loss": 0.5, "pairs": 8}


def test_a_server_that_knows_no_kinds_and_no_data_sets_costs_warnings(
    client, tmp_path, monkeypatch, capsys
):
    import mlflow

    def refuse(*args, **kwargs):
        raise ConnectionError("404")

    monkeypatch.setattr(mlflow, "set_experiment_tag", refuse)
    monkeypatch.setattr(mlflow.MlflowClient, "log_inputs", refuse)
    monkeypatch.setattr(mlflow.MlflowClient, "set_tag", refuse)
    run = track_run(client, tmp_path / "run", tracking.About(data=DATA), loss=0.5)
    tracking.set_description(client.tracking_uri, tmp_path / "run", "good")
    assert run.info.status == "FINISHED"
    assert run.data.metrics == {"loss": 0.5}
    said = capsys.readouterr().out
    assert said.count("warning: MLflow did not take it (404)") == 3


def test_without_tracking_nothing_is_described(tmp_path, capsys):
    tracking.set_description("none", tmp_path, "good")
    tracking.set_description(None, tmp_path, "good")  # this folder has no run in MLflow
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_dies_costs_a_warning(tmp_path, monkeypatch, capsys):
    """No server at the start is an error; one that goes away is not."""
    import mlflow

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    folder = tmp_path / "run"
    folder.mkdir()
    with tracking.track(uri, "test", folder, tracking.About()) as log:
        log({"loss": 0.5}, step=1)

        def dead(*args, **kwargs):
            raise ConnectionError("the server is gone")

        monkeypatch.setattr(mlflow, "log_metrics", dead)
        monkeypatch.setattr(mlflow, "log_artifact", dead)
        monkeypatch.setattr(mlflow, "end_run", dead)
        log({"loss": 0.4}, step=2)
        (folder / "metrics.json").write_text("{}")
    said = capsys.readouterr().out
    assert said.count("warning: MLflow did not take it (the server is gone)") == 3
    monkeypatch.undo()
    mlflow.end_run()
