import pytest


@pytest.mark.parametrize(
    ("command", "config", "shown"),
    [("fit", "lm.yaml", ("Epoch 0", "loss:")), ("predict", "pair.yaml", ("Predicting", "acceptance 0."))],
)
def test_the_bar_shows_the_stage_and_its_figures_by_short_names(command, config, shown, run, world, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    options = ("--trainer.enable_progress_bar", "true", "--model.sweep.max_new_tokens", "4")
    code, out, error = run(command, "--config", world / config, *(options if command == "predict" else options[:2]))
    assert code == 0, error
    assert all(part in out for part in shown), out
    assert "train/" not in out
    assert "v_num" not in out
