"""A search over I-STAR's settings with KerasTuner."""

import argparse
from typing import Any

import classifiers
import keras
import keras_tuner
import pandas as pd
import recipe
from text_tasks import TextTask

_LAYERS = {"all": ["all"], "last": [-1]}
_OBJECTIVE = "val_accuracy"


class IStarHyperModel(keras_tuner.HyperModel):
    """A classifier with I-STAR, as a search proposes it.

    Args:
        data: What to learn.
        options: The options of `tune_strength.py`.
    """

    def __init__(self, data: TextTask, options: argparse.Namespace):
        super().__init__(name="istar")
        self._data, self._options = data, options

    def build(self, hp: keras_tuner.HyperParameters) -> keras.Model:
        """An attached classifier whose head is new."""
        limit = self._options.max_strength
        settings = argparse.Namespace(**vars(self._options))
        settings.strength = hp.Float("strength", -limit, limit, default=-1.0)
        settings.shrinkage = hp.Float("shrinkage", 0.0, 1.0, default=0.2)
        settings.layers = _LAYERS[hp.Choice("layers", list(_LAYERS))]
        keras.utils.set_random_seed(settings.seed)
        task = classifiers.load_classifier(
            settings.preset, len(self._data.classes), settings.sequence_length
        )
        recipe.attach(task, settings)
        steps = settings.epochs * recipe.steps(self._data, settings)
        classifiers.compile_classifier(task, settings.learning_rate, steps)
        return task

    def fit(
        self,
        hp: keras_tuner.HyperParameters,
        model: keras.Model,
        *args: Any,
        callbacks: list[keras.callbacks.Callback],
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains the head, then everything, and scores the validation part."""
        steps = self._options.epochs * recipe.steps(self._data, self._options)
        recipe.train_head(model, self._data, self._options)
        classifiers.compile_classifier(
            model, self._options.learning_rate, steps
        )
        return recipe.train(model, self._data, self._options, callbacks)


def search(data: TextTask, options: argparse.Namespace) -> str:
    """Does the trials that are left, and returns a table of all."""
    hypermodel = IStarHyperModel(data, options)
    tuner = keras_tuner.BayesianOptimization(
        hypermodel,
        objective=keras_tuner.Objective(_OBJECTIVE, "max"),
        max_trials=options.trials,
        seed=options.seed,
        directory=options.output,
        project_name="istar",
        overwrite=False,
    )
    tuner.search()
    best = tuner.get_best_models(1)[0]
    results = best.evaluate(
        recipe.batches(data.test, options), return_dict=True, verbose=0
    )
    return (
        f"{table(tuner)}\n\nThe best has accuracy {results['accuracy']:.3f} "
        f"on the {len(data.test.labels):,} test examples."
    )


def table(tuner: keras_tuner.Tuner) -> str:
    """The trials, the best first."""
    trials = tuner.oracle.get_best_trials(len(tuner.oracle.trials))
    rows = [{**t.hyperparameters.values, _OBJECTIVE: t.score} for t in trials]
    return pd.DataFrame(rows).to_string(index=False, float_format="%.3f")
