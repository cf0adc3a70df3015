"""What the search report says of pruned trials and of what rungs can tell."""

from collections.abc import Callable
from dataclasses import asdict, replace

from scipy.stats import kendalltau

from bench.run import Agreement, Run, end_trial, epoch_folder, read_evaluation
from reports import pruning, search

MakeRun = Callable[..., Run]
REASON = "rank 5 of 6 at epoch 2"


def pruned(run: Run, label: str) -> None:
    end_trial(run.path / "trials" / label, "pruned", 30.0, REASON)


def test_a_page_says_how_many_were_pruned_and_why(make_run: MakeRun) -> None:
    run = make_run(trials=8)
    assert not any("stopped early" in text for text in pruning.sentences(run, run.result()))
    pruned(run, "0001")
    text = " ".join(search.render(run).split())
    assert "1 of 8 trials stopped early" in text
    assert "among the last 25 %, by non-dominated rank in similarity to the true picture, clip score" in text
    assert "1 control went on whatever their rank" in text
    assert REASON in text
    assert "6 complete, 1 pruned, 1 failed" in text


def test_rungs_are_held_against_the_end_over_the_trials_that_went_on(make_run: MakeRun) -> None:
    run = make_run(trials=12)
    ended = [t for t in run.trials() if t.state == "complete" and t.epochs == (2, 4)]
    assert len(ended) >= 4
    pruned(run, ended[0].label)
    scores = [
        [read_evaluation(epoch_folder(t.path, epoch)).scores["similarity"].value for t in ended[1:]]
        for epoch in (2, 4)
    ]
    (text,) = (text for text in pruning.sentences(run, run.result()) if "told the end" in text)
    assert f"is {kendalltau(*scores).statistic:+.2f}".replace("-", "−") in text
    assert f"over the {len(ended) - 1} trials" in text


def test_fewer_steps_are_held_against_all_steps(make_run: MakeRun) -> None:
    run = make_run()
    result = run.result()
    assert result is not None and result.agreement is None
    agreement = Agreement(rung_steps=6, steps=12, tau=0.5, num_trainings=9)
    run.write_result(replace(result, agreement=agreement))
    again = run.result()
    assert again is not None and asdict(again.agreement or agreement) == asdict(agreement)
    text = " ".join(search.render(run).split())
    assert "drawn with 6 sampler steps, the test prompts with 12" in text
    assert "is +0.50, over 9 retrainings" in text
