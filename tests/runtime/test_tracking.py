"""A tracking store that fails costs a warning, and never a run."""

from minirlhf.runtime import tracking


def test_a_server_that_dies_costs_a_warning(tmp_path, monkeypatch, capsys):
    """No server at the start is an error; one that goes away is not."""
    import mlflow

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    folder = tmp_path / "run"
    folder.mkdir()
    with tracking.track(uri, "test", folder, {}) as log:
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
