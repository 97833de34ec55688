"""A strategy that draws cuts where earlier ones did well: Optuna's tree of Parzen estimators.

Bergstra et al. 2011, "Algorithms for hyper-parameter optimization". What Optuna would keep in a
storage of its own is in the search's memory: it is told of the same trials in the same order again,
and with the same seed it draws the same.
"""

from __future__ import annotations

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.search.goal import Aim
from onnx_rnn_prune.search.greedy import finals
from onnx_rnn_prune.search.space import Space
from onnx_rnn_prune.search.trial import Ask, Counts, Strategy, Trial

# Cuts that are drawn at a time, whatever number of workers tries them.
_BATCH = 4
# Cuts in all, and how many that do not fit are drawn for one that does.
_DRAWS = 100
_MISFITS = 20


def optuna(space: Space, aim: Aim, seed: int) -> Strategy:
    """Draws, and recovers the best in full as `greedy` does.

    Raises:
        PruneError: Optuna is not installed.
    """
    try:
        import optuna as library
    except ImportError as error:
        raise PruneError(
            "Optuna is not installed",
            where="--strategy=optuna",
            remedy="pip install 'onnx_rnn_prune[optuna]', or choose greedy",
        ) from error
    library.logging.set_verbosity(library.logging.WARNING)
    study = library.create_study(sampler=library.samplers.TPESampler(seed=seed))
    full = space.ms(space.full)

    def counts_of(drawn: object) -> Counts:
        suggest = drawn.suggest_int  # type: ignore[attr-defined]
        found = [
            suggest(f"group {number}", low, group.size)
            for number, (low, group) in enumerate(zip(space.floor, space.groups, strict=True))
        ]
        return space.aligned(found)

    best = (yield [Ask(space.full if space.fits(list(space.full)) else space.floor)])[0]
    for _ in range(_DRAWS // _BATCH):
        batch = []
        for _ in range(_MISFITS * _BATCH):
            drawn = study.ask()
            counts = counts_of(drawn)
            if space.fits(list(counts)):
                batch.append((drawn, Ask(counts)))
            else:
                study.tell(drawn, state=library.trial.TrialState.FAIL)
            if len(batch) == _BATCH:
                break
        trials = yield [ask for _, ask in batch]
        for (drawn, _), trial in zip(batch, trials, strict=True):
            study.tell(drawn, _value(aim, trial, full))
            best = min(best, trial, key=aim.rank)
    yield from finals(space, aim, best)


def _value(aim: Aim, trial: Trial, full: float) -> float:
    """What is to be made small: time where a cut is good enough, beyond that the loss."""
    if aim.most is None:
        return min(trial.loss, 1e6)
    if aim.meets(trial):
        return trial.ms
    return full * (1.0 + min(trial.loss + trial.spread - aim.most, 1e6))
