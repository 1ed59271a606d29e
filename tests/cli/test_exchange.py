"""``export`` and ``import``: out and in again, and nothing twice."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from commands import Cli, write_spec

from llamatune_torch import Categorical, Integer, LlamaTune, Outcome, Real, TrialState, load_study

SPACE = {
    "lr": Real(1e-5, 1e-2, prior="log-uniform"),
    "method": Categorical(["full", "lora"]),
    "rank": Integer(1, 64, when={"method": "lora"}),
}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/llamatune.db"


@pytest.fixture
def mine(url: str) -> LlamaTune:
    """Five trials: three complete, one failed, one running."""
    made = LlamaTune(SPACE, metric="accuracy", storage=url, name="mine", n_initial=1000, max_evals=12)
    for i in range(4):
        trial = made.ask()
        made.report(trial, 1, 0.25)
        made.tell(trial, Outcome.failure("out of memory") if i == 2 else Outcome(0.5 + i / 8, outcomes={"gb": 2.0}))
    made.ask()
    return made


def test_a_table(cli: Cli, mine: LlamaTune, tmp_path: Path) -> None:
    shown = cli("export", "--csv").out
    rows = list(csv.DictReader(io.StringIO(shown)))
    assert [row["state"] for row in rows] == ["complete", "complete", "failed", "complete", "running"]
    assert [float(row["params.lr"]) for row in rows] == [trial.params["lr"] for trial in mine.study.trials]
    assert [row["params.rank"] for row in rows] == [str(t.params.get("rank", "")) for t in mine.study.trials]
    assert cli("export", "--csv", "trials.csv").out == ""
    assert (tmp_path / "trials.csv").read_text() == shown


def test_a_table_into_a_new_study_and_not_twice(cli: Cli, mine: LlamaTune, url: str, tmp_path: Path) -> None:
    cli("export", "--csv", "trials.csv")
    text = f"from llamatune_torch import *\nspace = {SPACE!r}\nsearch = {{'metric': 'accuracy'}}"
    file = write_spec(tmp_path, text=text)
    result = cli("import", "--csv", "trials.csv", "--spec", file, "--name", "new")
    assert result.out == "4 trials added\n", result
    assert cli("import", "--csv", "trials.csv", "--name", "new").out == "0 trials added, 4 were there already\n"
    new = load_study(url, "new")
    assert new.metric == "accuracy"
    assert [t.params for t in new.trials] == [t.params for t in mine.study.trials[:4]]
    assert [t.value for t in new.trials] == [t.value for t in mine.study.trials[:4]]
    assert new.failures_by_reason() == {"out of memory": 1}
    assert new.spent == 0


def test_a_table_into_the_only_study_there_is(cli: Cli, mine: LlamaTune, url: str) -> None:
    Path("more.csv").write_text("lr,method,rank,accuracy\n0.001,full,,0.5\n")
    assert cli("import", "--csv", "more.csv").out == "1 trials added\n"
    assert load_study(url).trials[-1].value == 0.5
    assert load_study(url).trials[-1].notes["from"] == "more.csv, trial 0"


def test_a_file_that_has_changed_since_is_taken_in_again(cli: Cli, mine: LlamaTune) -> None:
    for value, said in ((0.5, "1 trials added\n"), (0.25, "1 trials added\n"), (0.25, "0 trials added, 1 were")):
        Path("runs.csv").write_text(f"lr,method,rank,value\n0.001,full,,{value}\n")
        assert cli("import", "--csv", "runs.csv").out.startswith(said)


def test_trials_that_do_not_fit_are_counted_and_named(cli: Cli, mine: LlamaTune) -> None:
    Path("odd.csv").write_text("lr,method,rank,value\n1,full,,0.5\n0.001,full,,0.25\n")
    result = cli("import", "--csv", "odd.csv", "--name", "mine")
    assert (result.code, result.out) == (0, "1 trials added\n")
    assert "1 do not fit the space; the first of them, trial 0: " in result.err
    Path("odd.csv").write_text("lr,method,rank,value\n1,full,,0.5\n")
    assert cli("import", "--csv", "odd.csv", "--name", "mine").code == 1


def test_a_document_restores_the_study(cli: Cli, mine: LlamaTune, url: str, tmp_path: Path) -> None:
    assert cli("export", "--json", "study.json").code == 0
    json.loads((tmp_path / "study.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    other = f"sqlite:///{tmp_path}/other.db"
    assert "'mine' is restored, with 5 trials" in cli("import", "--json", "study.json", "--storage", other).out
    again = load_study(other)
    assert again.trials[:4] == mine.study.trials[:4]
    assert again.trials[4].state is TrialState.LOST
    assert (again.space, again.metric) == (mine.study.space, "accuracy")
    goes_on = LlamaTune(SPACE, metric="accuracy", storage=other, name="mine", n_initial=1000, max_evals=12)
    assert goes_on.ask().number == 5
    # Into a study that is there, as trials from elsewhere.
    assert cli("import", "--json", "study.json", "--storage", other).out == "4 trials added\n"
    assert cli("import", "--json", "study.json", "--storage", other).out.startswith("0 trials added, 4 were")


def test_what_is_no_document(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('{"llamatune_study"')
    assert cli("import", "--json", "broken.json").code == 2
    (tmp_path / "other.json").write_text('{"a": 1}')
    result = cli("import", "--json", "other.json")
    assert (result.code, "no study that export has written" in result.err) == (1, True)
    assert not (tmp_path / "llamatune.db").exists()


def test_a_folder_that_cannot_be_written(cli: Cli, mine: LlamaTune) -> None:
    result = cli("export", "--csv", "nowhere/trials.csv")
    assert (result.code, "nowhere/trials.csv cannot be written" in result.err) == (2, True)


def test_to_optuna_and_back(cli: Cli, mine: LlamaTune, url: str, tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna", reason="the extra `optuna` is not installed")
    there = f"sqlite:///{tmp_path}/optuna.db"
    assert "4 finished trials of 'mine'" in cli("export", "--optuna", there).err
    study = optuna.load_study(study_name="mine", storage=there)
    assert study.best_value == mine.study.best_value
    assert study.best_params == mine.study.best_params
    again = cli("export", "--optuna", there)
    assert (again.code, "mine" in again.err) == (1, True)
    assert cli("import", "--optuna", there, "--name", "back").out == "4 trials added\n"
    back = load_study(url, "back")
    assert [t.params for t in back.trials] == [t.params for t in mine.study.trials[:4]]
    assert [t.value for t in back.trials] == [t.value for t in mine.study.trials[:4]]
    # Without a name it is called as there; into another database.
    other = f"sqlite:///{tmp_path}/other.db"
    assert cli("import", "--optuna", there, "--storage", other).code == 0
    assert load_study(other, "mine").best_params == study.best_params
    missing = cli("import", "--optuna", there, "--optuna-name", "yours")
    assert (missing.code, "no Optuna study 'yours', only ['mine']" in missing.err) == (1, True)


def test_rows_that_are_left_out_are_counted(cli: Cli, mine: LlamaTune) -> None:
    rows = "0.001,full,,0.5,running\n0.002,full,,,finished\n0.003,full,,0.5,killed\n0.004,full,,0.5,finished\n"
    Path("runs.csv").write_text("lr,method,rank,eval/f1,Status\n" + rows + "0.005,full,,0.5,crashed\n")
    result = cli("import", "--csv", "runs.csv", "--value-column", "eval/f1")
    assert (result.code, result.out) == (0, "2 trials added\n"), result
    assert result.err == "3 left out: 1 running, 1 without a value, 1 killed\n"
    result = cli("import", "--csv", "runs.csv", "--map", "value=eval/f1", "--map", "lr=lr")
    assert result.out == "0 trials added, 2 were there already\n"
    assert cli("import", "--csv", "runs.csv", "--map", "lr").code == 2
    assert cli("import", "--json", "runs.csv", "--value-column", "lr").code == 2


def test_nothing_is_written_when_an_import_is_refused(cli: Cli, tmp_path: Path) -> None:
    file = write_spec(tmp_path, text=f"from llamatune_torch import *\nspace = {SPACE!r}")
    for row in ("0.001,full,,good", "7,full,,0.5"):
        Path("runs.csv").write_text(f"lr,method,rank,value\n0.002,full,,{row.split(',')[-1]}\n{row}\n")
        if row[0] == "7":
            Path("runs.csv").write_text(f"lr,method,rank,value\n{row}\n")
        assert cli("import", "--csv", "runs.csv", "--spec", file).code != 0
        assert not (tmp_path / "llamatune.db").exists()


def test_trials_with_another_score_are_refused(cli: Cli, mine: LlamaTune, tmp_path: Path) -> None:
    cli("export", "--json", "study.json")
    document = json.loads((tmp_path / "study.json").read_text())
    (tmp_path / "study.json").write_text(json.dumps(document | {"direction": "minimize"}))
    result = cli("import", "--json", "study.json")
    assert (result.code, "direction: stored 'maximize', given 'minimize'" in result.err) == (1, True)
    assert len(mine.study.trials) == 5


def test_pruned_trials_are_kept_with_their_curves(cli: Cli, url: str, tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna", reason="the extra `optuna` is not installed")
    there = f"sqlite:///{tmp_path}/optuna.db"
    study = optuna.create_study(storage=there, study_name="theirs")
    for pruned in (False, True, False):
        trial = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
        trial.report(0.5, 1)
        state = optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE
        study.tell(trial, None if pruned else 0.25, state=state)
    said = "3 trials added; 1 of them were stopped before their end\n"
    assert cli("import", "--optuna", there).out == said
    stopped = load_study(url, "theirs").trials[1]
    assert (stopped.state, stopped.reason, stopped.curve.values) == (TrialState.STOPPED, "pruned", (0.5,))
    assert "no value" in stopped.notes["stopped"]
    assert cli("import", "--optuna", there).out == "0 trials added, 3 were there already\n"


def test_an_export_that_fails_leaves_the_old_one(cli: Cli, mine: LlamaTune, monkeypatch: pytest.MonkeyPatch) -> None:
    for shape, name, module in (("--json", "study.json", "json.dump"), ("--csv", "t.csv", "csv.DictWriter.writerows")):
        assert cli("export", shape, name).code == 0
        old = Path(name).read_text()

        def fail(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as broken:
            broken.setattr(module, fail)
            assert cli("export", shape, name).code == 130
        assert Path(name).read_text() == old
    assert sorted(p.name for p in Path().iterdir() if p.suffix == ".part") == []


@pytest.mark.parametrize(
    "content", ["[" * 5000, "1" * 5000, '{"llamatune_study": 1, "settings": {}}', "\x00", "\ud800"]
)
@pytest.mark.parametrize("shape", ["--json", "--csv"])
def test_a_hostile_file_is_an_error_of_ours(cli: Cli, mine: LlamaTune, shape: str, content: str) -> None:
    Path("hostile").write_bytes(content.encode("utf-8", "surrogatepass"))
    result = cli("import", shape, "hostile")
    assert result.code in (1, 2)
    assert result.err.startswith("llamatune: ")
    assert len(result.err) < 2000


def test_labels_lists_and_comparisons_leave_and_come_back(cli: Cli, url: str, tmp_path: Path) -> None:
    space = {
        "targets": Categorical({"qv": ["q", "v"], "all": "all-linear"}),
        "layers": Categorical([[1, 2], {"a": [3]}, "none", None]),
        "rank": Integer(0, 64, step=8),
        "alpha": Integer(1, 16, powers_of=2, when={"rank": "> 0"}),
        "model": Categorical(["gpt2"]),
    }
    made = LlamaTune(space, metric="accuracy", storage=url, name="mine", n_initial=1000)
    for i in range(8):
        made.tell(made.ask(), i / 8)
    made.add_trial({"targets": ["q", "v"], "layers": {"a": [3]}, "rank": 0, "model": "gpt2"}, 1.0)
    cli("export", "--csv", "trials.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "trials.csv").read_text())))
    assert {row["params.layers"] for row in rows} == {"[1,2]", '{"a":[3]}', "none", ""}
    assert {row["params.targets"] for row in rows} == {"qv", "all"}
    file = write_spec(
        tmp_path, text=f"from llamatune_torch import *\nspace = {space!r}\nsearch = {{'metric': 'accuracy'}}"
    )
    result = cli("import", "--csv", "trials.csv", "--spec", file, "--name", "new")
    assert result.out == "9 trials added\n", result
    cli("export", "--json", "mine.json", "--name", "mine")
    assert cli("import", "--json", "mine.json", "--name", "restored").out.startswith("study 'restored' is restored")
    for name in ("new", "restored"):
        again = load_study(url, name)
        assert again.space == made.study.space
        assert [trial.params for trial in again.trials] == [trial.params for trial in made.study.trials]
